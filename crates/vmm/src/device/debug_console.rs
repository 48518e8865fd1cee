//! The debug console port 0xe9 of Bochs and QEMU, as a heartbeat: it counts what the guest writes.
//!
//! A read answers 0xe9, by which a guest finds out that the port is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ciborium::Value;
use serde::{Deserialize, Serialize};

use crate::device::{Device, DeviceError, from_value, to_value};
use crate::run_state::StopReason;

/// The debug console port.
#[derive(Debug, Default)]
pub(crate) struct DebugConsole {
    /// Bytes written by the guest. A statistic: it orders nothing.
    writes: Arc<AtomicU64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    writes: u64,
}

impl DebugConsole {
    /// Returns the count, to be read without the device's lock.
    pub(crate) fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.writes)
    }
}

impl Device for DebugConsole {
    fn name(&self) -> &'static str {
        "debug-console"
    }

    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xe9);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Option<StopReason> {
        self.writes.fetch_add(data.len() as u64, Ordering::Relaxed);
        None
    }

    fn save(&self) -> Result<Value, DeviceError> {
        to_value(&State {
            writes: self.writes.load(Ordering::Relaxed),
        })
    }

    fn restore(&mut self, version: u32, state: &Value) -> Result<(), DeviceError> {
        let state: State = from_value(self.version(), version, state)?;
        self.writes.store(state.writes, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_every_byte_and_goes_on_counting_after_a_restore() {
        let mut device = DebugConsole::default();
        device.write(0, b"abc");
        let saved = device.save().unwrap();
        let mut other = DebugConsole::default();
        other.restore(1, &saved).unwrap();
        other.write(0, b"d");
        assert_eq!(other.counter().load(Ordering::Relaxed), 4);
    }

    #[test]
    fn refuses_a_state_that_is_not_its_own() {
        let mut device = DebugConsole::default();
        assert!(matches!(
            device.restore(2, &Value::Map(vec![])),
            Err(DeviceError::Version { .. })
        ));
        assert!(matches!(
            device.restore(1, &Value::Map(vec![])),
            Err(DeviceError::Schema { .. })
        ));
        assert!(matches!(
            device.restore(1, &Value::Null),
            Err(DeviceError::Schema { .. })
        ));
    }
}
