//! What the vsock device does with its queues.

use std::io::{Read, Write};

use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use crate::error::{Error, Result};
use crate::queue::{ActiveQueue, Chain, Served};
use crate::worker::{Context, QueueHandler};

use super::mux::Mux;
use super::notice::Notice;
use super::packet::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, Operation};
use super::{EVENT_QUEUE, RX_QUEUE, TX_QUEUE};

/// Token of the multiplexer's epoll instance.
const SOCKETS: u32 = 0;

/// The device's state on its worker.
#[derive(Debug)]
pub struct Handler {
    pub(super) mux: Mux,
    pub(super) notice: Notice,
    payload: Vec<u8>,
    /// The guest's packets wait until it has taken refusals of earlier ones.
    held_up: bool,
}

impl Handler {
    pub(super) fn new(mux: Mux) -> Self {
        Handler {
            mux,
            notice: Notice::Done,
            payload: vec![0; MAX_PAYLOAD_BYTES],
            held_up: false,
        }
    }

    /// Takes packets of the guest, as long as there is room for their refusals.
    fn take_packets(&mut self, context: &mut Context) -> Result<Served> {
        let Context {
            memory,
            queues,
            interrupt,
            ..
        } = context;
        let Some(queue) = queues.get_mut(TX_QUEUE) else {
            return Ok(Served::Done);
        };
        let mut served = Served::More;
        queue.disable_kicks(memory)?;
        for _ in 0..=queue.queue.size() {
            if !self.mux.can_receive() {
                // The guest has to make room first: the queue is looked at again when it has.
                self.held_up = true;
                served = Served::Done;
                break;
            }
            if let Some(chain) = queue.pop(memory)? {
                self.take_packet(memory, queue, chain)?;
            } else if !queue.enable_kicks(memory)? {
                served = Served::Done;
                break;
            }
        }
        queue.notify(memory, interrupt)?;
        Ok(served)
    }

    fn take_packet(
        &mut self,
        memory: &GuestMemoryMmap,
        queue: &mut ActiveQueue,
        chain: Chain<'_>,
    ) -> Result<()> {
        let head = chain.head_index();
        let mut reader = chain
            .reader(memory)
            .map_err(|_| broken(TX_QUEUE, "packet outside memory"))?;
        let mut bytes = [0; HEADER_BYTES];
        let short = |_| broken(TX_QUEUE, "packet shorter than it says");
        reader.read_exact(&mut bytes).map_err(short)?;
        let header = Header::from_bytes(&bytes);
        let len = match header.operation {
            Operation::Data => usize::try_from(header.len).unwrap_or(usize::MAX),
            _ => 0,
        };
        let payload = self.payload.get_mut(..len);
        let payload = payload.ok_or_else(|| broken(TX_QUEUE, "packet longer than 64 KiB"))?;
        reader.read_exact(payload).map_err(short)?;
        self.mux.receive(&header, payload);
        queue.complete(memory, head, 0)
    }

    /// Gives packets to the guest, as long as there are buffers and packets.
    fn give_packets(&mut self, context: &mut Context) -> Result<Served> {
        if !self.notice.is_done() {
            return Ok(Served::Done);
        }
        let Context {
            memory,
            queues,
            interrupt,
            ..
        } = context;
        let Some(queue) = queues.get_mut(RX_QUEUE) else {
            return Ok(Served::Done);
        };
        let mut served = Served::More;
        queue.disable_kicks(memory)?;
        for _ in 0..=queue.queue.size() {
            if !self.mux.has_packet() {
                served = Served::Done;
                break;
            }
            if let Some(chain) = queue.pop(memory)? {
                self.give_packet(memory, queue, chain)?;
            } else if !queue.enable_kicks(memory)? {
                served = Served::Done;
                break;
            }
        }
        queue.notify(memory, interrupt)?;
        Ok(served)
    }

    fn give_packet(
        &mut self,
        memory: &GuestMemoryMmap,
        queue: &mut ActiveQueue,
        chain: Chain<'_>,
    ) -> Result<()> {
        let head = chain.head_index();
        let mut writer = chain
            .writer(memory)
            .map_err(|_| broken(RX_QUEUE, "buffer outside memory"))?;
        let room = writer.available_bytes().checked_sub(HEADER_BYTES);
        let room = room.ok_or_else(|| broken(RX_QUEUE, "buffer shorter than a header"))?;
        let payload = self
            .payload
            .get_mut(..room.min(MAX_PAYLOAD_BYTES))
            .unwrap_or_default();
        let Some(header) = self.mux.next_packet(payload) else {
            queue.unpop();
            return Ok(());
        };
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        let payload = payload.get(..len).unwrap_or_default();
        let failed = |_| broken(RX_QUEUE, "buffer cannot be written");
        writer.write_all(&header.to_bytes()).map_err(failed)?;
        writer.write_all(payload).map_err(failed)?;
        let written = u32::try_from(writer.bytes_written()).unwrap_or(u32::MAX);
        queue.complete(memory, head, written)
    }

    /// Gives packets, and goes on with those of the guest that had to wait for that.
    fn move_packets(&mut self, context: &mut Context) -> Result<Served> {
        let served = self.give_packets(context)?;
        if self.held_up && self.mux.can_receive() {
            self.held_up = false;
            serve_again(context, TX_QUEUE);
        }
        Ok(served)
    }

    fn advance_notice(&mut self, context: &mut Context) -> Result<()> {
        let Context {
            memory,
            queues,
            interrupt,
            ..
        } = context;
        match queues.get_mut(EVENT_QUEUE) {
            Some(queue) if !self.notice.is_done() => self.notice.advance(memory, queue, interrupt),
            _ => Ok(()),
        }
    }
}

impl QueueHandler for Handler {
    fn start(&mut self, context: &mut Context) -> Result<()> {
        context.watch(&self.mux, SOCKETS)
    }

    fn serve(&mut self, context: &mut Context, queue: usize) -> Result<Served> {
        match queue {
            RX_QUEUE => self.move_packets(context),
            TX_QUEUE => {
                let taken = self.take_packets(context)?;
                let given = self.move_packets(context)?;
                Ok(if given == Served::More { given } else { taken })
            }
            _ => {
                self.advance_notice(context)?;
                self.move_packets(context)
            }
        }
    }

    fn ready(&mut self, context: &mut Context, _token: u32) -> Result<()> {
        self.mux.poll_sockets();
        if self.move_packets(context)? == Served::More {
            serve_again(context, RX_QUEUE);
        }
        Ok(())
    }
}

/// Has a queue served in turn with everything else.
fn serve_again(context: &Context, queue: usize) {
    if let Some(queue) = context.queues.get(queue) {
        // A counter that is full is a kick that is pending.
        let _ = queue.kick.write(1);
    }
}

fn broken(queue: usize, problem: &'static str) -> Error {
    Error::Protocol { queue, problem }
}
