//! Queues: their saved state, and the rings of an activated device.
//!
//! The rings are `virtio-queue`'s. Added here is what a hostile or restored driver makes necessary: a ring
//! that contradicts itself is an error and not an empty ring, no loop over a ring is longer than the ring,
//! and interrupts are suppressed where the driver asks for it without `EVENT_IDX`, too.
#![warn(clippy::indexing_slicing, clippy::unwrap_used)]

mod buffers;
mod state;

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;

pub use buffers::{Buffers, Segments};
pub use state::QueueState;

/// A chain of descriptors taken from a queue.
pub type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap>;

/// A queue of an activated device.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The rings.
    pub queue: Queue,
    /// Written when the driver notifies the device of this queue.
    pub kick: EventFd,
    /// Number of the queue.
    pub index: usize,
}

/// How far a queue was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// There is nothing more to do until the next event.
    Done,
    /// There is more; the queue is to be served again after commands have been looked at.
    More,
}

impl ActiveQueue {
    /// Takes the next available chain, if there is one and the driver uses this queue.
    ///
    /// # Errors
    /// The available ring contradicts itself.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemoryMmap) -> Result<Option<Chain<'m>>> {
        if !self.queue.ready() {
            return Ok(None);
        }
        let index = self.index;
        let mut chains = self
            .queue
            .iter(memory)
            .map_err(|source| Error::Queue { queue: index, source })?;
        Ok(chains.next())
    }

    /// Puts back the chain that was popped last, to be popped again.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver, with `written` bytes in its writable part.
    ///
    /// # Errors
    /// The chain's head is not a descriptor of the table.
    pub fn complete(&mut self, memory: &GuestMemoryMmap, head: u16, written: u32) -> Result<()> {
        self.queue.add_used(memory, head, written).map_err(self.failed())
    }

    /// Interrupts the driver if chains were completed since and it wants to know.
    ///
    /// # Errors
    /// The rings cannot be read.
    pub fn notify(&mut self, memory: &GuestMemoryMmap, interrupt: &Interrupt) -> Result<()> {
        if self.queue.ready() && self.wants_interrupt(memory)? {
            interrupt.signal_queue(self.index);
        }
        Ok(())
    }

    /// Asks the driver not to notify the device.
    ///
    /// # Errors
    /// The rings cannot be written.
    pub fn disable_kicks(&mut self, memory: &GuestMemoryMmap) -> Result<()> {
        if !self.queue.ready() {
            return Ok(());
        }
        self.queue.disable_notification(memory).map_err(self.failed())
    }

    /// Asks the driver to notify the device again; tells whether chains have become available meanwhile.
    ///
    /// # Errors
    /// The rings cannot be read or written.
    pub fn enable_kicks(&mut self, memory: &GuestMemoryMmap) -> Result<bool> {
        if !self.queue.ready() {
            return Ok(false);
        }
        self.queue.enable_notification(memory).map_err(self.failed())
    }

    /// Hands every available chain to `each`, at most a ring's worth of them, and asks for the next kick.
    ///
    /// # Errors
    /// The rings contradict themselves, or `each` fails.
    pub fn for_each_chain<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        mut each: impl FnMut(&mut Self, Chain<'m>) -> Result<()>,
    ) -> Result<Served> {
        self.disable_kicks(memory)?;
        for _ in 0..=self.queue.size() {
            if let Some(chain) = self.pop(memory)? {
                each(self, chain)?;
            } else if !self.enable_kicks(memory)? {
                return Ok(Served::Done);
            }
        }
        Ok(Served::More)
    }

    fn wants_interrupt(&mut self, memory: &GuestMemoryMmap) -> Result<bool> {
        let wanted = self.queue.needs_notification(memory).map_err(self.failed())?;
        if self.queue.event_idx_enabled() || !wanted {
            return Ok(wanted);
        }
        // Flags are the first field of the available ring (virtio 1.2, 2.7.6). The fence in
        // `needs_notification` orders this load after the used ring's index.
        let flags: u16 = memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|source| Error::Queue {
                queue: self.index,
                source: virtio_queue::Error::GuestMemory(source),
            })?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    fn failed(&self) -> impl FnOnce(virtio_queue::Error) -> Error + use<> {
        let queue = self.index;
        move |source| Error::Queue { queue, source }
    }
}

#[cfg(test)]
mod tests;
