//! The driver's half of a virtqueue, at a fixed place in guest memory, for one descriptor a chain.

use std::sync::atomic::Ordering;

use virtio::{ActiveQueue, QueueState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::Result;

/// Entries of every queue.
pub const SIZE: u16 = 128;
/// Bytes between the rings of two queues.
const SPACING: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Flag of a descriptor: the device writes into the buffer (virtio 1.2, 2.7.5).
const WRITE: u16 = 2;

/// The rings of queue number `queue` as the device is given them.
pub fn active_queue(queue: usize, kick: EventFd) -> Result<ActiveQueue> {
    let base = base(queue);
    let state = QueueState {
        size: SIZE,
        ready: true,
        event_idx: false,
        descriptor_table: base,
        available_ring: base + AVAILABLE,
        used_ring: base + USED,
        next_avail: 0,
        next_used: 0,
    };
    Ok(ActiveQueue {
        queue: state.to_queue(SIZE)?,
        kick,
        index: queue,
    })
}

fn base(queue: usize) -> u64 {
    SPACING * queue as u64
}

/// First address behind the rings of `queues` queues.
pub fn end(queues: usize) -> u64 {
    base(queues)
}

/// A ring as the driver sees it.
#[derive(Debug)]
pub struct Ring {
    memory: GuestMemoryMmap,
    base: u64,
    kick: EventFd,
    available: u16,
    taken: u16,
}

impl Ring {
    /// The empty ring of queue number `queue`.
    pub fn new(memory: &GuestMemoryMmap, queue: usize, kick: EventFd) -> Self {
        Ring {
            memory: memory.clone(),
            base: base(queue),
            kick,
            available: 0,
            taken: 0,
        }
    }

    /// Index of the used ring, as the device has written it.
    pub fn used_index(&self) -> Result<u16> {
        let index: u16 = self
            .memory
            .load(GuestAddress(self.base + USED + 2), Ordering::Acquire)?;
        Ok(u16::from_le(index))
    }

    /// Whether every buffer is the device's.
    pub fn is_full(&self) -> bool {
        self.available.wrapping_sub(self.taken) >= SIZE
    }

    /// Makes a buffer available in descriptor `slot`.
    pub fn offer(&mut self, slot: u16, address: u64, len: u32, writable: bool) -> Result<()> {
        let descriptor = GuestAddress(self.base + 16 * u64::from(slot));
        let flags = if writable { WRITE } else { 0 };
        self.memory.write_obj(address.to_le(), descriptor)?;
        self.memory
            .write_obj(len.to_le(), GuestAddress(descriptor.0 + 8))?;
        self.memory
            .write_obj(u32::from(flags).to_le(), GuestAddress(descriptor.0 + 12))?;
        let entry = self.base + AVAILABLE + 4 + 2 * u64::from(self.available % SIZE);
        self.memory.write_obj(slot.to_le(), GuestAddress(entry))?;
        self.available = self.available.wrapping_add(1);
        let index = GuestAddress(self.base + AVAILABLE + 2);
        self.memory
            .store(self.available.to_le(), index, Ordering::Release)?;
        Ok(())
    }

    /// Takes the next used buffer: its slot and the bytes written.
    pub fn take(&mut self) -> Result<Option<(u16, u32)>> {
        if self.used_index()? == self.taken {
            return Ok(None);
        }
        let element = self.base + USED + 4 + 8 * u64::from(self.taken % SIZE);
        let slot: u32 = self.memory.read_obj(GuestAddress(element))?;
        let len: u32 = self.memory.read_obj(GuestAddress(element + 4))?;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some((u16::try_from(u32::from_le(slot))?, u32::from_le(len))))
    }

    /// Tells the device to look.
    pub fn kick(&self) -> Result<()> {
        Ok(self.kick.write(1)?)
    }
}
