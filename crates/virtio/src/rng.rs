//! The entropy device (virtio 1.2, 5.4): fills what memory the driver offers with the host's random bytes.
#![warn(clippy::indexing_slicing, clippy::unwrap_used)]

use ciborium::Value;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::GuestMemoryMmap;

use crate::device::{VirtioDevice, from_value, to_value};
use crate::error::{Error, Result};
use crate::queue::{Buffers, Chain, Served};
use crate::worker::{Context, QueueHandler, Work, Worker};

/// Entries of the one queue; Linux has one request under way.
const QUEUE_SIZE: u16 = 64;
/// Most bytes of one request that are filled; a driver asks again if it needs more.
const MAX_BYTES: u64 = 4096;

/// The entropy device.
#[derive(Debug)]
pub struct Rng {
    worker: Worker<Source>,
}

/// The device has nothing to save: random bytes come anew.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {}

impl Rng {
    /// Makes the device.
    #[must_use]
    pub fn new() -> Self {
        Self {
            worker: Worker::new("rng", Source),
        }
    }
}

impl Default for Rng {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    /// There is no configuration space.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    /// There is no configuration space.
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

/// The worker's side: the host's random number generator.
#[derive(Debug)]
struct Source;

impl QueueHandler for Source {
    fn serve(&mut self, context: &mut Context, queue: usize) -> Result<Served> {
        let Some(active) = context.queues.get_mut(queue) else {
            return Ok(Served::Done);
        };
        let memory = &context.memory;
        let served = active.for_each_chain(memory, |active, chain| {
            let head = chain.head_index();
            let written = fill(chain, memory, queue)?;
            active.complete(memory, head, written)
        })?;
        active.notify(memory, &context.interrupt)?;
        Ok(served)
    }
}

/// Fills a request's memory and returns how many bytes of it.
fn fill(chain: Chain<'_>, memory: &GuestMemoryMmap, queue: usize) -> Result<u32> {
    let Buffers { writable, .. } = Buffers::of(chain, queue)?;
    let len = writable.len_bytes().min(MAX_BYTES);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    getrandom::fill(&mut bytes).map_err(|error| Error::Host {
        problem: error.to_string(),
    })?;
    let outside = |_| Error::Protocol {
        queue,
        problem: "buffer outside guest memory",
    };
    writable.write(memory, &bytes).map_err(outside)?;
    Ok(u32::try_from(len).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
