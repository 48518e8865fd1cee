//! What the console does on its worker's thread: moves bytes between the queues and the buffers.

use virtio_queue::QueueT;

use crate::console::output::Output;
use crate::console::{BUFFER_BYTES, ConsoleInput};
use crate::error::{Error, Result};
use crate::event::{clear, descriptor};
use crate::queue::{Buffers, Served};
use crate::worker::{Context, QueueHandler};

/// Queue of memory for input.
const RECEIVE: usize = 0;
/// Queue of output.
const TRANSMIT: usize = 1;

/// Most bytes of input in one chain.
const MAX_INPUT: u64 = 4096;

/// Input has arrived.
const ARRIVED: u32 = 0;
/// Output has room again.
const ROOM: u32 = 1;

/// The worker's side of the console.
#[derive(Debug)]
pub(super) struct Handler {
    input: ConsoleInput,
    output: Output,
}

impl Handler {
    pub(super) fn new(input: ConsoleInput, output: Output) -> Self {
        Self { input, output }
    }

    /// Fills the driver's memory with input, as far as there is either.
    fn receive(&self, context: &mut Context) -> Result<Served> {
        let Some(active) = context.queues.get_mut(RECEIVE) else {
            return Ok(Served::Done);
        };
        let memory = &context.memory;
        let mut served = Served::More;
        for _ in 0..=active.queue.size() {
            if self.input.is_empty() {
                served = Served::Done;
                break;
            }
            let Some(chain) = active.pop(memory)? else {
                if active.enable_kicks(memory)? {
                    continue;
                }
                served = Served::Done;
                break;
            };
            let Buffers { head, writable, .. } = Buffers::of(chain, RECEIVE)?;
            let len = usize::try_from(writable.len_bytes().min(MAX_INPUT)).unwrap_or_default();
            let bytes = self.input.take(len);
            writable
                .write(memory, &bytes)
                .map_err(|_| outside_memory(RECEIVE))?;
            active.complete(memory, head, u32::try_from(bytes.len()).unwrap_or_default())?;
        }
        active.notify(memory, &context.interrupt)?;
        Ok(served)
    }

    /// Takes output, as far as there is room for it.
    fn transmit(&self, context: &mut Context) -> Result<Served> {
        let Some(active) = context.queues.get_mut(TRANSMIT) else {
            return Ok(Served::Done);
        };
        let memory = &context.memory;
        let mut served = Served::More;
        for _ in 0..=active.queue.size() {
            let Some(chain) = active.pop(memory)? else {
                if active.enable_kicks(memory)? {
                    continue;
                }
                served = Served::Done;
                break;
            };
            let Buffers { head, readable, .. } = Buffers::of(chain, TRANSMIT)?;
            // What no driver sends at once is cut off.
            let len = usize::try_from(readable.len_bytes()).map_or(BUFFER_BYTES, |len| len.min(BUFFER_BYTES));
            if !self.output.has_room(len) {
                active.unpop();
                served = Served::Done;
                break;
            }
            let mut bytes = vec![0; len];
            readable
                .read(memory, &mut bytes)
                .map_err(|_| outside_memory(TRANSMIT))?;
            self.output.put(&bytes);
            active.complete(memory, head, 0)?;
        }
        active.notify(memory, &context.interrupt)?;
        Ok(served)
    }
}

impl QueueHandler for Handler {
    fn start(&mut self, context: &mut Context) -> Result<()> {
        context.watch(descriptor(self.input.arrived()), ARRIVED)?;
        context.watch(descriptor(self.output.room()), ROOM)
    }

    fn serve(&mut self, context: &mut Context, queue: usize) -> Result<Served> {
        if queue == RECEIVE {
            self.receive(context)
        } else {
            self.transmit(context)
        }
    }

    fn ready(&mut self, context: &mut Context, token: u32) -> Result<()> {
        if token == ARRIVED {
            clear(self.input.arrived());
            context.serve_soon(RECEIVE);
        } else {
            clear(self.output.room());
            context.serve_soon(TRANSMIT);
        }
        Ok(())
    }
}

fn outside_memory(queue: usize) -> Error {
    Error::Protocol {
        queue,
        problem: "buffer outside guest memory",
    }
}
