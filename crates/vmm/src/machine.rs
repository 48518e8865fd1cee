//! The machine: what its owner holds and calls.
//!
//! | state \ call | `resume`        | `pause`          | `save_state`       | guest ends, `stop` |
//! |--------------|-----------------|------------------|--------------------|--------------------|
//! | Created      | Running         | Paused           | saves              | Stopped            |
//! | Running      | -               | Paused           | error              | Stopped            |
//! | Paused       | Running         | -                | saves, once        | Stopped            |
//! | Stopped      | error           | error            | error              | -                  |
//!
//! Time goes on while a machine is paused: its clocks and timers are KVM's and keep counting, and the
//! guest is told by the paravirtual clock that it was stopped. The saved state is of the first call of
//! [`Machine::save_state`] in a pause; later calls give the same state again, so that two snapshots of one
//! paused machine are equal.
//!
//! Lock order: `lifecycle`, then any vCPU, then any device.

mod assembly;

use std::fmt::{self, Display};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryMmap;

use crate::acpi;
use crate::arch::platform::check_processor;
use crate::arch::{boot, cpuid, msr, vcpu_state, vm_state};
use crate::config::MachineConfig;
use crate::device::{GenerationId, Serial, SharedDevice};
use crate::error::{Error, Result};
use crate::machine::assembly::{Assembly, lock};
use crate::memory::ranges_of;
use crate::run_state::{RunState, StopReason};
use crate::state::{DeviceState, VcpuState, VmSection, VmState};
use crate::vcpu::{self, Surroundings, Vcpu};

/// How a saved state is brought back.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Restores even if the host's processor is by another vendor or lacks features that the guest has
    /// seen. The guest breaks when it uses one of them.
    pub ignore_cpu_features: bool,
    /// Lets the paravirtual clock make up for the time since the save, by the host's real-time clock.
    pub advance_clock: bool,
}

/// A KVM machine.
///
/// Dropping it ends the guest.
pub struct Machine {
    around: Arc<Surroundings>,
    vcpus: Vec<Arc<Mutex<Vcpu>>>,
    vm: VmFd,
    /// In topology order.
    devices: Vec<SharedDevice>,
    device_names: Vec<String>,
    serial: Arc<Mutex<Serial>>,
    generation_id: Arc<Mutex<GenerationId>>,
    heartbeat: Arc<AtomicU64>,
    msr_indices: Vec<u32>,
    tsc_khz: u32,
    lifecycle: Mutex<Lifecycle>,
}

/// What the calls of the machine's owner change; its lock makes them one after the other.
#[derive(Debug)]
struct Lifecycle {
    phase: Phase,
    /// The state saved in this pause.
    saved: Option<VmState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Created,
    Running,
    Paused,
}

impl Machine {
    /// Creates a machine with the kernel loaded into `memory`; no vCPU runs before [`Machine::resume`].
    ///
    /// # Errors
    /// KVM or the kernel image is not usable, or memory does not fit the configuration.
    pub fn boot(config: &MachineConfig, memory: GuestMemoryMmap) -> Result<Self> {
        let assembly = Assembly::new(config, memory)?;
        assembly.prepare_to_boot(config.cpu)?;
        let around = &assembly.around;
        vm_state::mask_pics(&assembly.vm)?;
        acpi::write(&around.memory, config.cpus, &[])?;
        lock(&assembly.devices.generation_id).write_first()?;
        let entry = boot::load(&around.memory, config)?;
        boot::set_entry(&lock(&assembly.vcpus[0]).fd, &around.capabilities, entry)?;
        Self::finish(assembly, Phase::Created)
    }

    /// Creates a paused machine from a saved state; `memory` must hold, or lazily receive, the guest
    /// memory of the same instant.
    ///
    /// # Errors
    /// The state does not fit the configuration, the memory or this host's processor.
    pub fn restore(
        config: &MachineConfig,
        memory: GuestMemoryMmap,
        state: &VmState,
        options: &RestoreOptions,
    ) -> Result<Self> {
        let assembly = Assembly::new(config, memory)?;
        check_topology(&assembly, state)?;
        if !options.ignore_cpu_features {
            let host = cpuid::shown(&assembly.supported_cpuid, &lock(&assembly.vcpus[0]).fd)?;
            state
                .vcpus
                .iter()
                .try_for_each(|saved| check_processor(&saved.cpuid, &host))?;
        }
        restore_vcpus(&assembly, &state.vcpus)?;
        vm_state::restore(&assembly.vm, &state.vm.chips(), options.advance_clock)?;
        for (device, saved) in assembly.devices.topology.iter().zip(&state.devices) {
            let failed = |source| Error::Device {
                name: saved.name.clone(),
                source,
            };
            let mut device = lock(device);
            device.pause().map_err(failed)?;
            device.restore(saved.version, &saved.state).map_err(failed)?;
        }
        Self::finish(assembly, Phase::Paused)
    }

    /// Lets every vCPU run; does nothing if they do already.
    ///
    /// # Errors
    /// The machine has stopped, or KVM does not take note of the pause.
    pub fn resume(&self) -> Result<()> {
        let mut lifecycle = lock(&self.lifecycle);
        self.check_not_stopped("resume")?;
        match lifecycle.phase {
            Phase::Running => return Ok(()),
            Phase::Created => {}
            Phase::Paused => {
                self.tell_guest_of_pause()?;
                lock(&self.generation_id).renew_if_restored()?;
                self.devices.iter().for_each(|device| lock(device).resume());
            }
        }
        lifecycle.saved = None;
        self.around
            .control
            .run()
            .map_err(|reason| stopped("resume", reason))?;
        lifecycle.phase = Phase::Running;
        Ok(())
    }

    /// Parks every vCPU and drains every device; when this returns, nothing of the machine writes guest
    /// memory. Does nothing if the machine is paused already.
    ///
    /// # Errors
    /// The machine has stopped, or a device cannot be drained; the machine then runs on.
    pub fn pause(&self) -> Result<()> {
        let mut lifecycle = lock(&self.lifecycle);
        self.check_not_stopped("pause")?;
        if lifecycle.phase == Phase::Paused {
            return Ok(());
        }
        let stopped = |reason| stopped("pause", reason);
        self.around.control.park().map_err(stopped)?;
        if let Err(error) = self.pause_devices() {
            if lifecycle.phase == Phase::Running {
                self.around.control.run().map_err(stopped)?;
            }
            return Err(error);
        }
        lifecycle.phase = Phase::Paused;
        Ok(())
    }

    /// Ends the machine for good, and waits until its vCPUs are parked.
    pub fn stop(&self) {
        self.around.control.end(StopReason::Requested);
        let _ = self.around.control.wait_for_end(None);
    }

    /// Returns where the machine is in its life.
    #[must_use]
    pub fn state(&self) -> RunState {
        if let Some(reason) = self.around.control.reason() {
            return RunState::Stopped(reason);
        }
        match lock(&self.lifecycle).phase {
            Phase::Created => RunState::Created,
            Phase::Running => RunState::Running,
            Phase::Paused => RunState::Paused,
        }
    }

    /// Waits until the machine stops, and says why.
    #[must_use]
    pub fn wait(&self) -> StopReason {
        self.around
            .control
            .wait_for_end(None)
            .unwrap_or(StopReason::Requested)
    }

    /// Waits until the machine stops, but no longer than `timeout`.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<StopReason> {
        self.around.control.wait_for_end(Some(timeout))
    }

    /// Returns the guest memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.around.memory
    }

    /// Returns the number of vCPUs.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.vcpus.len()
    }

    /// Returns the frequency of the guest's time stamp counter in kHz; 0 if KVM does not tell.
    #[must_use]
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }

    /// Saves everything but guest memory, as of the first call in this pause.
    ///
    /// # Errors
    /// The machine is not paused, or KVM or a device does not give its state.
    pub fn save_state(&self) -> Result<VmState> {
        let mut lifecycle = lock(&self.lifecycle);
        self.check_not_stopped("save")?;
        if lifecycle.phase == Phase::Running {
            return Err(Error::InvalidRunState {
                operation: "save",
                state: RunState::Running,
            });
        }
        if let Some(saved) = &lifecycle.saved {
            return Ok(saved.clone());
        }
        let state = self.read_state()?;
        lifecycle.saved = Some(state.clone());
        Ok(state)
    }

    /// Returns how many bytes the guest has written to the debug console port: a sign of life.
    #[must_use]
    pub fn heartbeat(&self) -> u64 {
        self.heartbeat.load(Ordering::Relaxed)
    }

    /// Gives bytes to the guest's serial port; returns how many found room in its buffer.
    ///
    /// # Errors
    /// The interrupt could not be raised.
    pub fn send_serial_input(&self, bytes: &[u8]) -> Result<usize> {
        lock(&self.serial).receive(bytes)
    }

    /// Starts the vCPU threads of a machine whose state is complete.
    fn finish(assembly: Assembly, phase: Phase) -> Result<Self> {
        let Assembly {
            kvm,
            vm,
            vcpus,
            devices,
            around,
            ..
        } = assembly;
        let (msr_indices, tsc_khz) = {
            let first = lock(&vcpus[0]);
            (
                msr::saved_indices(&kvm, &first.fd)?,
                first.fd.get_tsc_khz().unwrap_or(0),
            )
        };
        let device_names = devices.names();
        let machine = Self {
            around,
            vcpus,
            vm,
            devices: devices.topology,
            device_names,
            serial: devices.serial,
            generation_id: devices.generation_id,
            heartbeat: devices.heartbeat,
            msr_indices,
            tsc_khz,
            lifecycle: Mutex::new(Lifecycle { phase, saved: None }),
        };
        for vcpu in &machine.vcpus {
            vcpu::spawn(Arc::clone(vcpu), &machine.around)?;
        }
        Ok(machine)
    }

    /// Devices first, for completing a request may raise an interrupt; the chips that take it last.
    fn read_state(&self) -> Result<VmState> {
        let devices = self.devices.iter().map(save_device).collect::<Result<Vec<_>>>()?;
        let capabilities = &self.around.capabilities;
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        for vcpu in &self.vcpus {
            let vcpu = lock(vcpu);
            vcpus.push(vcpu_state::save(
                vcpu.id,
                &vcpu.fd,
                capabilities,
                &self.msr_indices,
            )?);
        }
        vcpu_state::align_tsc(&mut vcpus);
        let chips = vm_state::save(&self.vm)?;
        let memory = ranges_of(self.memory());
        let vm = VmSection::new(memory, vcpus.len(), self.device_names.clone(), chips);
        let first = &vcpus[0];
        let platform = capabilities.describe(&first.cpuid, &self.msr_indices, first.tsc_khz);
        Ok(VmState {
            vm,
            vcpus,
            devices,
            platform,
        })
    }

    fn pause_devices(&self) -> Result<()> {
        for (index, device) in self.devices.iter().enumerate() {
            let mut device = lock(device);
            if let Err(source) = device.pause() {
                let name = device.name().to_owned();
                drop(device);
                self.devices
                    .iter()
                    .take(index)
                    .for_each(|paused| lock(paused).resume());
                return Err(Error::Device { name, source });
            }
        }
        Ok(())
    }

    /// Sets the flag by which a guest's watchdogs know that it was stopped rather than stuck. KVM keeps it
    /// until it next updates the paravirtual clock, so it is not in the memory that was saved.
    fn tell_guest_of_pause(&self) -> Result<()> {
        for vcpu in &self.vcpus {
            let vcpu = lock(vcpu);
            match vcpu.fd.kvmclock_ctrl() {
                Ok(()) => {}
                // The guest does not use the paravirtual clock.
                Err(error) if error.errno() == libc::EINVAL => {}
                Err(source) => {
                    return Err(Error::Vcpu {
                        vcpu: vcpu.id,
                        operation: "KVM_KVMCLOCK_CTRL",
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    fn check_not_stopped(&self, operation: &'static str) -> Result<()> {
        self.around
            .control
            .reason()
            .map_or(Ok(()), |reason| Err(stopped(operation, reason)))
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("cpus", &self.cpus())
            .field("memory", &ranges_of(self.memory()))
            .field("devices", &self.device_names)
            .finish_non_exhaustive()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.around.control.end(StopReason::Requested);
        self.around.control.join();
    }
}

fn stopped(operation: &'static str, reason: StopReason) -> Error {
    Error::InvalidRunState {
        operation,
        state: RunState::Stopped(reason),
    }
}

fn save_device(device: &SharedDevice) -> Result<DeviceState> {
    let device = lock(device);
    let name = device.name().to_owned();
    match device.save() {
        Ok(state) => Ok(DeviceState {
            name,
            version: device.version(),
            state,
        }),
        Err(source) => Err(Error::Device { name, source }),
    }
}

/// All registers of all vCPUs, then the offsets of the time stamp counters, then the timer deadlines.
fn restore_vcpus(assembly: &Assembly, saved: &[VcpuState]) -> Result<()> {
    let vcpus: Vec<_> = assembly.vcpus.iter().map(|vcpu| lock(vcpu)).collect();
    let pairs = || vcpus.iter().map(|vcpu| &vcpu.fd).zip(saved);
    pairs().try_for_each(|(fd, saved)| vcpu_state::restore(fd, &assembly.around.capabilities, saved))?;
    vcpu_state::settle_tsc_offsets(pairs())?;
    pairs().try_for_each(|(fd, saved)| vcpu_state::restore_deadline(fd, saved))
}

fn check_topology(assembly: &Assembly, state: &VmState) -> Result<()> {
    let compare = |part, saved: String, here: String| {
        if saved == here {
            Ok(())
        } else {
            Err(Error::Topology { part, saved, here })
        }
    };
    compare(
        "memory map",
        list(&state.vm.memory),
        list(&ranges_of(&assembly.around.memory)),
    )?;
    compare(
        "vcpus",
        state.vcpus.len().to_string(),
        assembly.vcpus.len().to_string(),
    )?;
    let saved_names: Vec<_> = state.devices.iter().map(|device| &device.name).collect();
    compare("devices", list(&saved_names), list(&assembly.devices.names()))
}

fn list<T: Display>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
