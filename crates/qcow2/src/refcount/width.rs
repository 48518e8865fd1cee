//! Refcounts packed into the bytes of a refcount block.
//!
//! A refcount is 1, 2, 4, 8, 16, 32 or 64 bits wide (qcow2 specification, refcounts). Counts of 8 bits and more are
//! big-endian; narrower ones fill each byte from its least significant bit. Everything else in this crate sees counts
//! as `u64`.

use crate::ClusterSize;

/// The width of the refcounts of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Width {
    /// log2 of the width in bits, 0..=6 (`refcount_order` of the header).
    order: u32,
}

impl Width {
    /// The width that a header's `refcount_order` states, or `None` above 6.
    pub(crate) fn from_order(order: u32) -> Option<Self> {
        (order <= 6).then_some(Self { order })
    }

    /// log2 of the width in bits.
    pub(crate) fn order(self) -> u32 {
        self.order
    }

    /// The largest count that fits.
    pub(crate) fn max(self) -> u64 {
        match self.order {
            6 => u64::MAX,
            order => (1 << (1 << order)) - 1,
        }
    }

    /// log2 of how many counts one refcount block holds.
    pub(crate) fn block_bits(self, cluster: ClusterSize) -> u32 {
        cluster.bits() + 3 - self.order
    }

    /// The count at `index` of a block, 0 beyond its end.
    pub(crate) fn get(self, block: &[u8], index: usize) -> u64 {
        match self.order {
            3 => block.get(index).map_or(0, |&byte| u64::from(byte)),
            4 => word::<2>(block, index).map_or(0, |bytes| u64::from(u16::from_be_bytes(bytes))),
            5 => word::<4>(block, index).map_or(0, |bytes| u64::from(u32::from_be_bytes(bytes))),
            6 => word::<8>(block, index).map_or(0, u64::from_be_bytes),
            _ => {
                let (byte, shift, mask) = self.bits(index);
                block
                    .get(byte)
                    .map_or(0, |&bits| u64::from((bits >> shift) & mask))
            }
        }
    }

    /// Stores `count`, which must not exceed [`max`](Self::max), at `index` of a block; nothing beyond its end.
    pub(crate) fn set(self, block: &mut [u8], index: usize, count: u64) {
        debug_assert!(
            count <= self.max(),
            "a count is checked against its width before it is stored"
        );
        let [.., b4, b5, b6, b7] = count.to_be_bytes();
        match self.order {
            3 => put(block, index, [b7]),
            4 => put(block, index, [b6, b7]),
            5 => put(block, index, [b4, b5, b6, b7]),
            6 => put(block, index, count.to_be_bytes()),
            _ => {
                let (byte, shift, mask) = self.bits(index);
                if let Some(bits) = block.get_mut(byte) {
                    *bits = (*bits & !(mask << shift)) | ((b7 & mask) << shift);
                }
            }
        }
    }

    /// The first byte of the count at `index` of a block.
    pub(crate) fn byte_of(self, index: usize) -> usize {
        (index << self.order) >> 3
    }

    /// Where the count at `index` lies when it is narrower than a byte: the byte, the shift and the mask.
    fn bits(self, index: usize) -> (usize, u32, u8) {
        let per_byte_order = 3 - self.order;
        let within = index & ((1 << per_byte_order) - 1);
        let mask = match self.order {
            0 => 1,
            1 => 3,
            _ => 15,
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "an index within a byte is below 8"
        )]
        let shift = (within as u32) << self.order;
        (index >> per_byte_order, shift, mask)
    }
}

/// The `index`th group of `N` bytes.
fn word<const N: usize>(block: &[u8], index: usize) -> Option<[u8; N]> {
    block.get(index * N..)?.first_chunk().copied()
}

/// Replaces the `index`th group of `N` bytes.
fn put<const N: usize>(block: &mut [u8], index: usize, bytes: [u8; N]) {
    if let Some(field) = block.get_mut(index * N..).and_then(|rest| rest.first_chunk_mut()) {
        *field = bytes;
    }
}
