//! Constants of the format, and the entries of its mapping tables.
//!
//! Everything is big-endian. Guest offsets are split into an L1 index, an L2 index and an offset inside a
//! cluster; [`ClusterSize`] does that arithmetic. Entries are kept as they are on disk and asked by accessors,
//! so that reserved bits are seen by those who check them.

use crate::limits;

/// First four bytes of every image: `QFI\xfb`.
pub const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a version 2 header.
pub const HEADER_BYTES_V2: usize = 72;
/// Smallest header length that a version 3 header states.
pub const HEADER_BYTES_V3: usize = 104;
/// Header length that is written for version 3, with the compression type.
pub const HEADER_BYTES_WRITTEN: usize = 112;

/// Incompatible feature: refcounts may be too low or missing.
pub const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
/// Incompatible feature: metadata is known to be corrupt.
pub const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
/// Incompatible feature: guest data is in another file.
pub const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
/// Incompatible feature: clusters are not compressed by deflate.
pub const INCOMPATIBLE_COMPRESSION_TYPE: u64 = 1 << 3;
/// Incompatible feature: L2 entries have 16 bytes.
pub const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// Compatible feature: refcounts may be postponed while the dirty bit is set.
pub const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1 << 0;
/// Autoclear feature: the bitmaps agree with the data.
pub const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
/// Autoclear feature: the external data file can be read as a raw image.
pub const AUTOCLEAR_RAW_EXTERNAL: u64 = 1 << 1;

/// Header extension: end of the extensions.
pub const EXTENSION_END: u32 = 0;
/// Header extension: format of the backing file.
pub const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
/// Header extension: names of the feature bits.
pub const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
/// Header extension: persistent bitmaps.
pub const EXTENSION_BITMAPS: u32 = 0x2385_2875;
/// Header extension: full disk encryption.
pub const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;
/// Header extension: name of the external data file.
pub const EXTENSION_EXTERNAL_DATA: u32 = 0x4441_5441;
/// Header extension of this project: whose backing file the image's backing file is (`vmsn`).
pub const EXTENSION_FROZEN_BACKING: u32 = 0x766d_736e;

/// Bits 9 to 55 of L1 and L2 entries: the host offset.
pub const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63 of L1 and L2 entries: the cluster's refcount is exactly one.
pub const COPIED: u64 = 1 << 63;
/// Bit 62 of L2 entries: the cluster is compressed.
pub const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of L2 entries of version 3: the cluster reads as zeros.
pub const ZERO: u64 = 1;
/// Bits of a refcount table entry that hold the offset of a refcount block.
pub const REFCOUNT_BLOCK_MASK: u64 = 0xffff_ffff_ffff_fe00;
/// Unit in which the length of compressed data is counted.
pub const COMPRESSED_SECTOR_BYTES: u64 = 512;

/// One host cluster of the file, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostCluster(pub u64);

impl HostCluster {
    /// Returns the byte offset at which the cluster begins, saturating for numbers that no file has.
    #[must_use]
    pub fn offset(self, size: ClusterSize) -> u64 {
        self.0.saturating_mul(size.bytes())
    }
}

/// Size of a cluster, a power of two from 512 bytes to 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterSize {
    bits: u32,
}

impl ClusterSize {
    /// Returns the size of `1 << bits` bytes, if the limits allow it.
    #[must_use]
    pub fn new(bits: u32) -> Option<Self> {
        (limits::MIN_CLUSTER_BITS..=limits::MAX_CLUSTER_BITS)
            .contains(&bits)
            .then_some(Self { bits })
    }

    /// Returns the binary logarithm of the size.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// Returns the size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        1 << self.bits
    }

    /// Returns the size in bytes as the length of a buffer.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a length of buffers, none of which is empty"
    )]
    pub fn len(self) -> usize {
        1 << self.bits
    }

    /// Returns the entries of one L2 table.
    #[must_use]
    pub fn l2_entries(self) -> u64 {
        self.bytes() / 8
    }

    /// Returns the guest bytes that one L2 table maps.
    #[must_use]
    pub fn l2_coverage_bytes(self) -> u64 {
        self.bytes() * self.l2_entries()
    }

    /// Returns the index into the L1 table for a guest offset.
    #[must_use]
    pub fn l1_index(self, guest_offset: u64) -> u64 {
        guest_offset / self.l2_coverage_bytes()
    }

    /// Returns the index into the L2 table for a guest offset.
    #[must_use]
    pub fn l2_index(self, guest_offset: u64) -> u64 {
        (guest_offset >> self.bits) % self.l2_entries()
    }

    /// Returns the L1 entries that a disk of this size needs.
    #[must_use]
    pub fn l1_entries_for(self, virtual_size_bytes: u64) -> u64 {
        virtual_size_bytes.div_ceil(self.l2_coverage_bytes())
    }

    /// Returns the refcounts of one refcount block.
    #[must_use]
    pub fn refcount_block_entries(self, refcount_bits: u32) -> u64 {
        self.bytes() * 8 / u64::from(refcount_bits.max(1))
    }

    /// Returns the position of `offset` in its cluster.
    #[must_use]
    pub fn offset_in_cluster(self, offset: u64) -> u64 {
        offset & (self.bytes() - 1)
    }

    /// Returns whether `offset` is the beginning of a cluster.
    #[must_use]
    pub fn is_aligned(self, offset: u64) -> bool {
        self.offset_in_cluster(offset) == 0
    }

    /// Returns the beginning of the cluster that holds `offset`.
    #[must_use]
    pub fn round_down(self, offset: u64) -> u64 {
        offset & !(self.bytes() - 1)
    }

    /// Returns the first beginning of a cluster not before `offset`; saturates at the last one.
    #[must_use]
    pub fn round_up(self, offset: u64) -> u64 {
        self.round_down(offset.saturating_add(self.bytes() - 1))
    }

    /// Returns the host cluster that holds the byte at `offset`.
    #[must_use]
    pub fn cluster_of(self, offset: u64) -> HostCluster {
        HostCluster(offset >> self.bits)
    }

    /// Returns the clusters that `len_bytes` take.
    #[must_use]
    pub fn clusters_for(self, len_bytes: u64) -> u64 {
        len_bytes.div_ceil(self.bytes())
    }
}

/// An entry of an L1 table: where an L2 table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// Returns the entry for the L2 table at `offset`.
    #[must_use]
    pub fn new(offset: u64, copied: bool) -> Self {
        Self((offset & OFFSET_MASK) | if copied { COPIED } else { 0 })
    }

    /// Returns the offset of the L2 table; 0 says that there is none.
    #[must_use]
    pub fn host_offset(self) -> u64 {
        self.0 & OFFSET_MASK
    }

    /// Returns whether there is no L2 table.
    #[must_use]
    pub fn is_unallocated(self) -> bool {
        self.host_offset() == 0
    }

    /// Returns whether the L2 table's refcount is said to be exactly one.
    #[must_use]
    pub fn is_copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// Returns the same entry with the copied flag as given.
    #[must_use]
    pub fn with_copied(self, copied: bool) -> Self {
        Self((self.0 & !COPIED) | if copied { COPIED } else { 0 })
    }

    /// Returns the bits that the specification reserves.
    #[must_use]
    pub fn reserved_bits(self) -> u64 {
        self.0 & !(OFFSET_MASK | COPIED)
    }
}

/// An entry of an L2 table: where a guest cluster is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Entry(pub u64);

impl L2Entry {
    /// Returns the entry for plain data at `offset`.
    #[must_use]
    pub fn data(offset: u64, copied: bool) -> Self {
        Self((offset & OFFSET_MASK) | if copied { COPIED } else { 0 })
    }

    /// Returns the entry of a cluster that reads as zeros and has no host cluster (version 3).
    #[must_use]
    pub fn zero() -> Self {
        Self(ZERO)
    }

    /// Returns whether the cluster is compressed.
    #[must_use]
    pub fn is_compressed(self) -> bool {
        self.0 & COMPRESSED != 0
    }

    /// Returns the offset of the host cluster; 0 says that there is none. Meaningless for a compressed cluster.
    #[must_use]
    pub fn host_offset(self) -> u64 {
        self.0 & OFFSET_MASK
    }

    /// Returns whether the refcount of the cluster is said to be exactly one.
    #[must_use]
    pub fn is_copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// Returns whether the cluster reads as zeros whatever it maps (version 3).
    #[must_use]
    pub fn reads_as_zero(self) -> bool {
        !self.is_compressed() && self.0 & ZERO != 0
    }

    /// Returns whether the entry says nothing: the backing file shows through, or zeros.
    #[must_use]
    pub fn is_unallocated(self) -> bool {
        !self.is_compressed() && !self.reads_as_zero() && self.host_offset() == 0
    }

    /// Returns the same entry with the copied flag as given.
    #[must_use]
    pub fn with_copied(self, copied: bool) -> Self {
        Self((self.0 & !COPIED) | if copied { COPIED } else { 0 })
    }

    /// Returns the bits that the specification reserves in an entry that is not compressed.
    #[must_use]
    pub fn reserved_bits(self) -> u64 {
        if self.is_compressed() {
            0
        } else {
            self.0 & !(OFFSET_MASK | COPIED | ZERO)
        }
    }

    /// Returns where the compressed data is, or nothing if the cluster is not compressed.
    ///
    /// The descriptor's split between offset and length depends on the cluster size (qcow2 specification,
    /// compressed clusters descriptor).
    #[must_use]
    pub fn compressed(self, cluster_bits: u32) -> Option<CompressedCluster> {
        if !self.is_compressed() {
            return None;
        }
        let shift = 70u32.checked_sub(cluster_bits)?;
        let offset_mask = 1u64.checked_shl(shift)?.checked_sub(1)?;
        let descriptor = self.0 & !(COPIED | COMPRESSED);
        Some(CompressedCluster {
            offset: descriptor & offset_mask,
            sectors: (descriptor >> shift) + 1,
        })
    }
}

/// Where the bytes of a compressed cluster are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedCluster {
    /// Byte offset in the file; not aligned to anything.
    pub offset: u64,
    /// 512-byte sectors that the data touches, the one with its first byte included; the last may lie beyond
    /// the end of the file in part.
    pub sectors: u64,
}

impl CompressedCluster {
    /// Returns the most bytes that the data may have: to the end of its last sector.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.sectors * COMPRESSED_SECTOR_BYTES - self.offset % COMPRESSED_SECTOR_BYTES
    }

    /// Returns the host clusters that the data touches, first and last; each holds one reference of it.
    #[must_use]
    pub fn clusters(&self, size: ClusterSize) -> std::ops::RangeInclusive<u64> {
        let last_byte = self.offset.saturating_add(self.len_bytes() - 1);
        size.cluster_of(self.offset).0..=size.cluster_of(last_byte).0
    }
}
