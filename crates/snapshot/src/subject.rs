//! What can be saved: something with guest memory that can be paused, resumed and asked for its state.
//!
//! A machine is one. [`PlainMemory`](crate::PlainMemory) is another, so that the order of a save and all its failures
//! can be tried where there is no KVM.

use std::fmt::Debug;

use vm_memory::GuestMemoryMmap;

use vmm::{Machine, RunState, StateError, StatePart, VmState};

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

    fn encode(state: &VmState) -> Result<Vec<StatePart>, StateError> {
        state.to_parts()
    }
}
