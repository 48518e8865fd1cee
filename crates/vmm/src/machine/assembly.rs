//! Putting a machine together: what booting and restoring have in common.
//!
//! Everything here happens before any vCPU runs, and nothing of it depends on what the guest is or was.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::GuestMemoryMmap;

use super::devices::Devices;
use crate::acpi;
use crate::arch::platform::Capabilities;
use crate::arch::{cpuid, msr, platform, vm_state};
use crate::config::MachineConfig;
use crate::cpu_model::CpuModel;
use crate::error::{Error, Result};
use crate::kick;
use crate::memory::{memory_ranges, ranges_of, register_slots};
use crate::run_control::RunControl;
use crate::state::CpuidLeaf;
use crate::vcpu::{Surroundings, Vcpu};

/// Pages that KVM on Intel processors without unrestricted guest mode keeps inside the hole below 4 GiB.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
const TSS_ADDRESS: usize = 0xfffb_d000;

/// A machine whose vCPUs have neither state nor threads yet.
pub(super) struct Assembly {
    pub(super) kvm: Kvm,
    pub(super) vm: VmFd,
    pub(super) vcpus: Vec<Arc<Mutex<Vcpu>>>,
    pub(super) devices: Devices,
    pub(super) around: Arc<Surroundings>,
    /// CPUID as KVM supports it on this host.
    pub(super) supported_cpuid: Vec<CpuidLeaf>,
}

impl Assembly {
    /// Creates the VM, its chips, devices and vCPUs, and gives it its memory.
    pub(super) fn new(config: &MachineConfig, memory: GuestMemoryMmap) -> Result<Self> {
        config.validate()?;
        check_memory(config, &memory)?;
        kick::install_handler()?;
        let kvm = platform::open_kvm()?;
        let vm = kvm.create_vm().map_err(|source| Error::Kvm {
            operation: "KVM_CREATE_VM",
            source,
        })?;
        let capabilities = Capabilities::query(&kvm, &vm)?;
        register_slots(&vm, &memory)?;
        create_chips(&vm)?;
        let (devices, buses) = Devices::new(config, &vm, &memory)?;
        devices.pause()?;
        let vcpus = (0..config.cpus)
            .map(|id| create_vcpu(&vm, id))
            .collect::<Result<_>>()?;
        let supported_cpuid = cpuid::supported(&kvm)?;
        let control = Arc::new(RunControl::new());
        let around = Surroundings {
            memory,
            ports: buses.ports,
            mmio: buses.mmio,
            capabilities,
            control,
        };
        Ok(Self {
            kvm,
            vm,
            vcpus,
            devices,
            around: Arc::new(around),
            supported_cpuid,
        })
    }

    /// Gives every vCPU the CPUID of a model, and what firmware leaves in its MSRs.
    pub(super) fn prepare_to_boot(&self, model: CpuModel) -> Result<()> {
        let cpus = u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX);
        let leaves = cpuid::model::apply(model, &self.supported_cpuid)?;
        for vcpu in &self.vcpus {
            let vcpu = lock(vcpu);
            cpuid::set(vcpu.id, &vcpu.fd, &cpuid::for_vcpu(&leaves, vcpu.id, cpus))?;
            msr::write(vcpu.id, &vcpu.fd, &msr::AT_BOOT)?;
        }
        Ok(())
    }

    /// Does what firmware would: masks the legacy interrupts, describes the machine, makes up its first
    /// generation id.
    pub(super) fn write_firmware(&self) -> Result<()> {
        vm_state::mask_pics(&self.vm)?;
        let cpus = u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX);
        let slots: Vec<_> = self.devices.virtio.placed.iter().map(|(slot, _)| *slot).collect();
        acpi::write(&self.around.memory, cpus, &slots)?;
        lock(&self.devices.generation_id).write_first()
    }
}

/// Takes a lock, whatever happened to the thread that held it last: a panic on a vCPU's thread ends the
/// machine, and its owner must still be able to look at it.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_memory(config: &MachineConfig, memory: &GuestMemoryMmap) -> Result<()> {
    let (wanted, found) = (memory_ranges(config.memory_bytes), ranges_of(memory));
    if wanted == found {
        return Ok(());
    }
    Err(Error::Topology {
        part: "memory map",
        saved: super::state::list(&wanted),
        here: super::state::list(&found),
    })
}

fn create_chips(vm: &VmFd) -> Result<()> {
    let failed = |operation| move |source| Error::Kvm { operation, source };
    if vm.check_extension(Cap::SetIdentityMapAddr) {
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
    }
    if vm.check_extension(Cap::SetTssAddr) {
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(failed("KVM_SET_TSS_ADDR"))?;
    }
    vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
    // The dummy speaker port answers the guests that calibrate their clock by it.
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..kvm_pit_config::default()
    };
    vm.create_pit2(pit).map_err(failed("KVM_CREATE_PIT2"))
}

fn create_vcpu(vm: &VmFd, id: u32) -> Result<Arc<Mutex<Vcpu>>> {
    let fd = vm.create_vcpu(id.into()).map_err(|source| Error::Vcpu {
        vcpu: id,
        operation: "KVM_CREATE_VCPU",
        source,
    })?;
    Ok(Arc::new(Mutex::new(Vcpu { id, fd })))
}
