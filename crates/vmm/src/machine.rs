//! The machine: what its owner holds and calls.

use std::time::Duration;

use vm_memory::GuestMemoryMmap;

use crate::config::MachineConfig;
use crate::error::Result;
use crate::run_state::{RunState, StopReason};
use crate::state::VmState;

/// How a saved state is brought back.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// Restores even if the host's processor lacks features that the guest has seen.
    pub ignore_cpu_features: bool,
}

/// A KVM machine.
#[derive(Debug)]
pub struct Machine {
    memory: GuestMemoryMmap,
}

impl Machine {
    /// Creates a machine with the kernel loaded into `memory`; no vCPU runs before [`Machine::resume`].
    ///
    /// # Errors
    /// KVM or the kernel image is not usable, or memory does not fit the configuration.
    pub fn boot(config: &MachineConfig, memory: GuestMemoryMmap) -> Result<Self> {
        config.validate()?;
        Ok(Self { memory })
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
        let _ = (config, memory, state, options);
        unimplemented!()
    }

    /// Lets every vCPU run; does nothing if they do already.
    ///
    /// # Errors
    /// The machine has stopped.
    pub fn resume(&self) -> Result<()> {
        unimplemented!()
    }

    /// Parks every vCPU and drains every device; when this returns, nothing writes guest memory.
    ///
    /// # Errors
    /// The machine has stopped, or a device cannot be drained (the machine then runs on).
    pub fn pause(&self) -> Result<()> {
        unimplemented!()
    }

    /// Ends the machine for good.
    pub fn stop(&self) {
        unimplemented!()
    }

    /// Returns where the machine is in its life.
    #[must_use]
    pub fn state(&self) -> RunState {
        unimplemented!()
    }

    /// Waits until the machine stops, and says why.
    #[must_use]
    pub fn wait(&self) -> StopReason {
        unimplemented!()
    }

    /// Waits until the machine stops, but no longer than `timeout`.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<StopReason> {
        let _ = timeout;
        unimplemented!()
    }

    /// Returns the guest memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Saves everything but guest memory. The state is captured once per pause.
    ///
    /// # Errors
    /// The machine is not paused, or KVM or a device does not give its state.
    pub fn save_state(&self) -> Result<VmState> {
        unimplemented!()
    }

    /// Returns how often the guest has written to the debug console port: a sign of life.
    #[must_use]
    pub fn heartbeat(&self) -> u64 {
        unimplemented!()
    }

    /// Gives bytes to the guest's serial port; returns how many found room in its buffer.
    ///
    /// # Errors
    /// The interrupt could not be raised.
    pub fn send_serial_input(&self, bytes: &[u8]) -> Result<usize> {
        let _ = bytes;
        unimplemented!()
    }
}
