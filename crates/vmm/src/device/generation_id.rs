//! The generation id: sixteen random bytes in guest memory that change when the guest is a restored copy.
//!
//! By a new id a guest learns that others may have its memory, and renews what must be unique: Linux
//! reseeds its random number generator. The id is new at the first start after each restore, and only
//! then: not at the restore itself, so that a machine that was restored and never started has the memory
//! that was saved; and never in the machine that was saved, which goes on as the one it was. The guest is
//! told by an interrupt of the generic event device, before any vCPU runs.

use ciborium::Value;
use vm_memory::{Bytes, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{Device, DeviceError, NoState, from_value, to_value};
use crate::error::{Error, Result};
use crate::layout::GENERATION_ID;
use crate::run_state::StopReason;

const ID_BYTES: usize = 16;

/// The generation id.
pub(crate) struct GenerationId {
    memory: GuestMemoryMmap,
    event: EventFd,
    /// The machine was restored and has not run since.
    is_stale: bool,
}

impl GenerationId {
    /// Creates the device; the id is zero until [`GenerationId::write_first`] or whatever memory says.
    pub(crate) fn new(memory: GuestMemoryMmap) -> Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(|source| Error::Io {
            operation: "eventfd",
            source,
        })?;
        Ok(Self {
            memory,
            event,
            is_stale: false,
        })
    }

    /// Returns the event that raises the interrupt of the generic event device.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Gives a guest that boots its first id.
    pub(crate) fn write_first(&self) -> Result<()> {
        self.write_new()
    }

    /// Gives a restored guest that starts for the first time a new id, and tells it.
    pub(crate) fn renew_if_restored(&mut self) -> Result<()> {
        if self.is_stale {
            self.write_new()?;
            self.event.write(1).map_err(|source| Error::Io {
                operation: "write to an eventfd",
                source,
            })?;
            self.is_stale = false;
        }
        Ok(())
    }

    fn write_new(&self) -> Result<()> {
        let mut id = [0; ID_BYTES];
        getrandom::fill(&mut id).map_err(|source| Error::Io {
            operation: "getrandom",
            source: source.into(),
        })?;
        self.memory
            .write_slice(&id, GENERATION_ID)
            .map_err(|source| Error::Memory {
                problem: source.to_string(),
            })
    }
}

impl Device for GenerationId {
    fn name(&self) -> &str {
        "generation-id"
    }

    /// There are no registers: the id is in memory.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) -> Option<StopReason> {
        None
    }

    fn save(&self) -> std::result::Result<Value, DeviceError> {
        to_value(&NoState {})
    }

    fn restore(&mut self, version: u32, state: &Value) -> std::result::Result<(), DeviceError> {
        from_value::<NoState>(self.version(), version, state)?;
        self.is_stale = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Backing;
    use crate::memory::{create_guest_memory_for, memory_ranges};

    fn device() -> GenerationId {
        let ranges = memory_ranges(2 << 20);
        GenerationId::new(create_guest_memory_for(&ranges, Backing::Anonymous, false).unwrap()).unwrap()
    }

    fn id(device: &GenerationId) -> [u8; ID_BYTES] {
        device.memory.read_obj(GENERATION_ID).unwrap()
    }

    #[test]
    fn only_the_first_start_after_a_restore_renews_the_id_and_tells_the_guest() {
        let mut device = device();
        device.write_first().unwrap();
        let first = id(&device);
        assert_ne!(first, [0; ID_BYTES]);
        device.renew_if_restored().unwrap();
        assert_eq!(id(&device), first, "a machine that was not restored keeps its id");
        assert!(device.event().read().is_err(), "and hears of nothing");

        let saved = device.save().unwrap();
        device.restore(1, &saved).unwrap();
        assert_eq!(
            id(&device),
            first,
            "the memory is as saved until the machine runs"
        );
        device.renew_if_restored().unwrap();
        let second = id(&device);
        assert_ne!(second, first);
        assert_eq!(device.event().read().unwrap(), 1);

        device.renew_if_restored().unwrap();
        assert_eq!(id(&device), second);
        assert!(device.event().read().is_err());
    }
}
