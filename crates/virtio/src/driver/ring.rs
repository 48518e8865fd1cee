//! The driver's side of one queue, as in Linux's `virtio_ring.c` for split rings.

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Piece;

/// A ring in guest memory and what the driver knows of it.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    event_idx: bool,
    /// Descriptors that are in no chain.
    free: Vec<u16>,
    /// Descriptors of each chain by its head.
    chains: Vec<Vec<u16>>,
    /// Index that was made available last.
    next_avail: u16,
    /// Index as of the last kick.
    kicked: u16,
    /// Index up to which used chains were taken.
    last_used: u16,
}

impl Ring {
    /// Returns the memory that a ring takes.
    pub(crate) fn len_bytes(size: u16) -> u64 {
        u64::from(size) * 16 + 4096 + u64::from(size) * 8 + 4096
    }

    /// Makes an empty ring at `table`.
    pub(crate) fn new(size: u16, table: u64, event_idx: bool, memory: &GuestMemoryMmap) -> Self {
        let available = table + u64::from(size) * 16;
        let used = (available + 6 + u64::from(size) * 2).next_multiple_of(4);
        let len = usize::try_from(Self::len_bytes(size)).unwrap();
        memory.write_slice(&vec![0; len], GuestAddress(table)).unwrap();
        Self {
            size,
            descriptors: table,
            available,
            used,
            event_idx,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            next_avail: 0,
            kicked: 0,
            last_used: 0,
        }
    }

    /// Returns how many descriptors are free.
    pub(crate) fn room(&self) -> usize {
        self.free.len()
    }

    /// Writes a descriptor.
    pub(crate) fn describe(
        table: u64,
        index: u16,
        piece: Piece,
        flags: u32,
        next: u16,
        memory: &GuestMemoryMmap,
    ) {
        let (address, len) = piece;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&u16::try_from(flags).unwrap().to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        memory
            .write_slice(&bytes, GuestAddress(table + 16 * u64::from(index)))
            .unwrap();
    }

    pub(super) fn add(&mut self, readable: &[Piece], writable: &[Piece], memory: &GuestMemoryMmap) -> u16 {
        let count = readable.len() + writable.len();
        let chain: Vec<u16> = (0..count)
            .map(|_| self.free.pop().expect("room in the ring"))
            .collect();
        describe_all(self.descriptors, &chain, readable, writable, memory);
        let head = chain[0];
        self.chains[usize::from(head)] = chain;
        self.offer(head, memory);
        head
    }

    pub(super) fn add_indirect(
        &mut self,
        table: u64,
        readable: &[Piece],
        writable: &[Piece],
        memory: &GuestMemoryMmap,
    ) -> u16 {
        let count = u16::try_from(readable.len() + writable.len()).unwrap();
        let indices: Vec<u16> = (0..count).collect();
        describe_all(table, &indices, readable, writable, memory);
        let head = self.free.pop().expect("room in the ring");
        let piece = (table, 16 * u32::from(count));
        Self::describe(self.descriptors, head, piece, VRING_DESC_F_INDIRECT, 0, memory);
        self.chains[usize::from(head)] = vec![head];
        self.offer(head, memory);
        head
    }

    /// Makes whatever stands at `head` available.
    pub(crate) fn offer(&mut self, head: u16, memory: &GuestMemoryMmap) {
        let entry = self.available + 4 + 2 * u64::from(self.next_avail % self.size);
        memory.write_obj(head.to_le(), GuestAddress(entry)).unwrap();
        self.next_avail = self.next_avail.wrapping_add(1);
        memory
            .store(
                self.next_avail.to_le(),
                GuestAddress(self.available + 2),
                Ordering::Release,
            )
            .unwrap();
    }

    /// Overwrites the index of the available ring.
    pub(crate) fn set_avail_index(&self, index: u16, memory: &GuestMemoryMmap) {
        memory
            .store(index.to_le(), GuestAddress(self.available + 2), Ordering::Release)
            .unwrap();
    }

    /// As `virtqueue_kick_prepare`: tells whether the device asked to be notified of what was added since.
    pub(super) fn device_wants_kick(&mut self, memory: &GuestMemoryMmap) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (self.kicked, self.next_avail);
        self.kicked = new;
        if self.event_idx {
            let address = self.used + 4 + 8 * u64::from(self.size);
            let event = u16::from_le(memory.load(GuestAddress(address), Ordering::Acquire).unwrap());
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags = u16::from_le(memory.load(GuestAddress(self.used), Ordering::Acquire).unwrap());
            u32::from(flags) & VRING_USED_F_NO_NOTIFY == 0
        }
    }

    /// As `virtqueue_get_buf` and, when there is nothing, `virtqueue_enable_cb`.
    pub(super) fn take_used(&mut self, memory: &GuestMemoryMmap) -> Option<(u16, u32)> {
        let index = || {
            u16::from_le(
                memory
                    .load(GuestAddress(self.used + 2), Ordering::Acquire)
                    .unwrap(),
            )
        };
        if index() == self.last_used {
            // Asks for an interrupt with the next used chain, then looks again.
            let address = self.available + 4 + 2 * u64::from(self.size);
            memory
                .store(self.last_used.to_le(), GuestAddress(address), Ordering::Release)
                .unwrap();
            fence(Ordering::SeqCst);
            if index() == self.last_used {
                return None;
            }
        }
        let entry = self.used + 4 + 8 * u64::from(self.last_used % self.size);
        let head: u32 = memory.read_obj(GuestAddress(entry)).unwrap();
        let written: u32 = memory.read_obj(GuestAddress(entry + 4)).unwrap();
        self.last_used = self.last_used.wrapping_add(1);
        let head = u16::try_from(u32::from_le(head)).expect("a head of the ring");
        let chain = std::mem::take(&mut self.chains[usize::from(head)]);
        assert!(
            !chain.is_empty(),
            "chain {head} given back, though it was not with the device"
        );
        self.free.extend(chain);
        Some((head, u32::from_le(written)))
    }
}

fn describe_all(
    table: u64,
    indices: &[u16],
    readable: &[Piece],
    writable: &[Piece],
    memory: &GuestMemoryMmap,
) {
    let pieces = readable.iter().map(|piece| (piece, 0));
    let pieces = pieces.chain(writable.iter().map(|piece| (piece, VRING_DESC_F_WRITE)));
    for (position, (piece, flags)) in pieces.enumerate() {
        let (flags, next) = match indices.get(position + 1) {
            Some(&next) => (flags | VRING_DESC_F_NEXT, next),
            None => (flags, 0),
        };
        Ring::describe(table, indices[position], *piece, flags, next, memory);
    }
}
