//! What a virtio device is to its transport.
//!
//! The transport owns the registers that all devices share: status, features, queue addresses, interrupts. A
//! device owns its configuration space, what it does with its queues, and its host side. The transport calls
//! with `&mut` from whichever thread the guest's access or the machine's command comes on, never from two at
//! once, so a device needs no lock of its own but what it shares with its worker.

use std::time::Duration;

use ciborium::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vm_memory::GuestMemoryMmap;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::queue::{ActiveQueue, QueueState};
use crate::worker::Work;

/// Longest wait for requests under way, in [`VirtioDevice::pause`] and [`VirtioDevice::reset`].
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// A device behind a virtio transport.
///
/// Between [`pause`](Self::pause) and [`resume`](Self::resume) a device takes nothing from its queues and
/// writes no guest memory; what arrives meanwhile stays where it is.
pub trait VirtioDevice: Send {
    /// Returns the device type, a `VIRTIO_ID_*` (virtio 1.2, 5).
    fn device_type(&self) -> u32;

    /// Returns the device's own feature bits; those of transport and rings are added by the transport.
    fn features(&self) -> u64;

    /// Returns the largest size of each queue; a power of two, at most 32768.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the configuration space at `offset`; what lies beyond its end is left as it is, zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space at `offset`; what cannot be written is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Returns the worker that serves the queues.
    fn worker(&self) -> &dyn Work;

    /// Returns the worker that serves the queues, to be told what to do.
    fn worker_mut(&mut self) -> &mut dyn Work;

    /// Begins to serve the queues: the driver is ready, or was when the machine was saved.
    ///
    /// Queues that the driver left out are there, not ready. A device activated while paused waits for
    /// [`resume`](Self::resume).
    ///
    /// # Errors
    /// The device cannot work; the transport tells the driver that it needs a reset.
    fn activate(&mut self, activation: Activation) -> Result<()> {
        self.worker_mut().activate(activation)
    }

    /// Completes the requests under way, used ring and interrupt included, and starts none.
    ///
    /// # Errors
    /// They did not complete within [`DRAIN_TIMEOUT`]; the device works on as before.
    fn pause(&mut self) -> Result<()> {
        self.worker_mut().pause()
    }

    /// Works again, and looks at every queue whether kicked or not.
    fn resume(&mut self) {
        self.worker_mut().resume();
    }

    /// Completes the requests under way and forgets the queues; does nothing to a device not activated.
    ///
    /// # Errors
    /// They did not complete within [`DRAIN_TIMEOUT`]; the device works on, and the transport shows the
    /// driver that the reset did not happen.
    fn reset(&mut self) -> Result<()> {
        self.worker_mut().reset()
    }

    /// Returns the state of all queues of an activated and paused device.
    ///
    /// # Errors
    /// The device is not paused, or its host side does not tell.
    fn queue_states(&self) -> Result<Vec<QueueState>> {
        self.worker().queue_states()
    }

    /// Returns the version of the saved state's schema.
    fn version(&self) -> u32 {
        1
    }

    /// Returns the device's own state as a CBOR map of named fields; the device is paused or not activated.
    ///
    /// # Errors
    /// The device is not paused, or its host side does not tell.
    fn save(&self) -> Result<Value>;

    /// Takes over a state that a device of this type saved; the device is not activated yet.
    ///
    /// # Errors
    /// The version is unknown, or the state breaks the schema; the device is as it was.
    fn restore(&mut self, version: u32, state: &Value) -> Result<()>;
}

/// What a device gets to work with when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// All queues by number; those that the driver left out are not ready.
    pub queues: Vec<ActiveQueue>,
    /// The way to the driver.
    pub interrupt: Interrupt,
    /// Feature bits that driver and device agreed on.
    pub features: u64,
    /// Whether the device is to wait for [`VirtioDevice::resume`].
    pub paused: bool,
}

impl Activation {
    /// Tells whether driver and device agreed on feature `bit`.
    #[must_use]
    pub fn has_feature(&self, bit: u32) -> bool {
        self.features >> bit & 1 == 1
    }
}

/// Copies what of a configuration space of the bytes `space` lies at `offset` into `data`.
pub fn read_config_bytes(space: &[u8], offset: u64, data: &mut [u8]) {
    let Some(from) = usize::try_from(offset)
        .ok()
        .and_then(|offset| space.get(offset..))
    else {
        return;
    };
    for (to, from) in data.iter_mut().zip(from) {
        *to = *from;
    }
}

/// Turns a state structure into a CBOR value.
///
/// # Errors
/// The structure cannot be encoded.
pub fn to_value<T: Serialize>(state: &T) -> Result<Value> {
    Value::serialized(state).map_err(|error| Error::State {
        problem: error.to_string(),
    })
}

/// Turns a CBOR value of version `saved` into a state structure of version `known`.
///
/// # Errors
/// The versions differ, or the value breaks the schema.
pub fn from_value<T: DeserializeOwned>(known: u32, saved: u32, state: &Value) -> Result<T> {
    if saved != known {
        return Err(Error::Version { saved, known });
    }
    state.deserialized().map_err(|error| Error::State {
        problem: error.to_string(),
    })
}
