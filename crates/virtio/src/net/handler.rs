//! What the network device does with its queues.
//!
//! Packets pass through one buffer of ours in each direction, so that what the kernel is given is not changed
//! by the guest meanwhile, and a packet can be laid over several of the guest's buffers once its length is
//! known. A packet that has been taken from the tap interface and finds no buffers waits here, and the
//! interface's own queue behind it: that is where packets are dropped if the guest is away for long.

use std::io::{Read, Write};

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::QueueT;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::{Error, Result};
use crate::queue::{ActiveQueue, Chain, Served};
use crate::tap::{HEADER_BYTES, Tap};
use crate::worker::{Context, QueueHandler};

use super::{RX_QUEUE, TX_QUEUE, set_offloads};

/// Longest packet with its header: the longest IP packet, an Ethernet header and a VLAN tag.
const MAX_PACKET_BYTES: usize = HEADER_BYTES + 18 + 65_535;
/// Where `num_buffers` stands in the header (virtio 1.2, 5.1.6).
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;
/// Most packets taken from the tap interface before commands are looked at again.
const BATCH: usize = 256;
/// Token of the tap interface.
const TAP: u32 = 0;

/// The device's state on its worker.
#[derive(Debug)]
pub struct Handler {
    tap: Tap,
    /// The packet that waits for buffers: the first `waiting_bytes` of `incoming`.
    incoming: Vec<u8>,
    waiting_bytes: usize,
    outgoing: Vec<u8>,
    /// The tap interface wakes us; it does not while a packet waits for buffers.
    listening: bool,
}

/// What became of a packet for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    Done,
    NoBuffers,
}

impl Handler {
    pub(super) fn new(tap: Tap) -> Self {
        Handler {
            tap,
            incoming: vec![0; MAX_PACKET_BYTES],
            waiting_bytes: 0,
            outgoing: vec![0; MAX_PACKET_BYTES],
            listening: false,
        }
    }

    /// Drops the packet that waits, which was meant for the driver before a reset.
    pub(super) fn forget_packet(&mut self) {
        self.waiting_bytes = 0;
    }

    /// Moves packets from the interface to the guest, at most [`BATCH`], until one side has no more.
    fn receive(&mut self, context: &mut Context) -> Result<Served> {
        let mut served = Served::More;
        for _ in 0..BATCH {
            if self.waiting_bytes == 0 && !self.take_packet() {
                self.listen(context, true)?;
                served = Served::Done;
                break;
            }
            if self.deliver(context)? == Delivery::NoBuffers {
                // The driver's kick brings us back.
                self.listen(context, false)?;
                served = Served::Done;
                break;
            }
        }
        let Context {
            memory,
            queues,
            interrupt,
            ..
        } = context;
        match queues.get_mut(RX_QUEUE) {
            Some(queue) => queue.notify(memory, interrupt).map(|()| served),
            None => Ok(Served::Done),
        }
    }

    fn take_packet(&mut self) -> bool {
        match self.tap.receive(&mut self.incoming) {
            Ok(Some(len)) if len >= HEADER_BYTES => {
                self.waiting_bytes = len;
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::debug!(tap = self.tap.name(), %error, "no packet from the interface");
                false
            }
        }
    }

    fn listen(&mut self, context: &Context, listen: bool) -> Result<()> {
        if self.listening != listen {
            context.rewatch(&self.tap, TAP, listen, false)?;
            self.listening = listen;
        }
        Ok(())
    }

    /// Lays the packet that waits over as many buffers as it takes, or leaves all of them where they are.
    fn deliver(&mut self, context: &mut Context) -> Result<Delivery> {
        let mergeable = context.has_feature(VIRTIO_NET_F_MRG_RXBUF);
        let Context {
            memory,
            queues,
            interrupt,
            ..
        } = context;
        let Some(queue) = queues.get_mut(RX_QUEUE) else {
            return Ok(Delivery::NoBuffers);
        };
        queue.disable_kicks(memory)?;
        let most = if mergeable {
            usize::from(queue.queue.size())
        } else {
            1
        };
        let mut chains = Vec::with_capacity(1);
        let mut room = 0;
        while room < self.waiting_bytes && chains.len() < most {
            if let Some(chain) = queue.pop(memory)? {
                room += writable_bytes(&chain);
                chains.push(chain);
            } else if !queue.enable_kicks(memory)? {
                chains.iter().for_each(|_| queue.unpop());
                return Ok(Delivery::NoBuffers);
            }
        }
        let len = std::mem::take(&mut self.waiting_bytes);
        if room < len {
            tracing::debug!(
                len,
                room,
                "packet for the guest is longer than its buffers; dropped"
            );
            chains.iter().for_each(|_| queue.unpop());
            return Ok(Delivery::Done);
        }
        let count = u16::try_from(chains.len()).unwrap_or(u16::MAX);
        if let Some(field) = self.incoming.get_mut(NUM_BUFFERS) {
            field.copy_from_slice(&count.to_le_bytes());
        }
        let packet = self.incoming.get(..len).unwrap_or_default();
        let used = write_packet(memory, chains, packet)?;
        complete_together(memory, queue, &used)?;
        if used.len() > 1 {
            // The queue does not know of all, so it cannot tell whether the driver waits for one of them.
            interrupt.signal_queue(RX_QUEUE);
        }
        Ok(Delivery::Done)
    }

    /// Gives the host the guest's packets. Those that it does not take are lost, as on any network.
    fn transmit(&mut self, context: &mut Context) -> Result<Served> {
        let Context {
            memory,
            queues,
            interrupt,
            ..
        } = context;
        let Some(queue) = queues.get_mut(TX_QUEUE) else {
            return Ok(Served::Done);
        };
        let memory = &*memory;
        let served = queue.for_each_chain(memory, |queue, chain| {
            let head = chain.head_index();
            let mut reader = chain
                .reader(memory)
                .map_err(|_| broken(TX_QUEUE, "packet outside memory"))?;
            let len = reader.available_bytes();
            match self
                .outgoing
                .get_mut(..len)
                .filter(|packet| packet.len() >= HEADER_BYTES)
            {
                Some(packet) => {
                    let failed = |_| broken(TX_QUEUE, "packet cannot be read");
                    reader.read_exact(packet).map_err(failed)?;
                    if let Err(error) = self.tap.send(packet) {
                        tracing::debug!(tap = self.tap.name(), len, %error, "packet of the guest dropped");
                    }
                }
                None => tracing::debug!(len, "packet of the guest too short or too long; dropped"),
            }
            queue.complete(memory, head, 0)
        })?;
        queue.notify(memory, interrupt)?;
        Ok(served)
    }
}

impl QueueHandler for Handler {
    fn start(&mut self, context: &mut Context) -> Result<()> {
        set_offloads(&self.tap, context.features)?;
        context.watch(&self.tap, TAP)?;
        self.listening = true;
        Ok(())
    }

    fn serve(&mut self, context: &mut Context, queue: usize) -> Result<Served> {
        match queue {
            RX_QUEUE => self.receive(context),
            _ => self.transmit(context),
        }
    }

    fn ready(&mut self, context: &mut Context, _token: u32) -> Result<()> {
        // What is left after a batch keeps the interface ready.
        self.receive(context).map(|_| ())
    }
}

/// Bytes that the device may write into a chain; what lies outside memory fails when it is written.
fn writable_bytes(chain: &Chain<'_>) -> usize {
    let lens = chain
        .clone()
        .writable()
        .map(|descriptor| usize::try_from(descriptor.len()));
    lens.map(|len| len.unwrap_or(usize::MAX))
        .fold(0, usize::saturating_add)
}

/// Writes `packet` over the chains, in turn: the head of each and the bytes that went into it.
fn write_packet(memory: &GuestMemoryMmap, chains: Vec<Chain<'_>>, packet: &[u8]) -> Result<Vec<(u16, u32)>> {
    let mut rest = packet;
    let mut used = Vec::with_capacity(chains.len());
    for chain in chains {
        let head = chain.head_index();
        let mut writer = chain
            .writer(memory)
            .map_err(|_| broken(RX_QUEUE, "buffer outside memory"))?;
        let (part, after) = rest.split_at(rest.len().min(writer.available_bytes()));
        writer
            .write_all(part)
            .map_err(|_| broken(RX_QUEUE, "buffer cannot be written"))?;
        used.push((head, u32::try_from(part.len()).unwrap_or(u32::MAX)));
        rest = after;
    }
    Ok(used)
}

/// Gives buffers back with one step of the used index: a driver that polls must not see a part of a packet
/// (virtio 1.2, 5.1.6.4).
fn complete_together(memory: &GuestMemoryMmap, queue: &mut ActiveQueue, used: &[(u16, u32)]) -> Result<()> {
    let Some(((last_head, last_written), others)) = used.split_last() else {
        return Ok(());
    };
    let size = queue.queue.size();
    let outside = || broken(RX_QUEUE, "used ring outside memory");
    for (head, written) in others {
        // The used ring's elements of 8 bytes follow its flags and index (virtio 1.2, 2.7.8).
        let position = queue.queue.next_used();
        let offset = 4 + 8 * u64::from(position % size);
        let address = GuestAddress(queue.queue.used_ring())
            .checked_add(offset)
            .ok_or_else(outside)?;
        let element = u64::from(*head) | u64::from(*written) << 32;
        memory
            .write_obj(element.to_le(), address)
            .map_err(|_| outside())?;
        queue.queue.set_next_used(position.wrapping_add(1));
    }
    queue.complete(memory, *last_head, *last_written)
}

fn broken(queue: usize, problem: &'static str) -> Error {
    Error::Protocol { queue, problem }
}
