//! Starting and stopping: the part of a machine that decides what is at work.
//!
//! Devices are quiesced before vCPUs are parked, so that the time that requests of the guest still take
//! passes while it runs; what it asks of a device meanwhile waits in its rings. They work again after the
//! vCPUs run. Before it runs for the first time, a machine is as one that is paused.

use virtio::Disk;

use super::Machine;
use super::assembly::lock;
use crate::error::{Error, Result};
use crate::run_state::{RunState, StopReason};
use crate::state::VmState;

/// What the calls of the machine's owner change; its lock makes them one after the other.
#[derive(Debug)]
pub(super) struct Lifecycle {
    pub(super) phase: Phase,
    /// Whether every device is paused; always while the vCPUs are parked.
    quiesced: bool,
    /// The state saved in this pause.
    pub(super) saved: Option<VmState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Created,
    Running,
    Paused,
}

impl Lifecycle {
    /// The beginning of a machine whose devices are paused.
    pub(super) fn new(phase: Phase) -> Self {
        Self {
            phase,
            quiesced: true,
            saved: None,
        }
    }
}

impl Machine {
    /// Lets every vCPU and device run; does nothing if they do already.
    ///
    /// A machine that was restored and has not run yet gets a new generation id, of which its guest is told.
    /// Disk requests that wait for room on their medium are tried again.
    ///
    /// # Errors
    /// The machine has stopped, KVM does not take note of the pause, or there is no new generation id.
    pub fn resume(&self) -> Result<()> {
        let mut lifecycle = lock(&self.lifecycle);
        self.check_not_stopped("resume")?;
        if lifecycle.phase == Phase::Paused {
            self.tell_guest_of_pause()?;
            lock(&self.generation_id).renew_if_restored()?;
        }
        if lifecycle.phase != Phase::Running {
            lifecycle.saved = None;
            self.around
                .control
                .run()
                .map_err(|reason| stopped("resume", reason))?;
            lifecycle.phase = Phase::Running;
        }
        self.resume_devices(&mut lifecycle);
        self.disks.iter().for_each(Disk::retry);
        Ok(())
    }

    /// Drains every device and parks every vCPU; when this returns, nothing of the machine writes guest
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
        self.pause_devices(&mut lifecycle)?;
        self.around
            .control
            .park()
            .map_err(|reason| stopped("pause", reason))?;
        lifecycle.phase = Phase::Paused;
        Ok(())
    }

    /// Drains every device while the vCPUs run on: what takes long in a pause, done ahead of it.
    ///
    /// [`Machine::pause`] then only parks the vCPUs; [`Machine::resume`] or [`Machine::release_devices`]
    /// sets the devices to work again. Does nothing if they are drained already.
    ///
    /// # Errors
    /// The machine has stopped, or a device cannot be drained; all devices then work on.
    pub fn quiesce_devices(&self) -> Result<()> {
        let mut lifecycle = lock(&self.lifecycle);
        self.check_not_stopped("quiesce")?;
        self.pause_devices(&mut lifecycle)
    }

    /// Sets the devices of a running machine to work again; does nothing if the machine does not run.
    pub fn release_devices(&self) {
        let mut lifecycle = lock(&self.lifecycle);
        if lifecycle.phase == Phase::Running {
            self.resume_devices(&mut lifecycle);
        }
    }

    fn pause_devices(&self, lifecycle: &mut Lifecycle) -> Result<()> {
        if lifecycle.quiesced {
            return Ok(());
        }
        for (index, device) in self.devices.iter().enumerate() {
            let mut device = lock(device);
            if let Err(source) = device.pause() {
                let name = device.name().to_owned();
                drop(device);
                let paused = self.devices.iter().take(index);
                paused.for_each(|paused| lock(paused).resume());
                return Err(Error::Device { name, source });
            }
        }
        lifecycle.quiesced = true;
        Ok(())
    }

    fn resume_devices(&self, lifecycle: &mut Lifecycle) {
        if std::mem::replace(&mut lifecycle.quiesced, false) {
            self.devices.iter().for_each(|device| lock(device).resume());
        }
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

    pub(super) fn check_not_stopped(&self, operation: &'static str) -> Result<()> {
        self.around
            .control
            .reason()
            .map_or(Ok(()), |reason| Err(stopped(operation, reason)))
    }
}

fn stopped(operation: &'static str, reason: StopReason) -> Error {
    Error::InvalidRunState {
        operation,
        state: RunState::Stopped(reason),
    }
}
