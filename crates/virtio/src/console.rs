//! The console (virtio 1.2, 5.3): one port, over which the guest's terminal reaches a file or a terminal.
//!
//! Both directions have a bounded buffer between guest and host. Output is written by a thread of its own, so
//! that a terminal that is not read holds up the guest's console and never a pause of the machine. What
//! is in the buffers when a machine is saved belongs to the machine that goes on, not to the copy: output appears
//! once, and input goes to whom it was typed for.
//!
//! Left out: more ports, the size of the terminal, and the emergency write; without them the configuration
//! space is empty.

mod handler;
mod input;
mod output;

use ciborium::Value;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use crate::config::ConsoleConfig;
use crate::console::handler::Handler;
use crate::console::output::Output;
use crate::device::{VirtioDevice, from_value, to_value};
use crate::error::Result;
use crate::worker::{Work, Worker};

pub use input::ConsoleInput;

/// Receive and transmit queue of the first port (virtio 1.2, 5.3.2).
const QUEUE_SIZES: [u16; 2] = [64; 2];
/// Bytes that each direction's buffer holds.
const BUFFER_BYTES: usize = 64 << 10;

/// The console device.
#[derive(Debug)]
pub struct ConsoleDevice {
    input: ConsoleInput,
    worker: Worker<Handler>,
}

/// The device has nothing to save but its queues.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {}

impl ConsoleDevice {
    /// Makes the device and opens its output.
    ///
    /// # Errors
    /// The output cannot be opened, or the system gives no more descriptors or threads.
    pub fn new(config: &ConsoleConfig) -> Result<Self> {
        let input = ConsoleInput::new()?;
        let handler = Handler::new(input.clone(), Output::open(&config.output)?);
        Ok(Self {
            input,
            worker: Worker::new("console", handler),
        })
    }

    /// Returns the way to the guest's terminal.
    #[must_use]
    pub fn input(&self) -> ConsoleInput {
        self.input.clone()
    }
}

impl VirtioDevice for ConsoleDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// All of its fields belong to features that are not offered.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    /// All of its fields belong to features that are not offered.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn worker(&self) -> &dyn Work {
        &self.worker
    }

    fn worker_mut(&mut self) -> &mut dyn Work {
        &mut self.worker
    }

    fn save(&self) -> Result<Value> {
        to_value(&State {})
    }

    fn restore(&mut self, version: u32, state: &Value) -> Result<()> {
        from_value(self.version(), version, state).map(|State {}| ())
    }
}

#[cfg(test)]
mod tests;
