//! The guest memory that a chain of descriptors describes, checked once and then taken apart by length.
//!
//! Devices must not care how a driver cuts a request into descriptors (virtio 1.2, 2.7.4). So a chain is read
//! into two lists of segments, and headers, data and status are split off from their ends.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, VolatileSlice};

use crate::error::{Error, Result};
use crate::queue::Chain;

/// Most descriptors of one chain that are accepted; drivers use at most the size of the queue.
const MAX_DESCRIPTORS: usize = 1024;

/// A chain's memory: what the device reads, then what it writes.
#[derive(Clone, Debug)]
pub struct Buffers {
    /// The chain's head, by which it is given back.
    pub head: u16,
    /// Memory that the device reads.
    pub readable: Segments,
    /// Memory that the device writes.
    pub writable: Segments,
}

/// Pieces of guest memory in the order of their bytes; together less than 4 GiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    pieces: Vec<Segment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    address: GuestAddress,
    len: u32,
}

impl Buffers {
    /// Reads the descriptors of `chain`, which was taken from queue number `queue`. Whether what they describe
    /// is memory is not looked at.
    ///
    /// # Errors
    /// The chain is empty, leaves its table, loops, is too long, or has memory to be read after memory to be
    /// written.
    pub fn of(mut chain: Chain<'_>, queue: usize) -> Result<Self> {
        let fail = |problem| Err(Error::Protocol { queue, problem });
        let mut buffers = Self {
            head: chain.head_index(),
            readable: Segments::default(),
            writable: Segments::default(),
        };
        let mut ended = false;
        for _ in 0..MAX_DESCRIPTORS {
            // The iterator ends alike at the chain's end and at a descriptor that it cannot follow; a chain
            // that is whole ends with a descriptor that has no next.
            let Some(descriptor) = chain.next() else {
                break;
            };
            let segment = Segment {
                address: descriptor.addr(),
                len: descriptor.len(),
            };
            if descriptor.is_write_only() {
                buffers.writable.pieces.push(segment);
            } else if buffers.writable.pieces.is_empty() {
                buffers.readable.pieces.push(segment);
            } else {
                return fail("a chain has memory to be read after memory to be written");
            }
            ended = !descriptor.has_next();
        }
        if ended && chain.next().is_none() {
            Ok(buffers)
        } else {
            fail("a chain of descriptors has no end")
        }
    }
}

impl Segments {
    /// Returns the number of bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.len)).sum()
    }

    /// Splits off the first `len` bytes; nothing happens if there are fewer.
    #[must_use]
    pub fn split_front(&mut self, len: u64) -> Option<Self> {
        if len > self.len_bytes() {
            return None;
        }
        let back = self.split_at(len);
        Some(std::mem::replace(self, back))
    }

    /// Splits off the last `len` bytes; nothing happens if there are fewer.
    #[must_use]
    pub fn split_back(&mut self, len: u64) -> Option<Self> {
        let front = self.len_bytes().checked_sub(len)?;
        Some(self.split_at(front))
    }

    /// Keeps `front` bytes, of which there are enough, and returns the others.
    fn split_at(&mut self, mut front: u64) -> Self {
        let mut back = Self::default();
        let mut kept = Vec::with_capacity(self.pieces.len());
        for piece in self.pieces.drain(..) {
            let here = u32::try_from(front).map_or(piece.len, |front| front.min(piece.len));
            front -= u64::from(here);
            if here > 0 {
                kept.push(Segment { len: here, ..piece });
            }
            if here < piece.len {
                // An address beyond the end of all memory is refused where it is used.
                let address = GuestAddress(piece.address.0.saturating_add(u64::from(here)));
                back.pieces.push(Segment {
                    address,
                    len: piece.len - here,
                });
            }
        }
        self.pieces = kept;
        back
    }

    /// Copies the first bytes into all of `data`.
    ///
    /// # Errors
    /// There are fewer bytes, or some are not guest memory.
    pub fn read(
        &self,
        memory: &GuestMemoryMmap,
        data: &mut [u8],
    ) -> std::result::Result<(), GuestMemoryError> {
        let mut rest = data;
        for piece in &self.pieces {
            let (here, others) = rest.split_at_mut(rest.len().min(piece.len as usize));
            memory.read_slice(here, piece.address)?;
            rest = others;
        }
        whole(rest.len())
    }

    /// Copies all of `data` to the first bytes.
    ///
    /// # Errors
    /// There are fewer bytes, or some are not guest memory; an unknown part has been written.
    pub fn write(&self, memory: &GuestMemoryMmap, data: &[u8]) -> std::result::Result<(), GuestMemoryError> {
        let mut rest = data;
        for piece in &self.pieces {
            let (here, others) = rest.split_at(rest.len().min(piece.len as usize));
            memory.write_slice(here, piece.address)?;
            rest = others;
        }
        whole(rest.len())
    }

    /// Returns the pieces of the mapping that the bytes are.
    ///
    /// # Errors
    /// Some of them are not guest memory.
    pub fn slices<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
    ) -> std::result::Result<Vec<VolatileSlice<'m>>, GuestMemoryError> {
        let mut slices = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            for slice in memory.get_slices(piece.address, piece.len as usize) {
                slices.push(slice?);
            }
        }
        Ok(slices)
    }
}

fn whole(missing: usize) -> std::result::Result<(), GuestMemoryError> {
    match missing {
        0 => Ok(()),
        expected => Err(GuestMemoryError::PartialBuffer {
            expected,
            completed: 0,
        }),
    }
}

#[cfg(test)]
mod tests;
