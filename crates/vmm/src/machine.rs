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
mod devices;
mod run;
mod state;
mod virtio;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::virtio::{Balloon, ConsoleInput, DevicesConfig, DiscardRoute, Disk, DiskEvent};
use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryMmap;

use crate::arch::platform::check_processor;
use crate::arch::{boot, cpuid, msr};
use crate::config::MachineConfig;
use crate::cpu_model::CpuModel;
use crate::device::{GenerationId, Serial, SharedDevice};
use crate::error::{Error, Result};
use crate::machine::assembly::{Assembly, lock};
use crate::machine::run::{Lifecycle, Phase};
use crate::machine::state::{check_topology, restore_devices, restore_processors};
use crate::memory::ranges_of;
use crate::run_state::{RunState, StopReason};
use crate::state::VmState;
use crate::vcpu::{self, Surroundings, Vcpu};

/// How a saved state is brought back.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Restores even if the host's processor is by another vendor or lacks features that the guest has
    /// seen. The guest breaks when it uses one of them.
    pub ignore_cpu_features: bool,
    /// Lets the guest's clocks, the paravirtual one and the time stamp counters, make up for the time since
    /// the save, by the host's real-time clock: the guest sees its monotonic time jump.
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
    disks: Vec<Disk>,
    discard_route: DiscardRoute,
    console: Option<ConsoleInput>,
    balloon: Option<Balloon>,
    serial: Arc<Mutex<Serial>>,
    generation_id: Arc<Mutex<GenerationId>>,
    heartbeat: Arc<AtomicU64>,
    devices_config: DevicesConfig,
    cpu_model: CpuModel,
    msr_indices: Vec<u32>,
    tsc_khz: u32,
    lifecycle: Mutex<Lifecycle>,
}

impl Machine {
    /// Creates a machine with the kernel loaded into `memory`; no vCPU runs before [`Machine::resume`].
    ///
    /// # Errors
    /// KVM or the kernel image is not usable, or memory does not fit the configuration.
    pub fn boot(config: &MachineConfig, memory: GuestMemoryMmap) -> Result<Self> {
        let assembly = Assembly::new(config, memory)?;
        assembly.prepare_to_boot(config.cpu)?;
        assembly.write_firmware()?;
        let around = &assembly.around;
        let entry = boot::load(&around.memory, config)?;
        boot::set_entry(&lock(&assembly.vcpus[0]).fd, &around.capabilities, entry)?;
        Self::finish(config, assembly, Phase::Created)
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
        restore_processors(&assembly, state, options.advance_clock)?;
        restore_devices(&assembly, &state.devices)?;
        Self::finish(config, assembly, Phase::Paused)
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

    /// Returns the machine's disks, in the order of its configuration.
    #[must_use]
    pub fn disks(&self) -> Vec<Disk> {
        self.disks.clone()
    }

    /// Waits for what a disk has to tell, until the machine has stopped or `timeout` is over.
    ///
    /// Whoever hears that a medium is full is to pause the machine; [`Machine::resume`] tries the requests that
    /// wait for room once more. Until then the machine can be paused, but not saved.
    #[must_use]
    pub fn wait_disk_event(&self, timeout: Duration) -> Option<DiskEvent> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let left = deadline.map_or(timeout, |at| at.saturating_duration_since(Instant::now()));
            let event = self.around.control.wait_disk_event(left)?;
            if self.still_holds(&event) {
                return Some(event);
            }
        }
    }

    /// Tells whether an event is still of interest: a resume may have come before it was heard.
    fn still_holds(&self, event: &DiskEvent) -> bool {
        match event {
            DiskEvent::Full { disk: id } => {
                let mut disks = self.disks.iter();
                disks.any(|disk| disk.id() == id && disk.waits_for_room())
            }
            _ => true,
        }
    }

    /// Returns the way by which the machine's devices give guest memory back to the host. Whoever must see
    /// the memory before it is gone installs a way of its own.
    #[must_use]
    pub fn discard_route(&self) -> DiscardRoute {
        self.discard_route.clone()
    }

    /// Returns the handle of the machine's memory balloon, if it has one.
    #[must_use]
    pub fn balloon(&self) -> Option<Balloon> {
        self.balloon.clone()
    }

    /// Gives bytes to the guest's virtio console; returns how many found room in its buffer.
    ///
    /// # Errors
    /// The machine has no virtio console.
    pub fn send_console_input(&self, bytes: &[u8]) -> Result<usize> {
        let missing = Error::MissingDevice {
            name: "virtio-console",
        };
        self.console
            .as_ref()
            .map(|console| console.send(bytes))
            .ok_or(missing)
    }

    /// Returns the configuration of the machine's virtio devices.
    #[must_use]
    pub fn devices_config(&self) -> &DevicesConfig {
        &self.devices_config
    }

    /// Returns the processor model that the machine was configured with.
    #[must_use]
    pub fn cpu_model(&self) -> CpuModel {
        self.cpu_model
    }

    /// Starts the vCPU threads of a machine whose state is complete.
    fn finish(config: &MachineConfig, assembly: Assembly, phase: Phase) -> Result<Self> {
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
            disks: devices.virtio.disks,
            discard_route: devices.virtio.discard_route,
            console: devices.virtio.console,
            balloon: devices.virtio.balloon,
            serial: devices.serial,
            generation_id: devices.generation_id,
            heartbeat: devices.heartbeat,
            devices_config: config.devices.clone(),
            cpu_model: config.cpu,
            msr_indices,
            tsc_khz,
            lifecycle: Mutex::new(Lifecycle::new(phase)),
        };
        for disk in &machine.disks {
            let control = Arc::clone(&machine.around.control);
            disk.on_event(move |event| control.tell(event));
        }
        for vcpu in &machine.vcpus {
            vcpu::spawn(Arc::clone(vcpu), &machine.around)?;
        }
        Ok(machine)
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
