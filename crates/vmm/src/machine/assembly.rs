//! Putting a machine together: what booting and restoring have in common.
//!
//! Everything here happens before any vCPU runs, and nothing of it depends on what the guest is or was.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::platform::Capabilities;
use crate::arch::{cpuid, msr, platform};
use crate::config::MachineConfig;
use crate::cpu_model::CpuModel;
use crate::device::{Bus, DebugConsole, DebugExit, GenerationId, I8042, Power, Serial, SharedDevice};
use crate::error::{Error, Result};
use crate::kick;
use crate::layout::{
    DEBUG_CONSOLE_PORT, DEBUG_EXIT_PORT, DEBUG_EXIT_PORTS, EVENT_GSI, I8042_PORT, I8042_PORTS, POWER_PORT,
    POWER_PORTS, SERIAL_GSI, SERIAL_PORT, SERIAL_PORTS,
};
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

/// The devices, and direct ways to those that the machine's owner talks to.
pub(super) struct Devices {
    /// In the order of the topology.
    pub(super) topology: Vec<SharedDevice>,
    pub(super) serial: Arc<Mutex<Serial>>,
    pub(super) generation_id: Arc<Mutex<GenerationId>>,
    pub(super) heartbeat: Arc<std::sync::atomic::AtomicU64>,
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
        let (devices, ports) = create_devices(config, &vm, &memory)?;
        let vcpus = (0..config.cpus)
            .map(|id| create_vcpu(&vm, id))
            .collect::<Result<_>>()?;
        let supported_cpuid = cpuid::supported(&kvm)?;
        let control = RunControl::new();
        let around = Surroundings {
            memory,
            ports,
            mmio: Bus::default(),
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
}

impl Devices {
    /// Returns the names of the devices in topology order.
    pub(super) fn names(&self) -> Vec<String> {
        let name = |device: &SharedDevice| lock(device).name().to_owned();
        self.topology.iter().map(name).collect()
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
        saved: super::list(&wanted),
        here: super::list(&found),
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

fn create_devices(config: &MachineConfig, vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(Devices, Bus)> {
    let serial = Serial::new(&config.serial)?;
    register_line(vm, serial.interrupt(), SERIAL_GSI)?;
    let serial = Arc::new(Mutex::new(serial));
    let generation_id = GenerationId::new(memory.clone())?;
    register_line(vm, generation_id.event(), EVENT_GSI)?;
    let generation_id = Arc::new(Mutex::new(generation_id));
    let console = DebugConsole::default();
    let heartbeat = console.counter();
    let placed: [(u64, u64, SharedDevice); 5] = [
        (
            SERIAL_PORT.into(),
            SERIAL_PORTS.into(),
            Arc::clone(&serial) as SharedDevice,
        ),
        (I8042_PORT, I8042_PORTS, Arc::new(Mutex::new(I8042::new()))),
        (DEBUG_CONSOLE_PORT, 1, Arc::new(Mutex::new(console))),
        (
            DEBUG_EXIT_PORT,
            DEBUG_EXIT_PORTS,
            Arc::new(Mutex::new(DebugExit::default())),
        ),
        (
            POWER_PORT.into(),
            POWER_PORTS.into(),
            Arc::new(Mutex::new(Power::default())),
        ),
    ];
    let mut ports = Bus::default();
    let mut topology = Vec::new();
    for (base, len, device) in placed {
        ports.insert(base, len, Arc::clone(&device));
        topology.push(device);
    }
    topology.push(Arc::clone(&generation_id) as SharedDevice);
    let devices = Devices {
        topology,
        serial,
        generation_id,
        heartbeat,
    };
    Ok((devices, ports))
}

/// Makes each signal of `event` an edge of an interrupt line.
fn register_line(vm: &VmFd, event: &EventFd, gsi: u32) -> Result<()> {
    vm.register_irqfd(event, gsi).map_err(|source| Error::Kvm {
        operation: "KVM_IRQFD",
        source,
    })
}

fn create_vcpu(vm: &VmFd, id: u32) -> Result<Arc<Mutex<Vcpu>>> {
    let fd = vm.create_vcpu(id.into()).map_err(|source| Error::Vcpu {
        vcpu: id,
        operation: "KVM_CREATE_VCPU",
        source,
    })?;
    Ok(Arc::new(Mutex::new(Vcpu { id, fd })))
}
