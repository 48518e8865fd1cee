//! What can be saved: something with guest memory that can be paused, resumed and asked for its state.
//!
//! A machine is one. [`PlainMemory`](crate::PlainMemory) is another, so that the order of a save and all its failures
//! can be tried where there is no KVM.

use std::fmt::Debug;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use vmm::{DiscardRoute, Machine, RunState, StateError, StatePart, VmState};

use crate::disk::DiskSource;
use crate::machine_record::MachineRecord;

/// Memory and whoever writes it, as a save needs them.
///
/// Between a successful [`pause`](Self::pause) and the next [`resume`](Self::resume) nothing writes the memory.
pub trait Subject: Sync + Debug {
    /// The state at one instant, not yet encoded: encoding is not done while the writers wait.
    type State;

    /// The memory.
    fn memory(&self) -> &GuestMemoryMmap;

    /// Whether the writers run.
    fn is_running(&self) -> bool;

    /// Lets the devices complete what is under way and begin nothing, while the vCPUs run on: what this takes is no
    /// part of the pause that follows. Without anything to drain it does nothing.
    ///
    /// # Errors
    /// A device does not come to rest; all go on.
    fn drain_devices(&self) -> Result<(), vmm::Error> {
        Ok(())
    }

    /// Lets drained devices go on, where no pause followed.
    fn release_devices(&self) {}

    /// Stops all writers.
    ///
    /// # Errors
    /// The writers have ended, or cannot be stopped; they run on then.
    fn pause(&self) -> Result<(), vmm::Error>;

    /// Lets all writers run.
    ///
    /// # Errors
    /// The writers have ended.
    fn resume(&self) -> Result<(), vmm::Error>;

    /// Reads the state of the paused writers.
    ///
    /// # Errors
    /// They are not paused, or do not tell.
    fn save_state(&self) -> Result<Self::State, vmm::Error>;

    /// The disks that belong to the memory; their order is that of the guest.
    fn disks(&self) -> Vec<Arc<dyn DiskSource>> {
        Vec::new()
    }

    /// How the machine was connected to its host.
    fn record(&self) -> MachineRecord {
        MachineRecord::without_devices()
    }

    /// The way by which memory that the guest does not need goes back to the host, if it can.
    fn discard_route(&self) -> Option<DiscardRoute> {
        None
    }

    /// Encodes a state; equal states give equal bytes.
    ///
    /// # Errors
    /// The state cannot be encoded.
    fn encode(state: &Self::State) -> Result<Vec<StatePart>, StateError>;
}

impl Subject for Machine {
    type State = VmState;

    fn memory(&self) -> &GuestMemoryMmap {
        Machine::memory(self)
    }

    fn is_running(&self) -> bool {
        self.state() == RunState::Running
    }

    fn pause(&self) -> Result<(), vmm::Error> {
        Machine::pause(self)
    }

    fn resume(&self) -> Result<(), vmm::Error> {
        Machine::resume(self)
    }

    fn save_state(&self) -> Result<VmState, vmm::Error> {
        Machine::save_state(self)
    }

    fn drain_devices(&self) -> Result<(), vmm::Error> {
        self.quiesce_devices()
    }

    fn release_devices(&self) {
        Machine::release_devices(self);
    }

    fn disks(&self) -> Vec<Arc<dyn DiskSource>> {
        let disks = Machine::disks(self).into_iter();
        disks.map(|disk| Arc::new(disk) as Arc<dyn DiskSource>).collect()
    }

    fn record(&self) -> MachineRecord {
        MachineRecord {
            cpu: self.cpu_model(),
            devices: self.devices_config().clone(),
            ..MachineRecord::without_devices()
        }
    }

    fn discard_route(&self) -> Option<DiscardRoute> {
        Some(Machine::discard_route(self))
    }

    fn encode(state: &VmState) -> Result<Vec<StatePart>, StateError> {
        state.to_parts()
    }
}
