//! A virtio device as a device of this machine: its registers at a place of the bus.
//!
//! Everything virtio is in the crate `virtio`; notifications of queues pass by here only if KVM does not
//! take them for us.

use ciborium::Value;
use virtio::MmioTransport;

use crate::device::{Device, DeviceError};
use crate::run_state::StopReason;

/// A virtio device behind its registers.
#[derive(Debug)]
pub(crate) struct VirtioMmio(pub(crate) MmioTransport);

impl Device for VirtioMmio {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn version(&self) -> u32 {
        self.0.version()
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<StopReason> {
        self.0.write(offset, data);
        None
    }

    fn pause(&mut self) -> Result<(), DeviceError> {
        self.0.pause().map_err(DeviceError::from)
    }

    fn resume(&mut self) {
        self.0.resume();
    }

    fn save(&self) -> Result<Value, DeviceError> {
        self.0.save().map_err(DeviceError::from)
    }

    fn restore(&mut self, version: u32, state: &Value) -> Result<(), DeviceError> {
        self.0.restore(version, state).map_err(DeviceError::from)
    }
}
