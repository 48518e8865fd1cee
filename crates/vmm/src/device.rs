//! The devices of a machine, and the two buses that guest accesses reach them by.
//!
//! A device is a set of registers at an address range, a name and a saved state. The machine holds its
//! devices in one order, its *topology*: a saved state is matched to devices by that order and their names.
//! Each device has its own lock, held for one access, one hook or one save; no device takes another's.

mod bus;
mod debug_console;
mod debug_exit;
mod generation_id;
mod i8042;
pub(crate) mod power;
mod serial;
mod virtio;

use ciborium::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::run_state::StopReason;

pub(crate) use bus::{Bus, SharedDevice};
pub(crate) use debug_console::DebugConsole;
pub(crate) use debug_exit::DebugExit;
pub(crate) use generation_id::GenerationId;
pub(crate) use i8042::I8042;
pub(crate) use power::Power;
pub(crate) use serial::Serial;
pub(crate) use virtio::VirtioMmio;

/// Why a device could not be drained, saved or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The saved state is of a version that the device does not know.
    #[error("state version {saved}, this device reads {known}")]
    Version {
        /// Version saved.
        saved: u32,
        /// Version that the device reads.
        known: u32,
    },
    /// The saved state breaks the device's schema.
    #[error("state: {problem}")]
    Schema {
        /// What is wrong with it.
        problem: String,
    },
    /// The device's host side failed.
    #[error("host side: {problem}")]
    Host {
        /// What failed.
        problem: String,
    },
    /// A virtio device reports it.
    #[error(transparent)]
    Virtio(::virtio::Error),
}

impl From<::virtio::Error> for DeviceError {
    fn from(error: ::virtio::Error) -> Self {
        match error {
            ::virtio::Error::Version { saved, known } => Self::Version { saved, known },
            ::virtio::Error::State { problem } => Self::Schema { problem },
            other => Self::Virtio(other),
        }
    }
}

/// A device of a machine.
///
/// Between [`Device::pause`] and [`Device::resume`] a device starts no work and writes no guest memory;
/// what arrives from outside meanwhile is kept. A device is saved only while paused.
pub trait Device: Send {
    /// Returns the device's name, unique in the machine.
    fn name(&self) -> &str;

    /// Returns the version of the saved state's schema.
    fn version(&self) -> u32 {
        1
    }

    /// Reads registers at `offset` into all of `data`.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes registers at `offset`; tells if that ends the machine.
    fn write(&mut self, offset: u64, data: &[u8]) -> Option<StopReason>;

    /// Completes requests under way and starts no more.
    ///
    /// # Errors
    /// A request cannot be completed; the device goes on as before.
    fn pause(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Starts work again.
    fn resume(&mut self) {}

    /// Returns the state as a CBOR map of named fields.
    ///
    /// # Errors
    /// The state cannot be had.
    fn save(&self) -> Result<Value, DeviceError>;

    /// Takes over a state that a device of the same name saved.
    ///
    /// # Errors
    /// The version is unknown, or the state breaks the schema; the device is as it was.
    fn restore(&mut self, version: u32, state: &Value) -> Result<(), DeviceError>;
}

/// Turns a device's state structure into a CBOR value.
pub(crate) fn to_value<T: Serialize>(state: &T) -> Result<Value, DeviceError> {
    Value::serialized(state).map_err(|error| DeviceError::Schema {
        problem: error.to_string(),
    })
}

/// Turns a CBOR value into a device's state structure.
pub(crate) fn from_value<T: DeserializeOwned>(
    known: u32,
    saved: u32,
    state: &Value,
) -> Result<T, DeviceError> {
    if saved != known {
        return Err(DeviceError::Version { saved, known });
    }
    state.deserialized().map_err(|error| DeviceError::Schema {
        problem: error.to_string(),
    })
}

/// The state of a device that has none: an empty map.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoState {}
