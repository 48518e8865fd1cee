//! The debug exit port, as QEMU's isa-debug-exit: writing a number ends the machine with it.

use ciborium::Value;

use crate::device::{Device, DeviceError, NoState, from_value, to_value};
use crate::run_state::StopReason;

/// The debug exit port.
#[derive(Debug, Default)]
pub(crate) struct DebugExit {}

impl Device for DebugExit {
    fn name(&self) -> &'static str {
        "debug-exit"
    }

    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Option<StopReason> {
        let code = data
            .iter()
            .rev()
            .fold(0u32, |code, &byte| code << 8 | u32::from(byte));
        Some(StopReason::DebugExit { code })
    }

    fn save(&self) -> Result<Value, DeviceError> {
        to_value(&NoState {})
    }

    fn restore(&mut self, version: u32, state: &Value) -> Result<(), DeviceError> {
        from_value::<NoState>(self.version(), version, state).map(|_| ())
    }
}
