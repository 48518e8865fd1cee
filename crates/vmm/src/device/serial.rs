//! The 16550 serial port at COM1.
//!
//! Output goes to the host byte by byte, on the vCPU's thread: a reader that stops reading a pipe stops the
//! guest at its next byte, as a serial line with flow control would. Input is put into the receive buffer
//! by [`Serial::receive`]; its interrupt reaches the guest through an irqfd.

use std::fs::OpenOptions;
use std::io::{self, Write};

use ciborium::Value;
use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::config::SerialOutput;
use crate::device::{Device, DeviceError, from_value, to_value};
use crate::error::{Error, Result};
use crate::run_state::StopReason;
use crate::state::ByteString;

type Output = Box<dyn Write + Send>;

/// An interrupt line: each trigger is one edge, delivered by KVM.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The serial port.
pub(crate) struct Serial {
    uart: Uart<Interrupt, NoEvents, Output>,
    interrupt: EventFd,
}

/// The port's registers by the names of the chip's data sheet.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    receive_buffer: ByteString,
}

impl Serial {
    /// Creates the port with its output opened.
    pub(crate) fn new(output: &SerialOutput) -> Result<Self> {
        let output: Output = match output {
            SerialOutput::Stdio => Box::new(io::stdout()),
            SerialOutput::Null => Box::new(io::sink()),
            SerialOutput::File(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                Box::new(file.map_err(|source| Error::SerialOutput {
                    path: path.clone(),
                    source,
                })?)
            }
        };
        let failed = |source| Error::Io {
            operation: "eventfd",
            source,
        };
        let interrupt = EventFd::new(EFD_NONBLOCK).map_err(failed)?;
        let line = Interrupt(interrupt.try_clone().map_err(failed)?);
        Ok(Self {
            uart: Uart::new(line, output),
            interrupt,
        })
    }

    /// Returns the event that raises the port's interrupt.
    pub(crate) fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// Puts bytes into the receive buffer; returns how many found room.
    pub(crate) fn receive(&mut self, bytes: &[u8]) -> Result<usize> {
        let room = bytes.len().min(self.uart.fifo_capacity());
        let (taken, _) = bytes.split_at(room);
        if taken.is_empty() {
            return Ok(0);
        }
        self.uart.enqueue_raw_bytes(taken).map_err(|error| Error::Device {
            name: self.name().to_owned(),
            source: DeviceError::Host {
                problem: error.to_string(),
            },
        })
    }
}

impl Device for Serial {
    fn name(&self) -> &'static str {
        "serial0"
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.uart.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<StopReason> {
        if let (&[byte], Ok(offset)) = (data, u8::try_from(offset))
            && let Err(error) = self.uart.write(offset, byte)
        {
            // The guest cannot be told that a byte of its output was lost.
            tracing::warn!(%error, "serial output lost");
        }
        None
    }

    fn save(&self) -> std::result::Result<Value, DeviceError> {
        let state = self.uart.state();
        to_value(&State {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            receive_buffer: ByteString(state.in_buffer),
        })
    }

    /// An interrupt that the port had requested is requested again, for it may have been on its way from
    /// the irqfd to the interrupt controller when that was saved: rather one too many than one lost.
    fn restore(&mut self, version: u32, state: &Value) -> std::result::Result<(), DeviceError> {
        let state: State = from_value(self.version(), version, state)?;
        let host = |problem: String| DeviceError::Host { problem };
        let line = |interrupt: &EventFd| {
            interrupt
                .try_clone()
                .map(Interrupt)
                .map_err(|error| host(error.to_string()))
        };
        let registers = SerialState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.receive_buffer.0,
        };
        // The output is moved over only once the state has proved to be good.
        let probe: Output = Box::new(io::sink());
        let mut restored =
            Uart::from_state(&registers, line(&self.interrupt)?, NoEvents, probe).map_err(|error| {
                DeviceError::Schema {
                    problem: error.to_string(),
                }
            })?;
        std::mem::swap(restored.writer_mut(), self.uart.writer_mut());
        self.uart = restored;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(serial: &mut Serial, offset: u64) -> u8 {
        let mut data = [0];
        serial.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn input_waits_in_the_buffer_and_survives_a_restore() {
        let mut serial = Serial::new(&SerialOutput::Null).unwrap();
        serial.write(7, &[0x5a]);
        assert_eq!(
            serial.receive(&[b'x'; 100]).unwrap(),
            64,
            "no more than the FIFO holds"
        );
        assert_eq!(serial.receive(b"y").unwrap(), 0);
        let mut other = Serial::new(&SerialOutput::Null).unwrap();
        other.restore(1, &serial.save().unwrap()).unwrap();
        assert_eq!(register(&mut other, 7), 0x5a);
        assert_eq!(register(&mut other, 5) & 1, 1, "data is ready");
        assert_eq!(register(&mut other, 0), b'x');
    }

    #[test]
    fn a_restored_port_still_writes_to_its_own_output() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut serial = Serial::new(&SerialOutput::File(file.path().to_owned())).unwrap();
        serial.write(0, b"a");
        let saved = Serial::new(&SerialOutput::Null).unwrap().save().unwrap();
        serial.restore(1, &saved).unwrap();
        serial.write(0, b"b");
        assert_eq!(std::fs::read(file.path()).unwrap(), b"ab");
    }

    #[test]
    fn an_interrupt_under_way_is_raised_again() {
        let mut serial = Serial::new(&SerialOutput::Null).unwrap();
        serial.write(1, &[1]);
        serial.receive(b"x").unwrap();
        assert_eq!(serial.interrupt().read().unwrap(), 1);
        let mut other = Serial::new(&SerialOutput::Null).unwrap();
        other.restore(1, &serial.save().unwrap()).unwrap();
        assert_eq!(other.interrupt().read().unwrap(), 1);
    }

    #[test]
    fn a_buffer_larger_than_the_chip_has_is_refused() {
        let mut serial = Serial::new(&SerialOutput::Null).unwrap();
        let Value::Map(mut fields) = serial.save().unwrap() else {
            panic!("not a map")
        };
        for (name, value) in &mut fields {
            if name.as_text() == Some("receive_buffer") {
                *value = Value::Bytes(vec![0; 65]);
            }
        }
        let result = serial.restore(1, &Value::Map(fields));
        assert!(matches!(result, Err(DeviceError::Schema { .. })), "{result:?}");
    }
}
