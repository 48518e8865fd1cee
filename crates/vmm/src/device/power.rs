//! The registers by which an ACPI guest ends the machine: sleep control, sleep status and reset
//! (ACPI 6.5, 4.8.3.6 and 4.8.3.7).

use ciborium::Value;

use crate::device::{Device, DeviceError, NoState, from_value, to_value};
use crate::layout::POWER_PORT;
use crate::run_state::StopReason;

/// Ports of the registers, a byte each.
pub(crate) const SLEEP_CONTROL_PORT: u16 = POWER_PORT;
pub(crate) const SLEEP_STATUS_PORT: u16 = POWER_PORT + 1;
pub(crate) const RESET_PORT: u16 = POWER_PORT + 2;
/// What resets when it is written to the reset register.
pub(crate) const RESET_VALUE: u8 = 1;
/// The sleep type of `_S5`.
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;

/// Offsets of the registers that do something.
const SLEEP_CONTROL: u64 = (SLEEP_CONTROL_PORT - POWER_PORT) as u64;
const RESET: u64 = (RESET_PORT - POWER_PORT) as u64;

const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u8 = 1 << 5;

/// The registers.
#[derive(Debug, Default)]
pub(crate) struct Power {}

impl Device for Power {
    fn name(&self) -> &str {
        "acpi-power"
    }

    /// The machine never slept: all status bits are clear, and the others cannot be read back.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<StopReason> {
        match (offset, data) {
            (SLEEP_CONTROL, &[value])
                if value & SLEEP_ENABLE != 0
                    && value & SLEEP_TYPE_MASK == SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT =>
            {
                Some(StopReason::PowerOff)
            }
            (RESET, &[RESET_VALUE]) => Some(StopReason::Reset),
            _ => None,
        }
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
    fn only_the_enabled_off_state_switches_off() {
        let mut power = Power::default();
        assert_eq!(
            power.write(SLEEP_CONTROL, &[5 << 2 | 1 << 5]),
            Some(StopReason::PowerOff)
        );
        for value in [5 << 2, 1 << 5, 3 << 2 | 1 << 5] {
            assert_eq!(power.write(SLEEP_CONTROL, &[value]), None, "{value:#x}");
        }
        assert_eq!(
            power.write(SLEEP_CONTROL + 1, &[0x80]),
            None,
            "the status register"
        );
    }

    #[test]
    fn only_the_reset_value_resets() {
        let mut power = Power::default();
        assert_eq!(power.write(RESET, &[1]), Some(StopReason::Reset));
        assert_eq!(power.write(RESET, &[0]), None);
        assert_eq!(power.write(RESET, &[1, 0]), None);
    }
}
