//! The notice to a restored guest that its connections are gone.
//!
//! A connection has an end outside the guest, so none outlives a restore: the restored copy, and never the
//! machine that the snapshot was taken of, is sent `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.2, 5.10.6.7)
//! once, as soon as its driver has a buffer for it. Until the driver has given that buffer back, which it does
//! when it has ended its connections, it gets no packets: a connection made in between would be ended too.

use std::io::Write;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::queue::ActiveQueue;

/// `struct virtio_vsock_event` with the id of a transport reset, which is zero.
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// How far the notice has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Notice {
    /// There is nothing to tell, or the driver knows.
    #[default]
    Done,
    /// The driver is to be told.
    Due,
    /// The driver has been told; it had made this many buffers available by then, modulo 2^16.
    Placed(u16),
}

impl Notice {
    /// Whether the driver may get packets.
    pub fn is_done(self) -> bool {
        self == Notice::Done
    }

    /// Goes as far as the event queue allows.
    ///
    /// # Errors
    /// The rings contradict themselves, or a buffer of the driver is too short for an event.
    pub fn advance(
        &mut self,
        memory: &GuestMemoryMmap,
        queue: &mut ActiveQueue,
        interrupt: &Interrupt,
    ) -> Result<()> {
        if *self == Notice::Due {
            if !queue.queue.ready() {
                // A driver without an event queue is not to be told anything.
                *self = Notice::Done;
                return Ok(());
            }
            if let Some(available) = place(memory, queue)? {
                *self = Notice::Placed(available);
                // Whatever the driver said about interrupts, this one matters.
                interrupt.signal_queue(queue.index);
            }
        }
        if let Notice::Placed(available) = *self {
            ask_for_kick(memory, queue, available)?;
            if available_index(memory, queue)? != available {
                *self = Notice::Done;
            }
        }
        Ok(())
    }
}

/// Asks to be notified of a buffer beyond the first `available`. The queue itself would ask for one beyond
/// those that it has taken, of which the driver has made more available long ago.
fn ask_for_kick(memory: &GuestMemoryMmap, queue: &mut ActiveQueue, available: u16) -> Result<()> {
    queue.enable_kicks(memory)?;
    if queue.queue.event_idx_enabled() {
        // `avail_event` follows the used ring's elements (virtio 1.2, 2.7.8).
        let offset = 4 + 8 * u64::from(queue.queue.size());
        let address = GuestAddress(queue.queue.used_ring().saturating_add(offset));
        let stored = memory.store(available.to_le(), address, Ordering::Relaxed);
        stored.map_err(|_| Error::Protocol {
            queue: queue.index,
            problem: "used ring outside memory",
        })?;
        // The driver reads it after it has made a buffer available; we look for one after this.
        fence(Ordering::SeqCst);
    }
    Ok(())
}

/// Puts the event into a buffer; returns the available index of that moment, or nothing without a buffer.
fn place(memory: &GuestMemoryMmap, queue: &mut ActiveQueue) -> Result<Option<u16>> {
    let Some(chain) = queue.pop(memory)? else {
        queue.enable_kicks(memory)?;
        return Ok(None);
    };
    let index = queue.index;
    let head = chain.head_index();
    let written = chain
        .writer(memory)
        .ok()
        .map(|mut writer| writer.write_all(&TRANSPORT_RESET));
    let Some(Ok(())) = written else {
        return Err(Error::Protocol {
            queue: index,
            problem: "buffer too short for an event",
        });
    };
    let available = available_index(memory, queue)?;
    queue.complete(memory, head, 4)?;
    Ok(Some(available))
}

fn available_index(memory: &GuestMemoryMmap, queue: &ActiveQueue) -> Result<u16> {
    let index = queue.queue.avail_idx(memory, Ordering::Acquire);
    index.map(|index| index.0).map_err(|source| Error::Queue {
        queue: queue.index,
        source,
    })
}
