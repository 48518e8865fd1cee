//! The keyboard controller, of which only the reset command exists.

use ciborium::Value;
use vm_superio::{I8042Device, Trigger};

use crate::device::{Device, DeviceError, NoState, from_value, to_value};
use crate::run_state::StopReason;

/// Stands for the processor's reset line: remembers that it was pulled.
#[derive(Debug, Default)]
struct ResetLine(std::cell::Cell<bool>);

impl Trigger for ResetLine {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.set(true);
        Ok(())
    }
}

/// The keyboard controller.
#[derive(Debug)]
pub(crate) struct I8042 {
    controller: I8042Device<ResetLine>,
}

impl I8042 {
    pub(crate) fn new() -> Self {
        Self {
            controller: I8042Device::new(ResetLine::default()),
        }
    }
}

impl Device for I8042 {
    fn name(&self) -> &'static str {
        "i8042"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.controller.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<StopReason> {
        if let (&[byte], Ok(offset)) = (data, u8::try_from(offset)) {
            let Ok(()) = self.controller.write(offset, byte);
        }
        self.controller
            .reset_evt()
            .0
            .replace(false)
            .then_some(StopReason::Reset)
    }

    fn save(&self) -> Result<Value, DeviceError> {
        to_value(&NoState {})
    }

    fn restore(&mut self, version: u32, state: &Value) -> Result<(), DeviceError> {
        from_value::<NoState>(self.version(), version, state).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_at_the_command_port_resets() {
        let mut device = I8042::new();
        assert_eq!(device.write(0, &[0xfe]), None);
        assert_eq!(device.write(4, &[0xfd]), None);
        assert_eq!(device.write(4, &[0xfe]), Some(StopReason::Reset));
        assert_eq!(device.write(4, &[0]), None, "the line is released again");
    }
}
