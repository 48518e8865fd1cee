//! The guest's memory map and how it is cut into chunks.
//!
//! The one idea: chunks are numbered over all regions in address order, every region starts a new
//! chunk, and only the last chunk of a region may be shorter than the chunk size. With that rule a
//! chunk number, a guest physical address and a place in the index are the same thing, and none of
//! them has to be stored. The encoding of the map in the file is in `section`.

use std::fmt;
use std::ops::Range;

use crate::error::{Error, GuestRanges, LimitExceeded, Result, Usage};
use crate::limits;

/// Bytes in a guest page; every region begins and ends on a multiple of it.
pub const PAGE_SIZE: u64 = 4096;

/// A contiguous range of guest physical addresses backed by memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MemoryRegion {
    /// First guest physical address, a multiple of [`PAGE_SIZE`].
    pub guest_address: u64,
    /// Length, a multiple of [`PAGE_SIZE`] and not zero.
    pub len_bytes: u64,
}

impl MemoryRegion {
    /// Returns the first guest physical address after the region.
    ///
    /// Regions of a [`MemoryMap`] never overflow; for others the sum saturates.
    pub fn end(&self) -> u64 {
        self.guest_address.saturating_add(self.len_bytes)
    }
}

/// All memory regions of a guest, in address order and without overlap.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MemoryMap {
    regions: Vec<MemoryRegion>,
}

impl MemoryMap {
    /// Makes a memory map of regions that are sorted, disjoint and page multiples.
    ///
    /// Refuses an empty list, more than [`limits::MAX_REGIONS`] regions and more than
    /// [`limits::MAX_MEMORY_BYTES`] in all.
    pub fn new(regions: Vec<MemoryRegion>) -> Result<Self> {
        LimitExceeded::check("memory regions", regions.len() as u64, limits::MAX_REGIONS)?;
        let mut previous_end = 0;
        let mut total = 0u64;
        for region in &regions {
            let end = region.guest_address.checked_add(region.len_bytes);
            let valid = region.len_bytes > 0
                && region.guest_address % PAGE_SIZE == 0
                && region.len_bytes % PAGE_SIZE == 0
                && region.guest_address >= previous_end
                && end.is_some_and(|end| end <= limits::MAX_GUEST_ADDRESS);
            if !valid {
                return Err(Error::Usage(Usage::MemoryRegion {
                    guest_address: region.guest_address,
                    len_bytes: region.len_bytes,
                }));
            }
            previous_end = region.end();
            total = total.saturating_add(region.len_bytes);
        }
        if regions.is_empty() {
            return Err(Error::Usage(Usage::NoRegions));
        }
        LimitExceeded::check("guest memory bytes", total, limits::MAX_MEMORY_BYTES)?;
        Ok(Self { regions })
    }

    /// Returns the regions in address order.
    pub fn regions(&self) -> &[MemoryRegion] {
        &self.regions
    }

    /// Returns the bytes of memory in all regions together.
    pub fn len_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.len_bytes).sum()
    }
}

/// Bytes of guest memory that are encoded as one unit: a power of two from 4 KiB to 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkSize(u8);

impl ChunkSize {
    /// The default of 64 KiB: near the best ratio, small enough for a fault to wait for.
    pub const DEFAULT: Self = Self(16);

    /// Makes a chunk size of `bytes`, which must be a power of two from 4 KiB to 2 MiB.
    pub fn new(bytes: u32) -> Result<Self> {
        let log2 = u8::try_from(bytes.trailing_zeros()).unwrap_or(u8::MAX);
        if !bytes.is_power_of_two() {
            return Err(Error::Usage(Usage::ChunkSize { bytes }));
        }
        Self::from_log2(log2).ok_or(Error::Usage(Usage::ChunkSize { bytes }))
    }

    /// Makes a chunk size of `2^log2` bytes, if the format allows it.
    pub fn from_log2(log2: u8) -> Option<Self> {
        let allowed = limits::MIN_CHUNK_SIZE_LOG2..=limits::MAX_CHUNK_SIZE_LOG2;
        allowed.contains(&log2).then_some(Self(log2))
    }

    /// Returns the size in bytes.
    pub fn bytes(self) -> u32 {
        1 << self.0
    }

    /// Returns the binary logarithm of the size in bytes.
    pub fn log2(self) -> u8 {
        self.0
    }
}

impl Default for ChunkSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The place of a chunk in the order of all chunks of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct ChunkNumber(pub u64);

impl fmt::Display for ChunkNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The guest memory that one chunk covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ChunkRange {
    /// Index of the region in [`MemoryMap::regions`].
    pub region: usize,
    /// First guest physical address of the chunk.
    pub guest_address: u64,
    /// Bytes of guest memory in the chunk; less than the chunk size only at the end of a region.
    pub len_bytes: u32,
}

/// How a memory map is cut into chunks of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkLayout {
    regions: Vec<RegionChunks>,
    chunk_size: ChunkSize,
    chunk_count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RegionChunks {
    first_chunk: u64,
    region: MemoryRegion,
}

impl ChunkLayout {
    /// Cuts `map` into chunks of `chunk_size`.
    pub fn new(map: &MemoryMap, chunk_size: ChunkSize) -> Self {
        let mut first_chunk = 0;
        let mut regions = Vec::with_capacity(map.regions.len());
        for &region in &map.regions {
            regions.push(RegionChunks { first_chunk, region });
            first_chunk += region.len_bytes.div_ceil(u64::from(chunk_size.bytes()));
        }
        Self {
            regions,
            chunk_size,
            chunk_count: first_chunk,
        }
    }

    /// Returns the number of chunks in all regions.
    pub fn chunk_count(&self) -> u64 {
        self.chunk_count
    }

    /// Returns the chunk size.
    pub fn chunk_size(&self) -> ChunkSize {
        self.chunk_size
    }

    /// Returns the bytes of guest memory in all regions.
    pub fn memory_bytes(&self) -> u64 {
        self.regions.iter().map(|chunks| chunks.region.len_bytes).sum()
    }

    /// Returns the guest memory that `chunk` covers, or `None` past the last chunk.
    pub fn chunk(&self, chunk: ChunkNumber) -> Option<ChunkRange> {
        if chunk.0 >= self.chunk_count {
            return None;
        }
        let after = self
            .regions
            .partition_point(|region| region.first_chunk <= chunk.0);
        let index = after.checked_sub(1)?;
        let RegionChunks { first_chunk, region } = *self.regions.get(index)?;
        let offset = (chunk.0 - first_chunk) << self.chunk_size.log2();
        let left = u32::try_from(region.len_bytes - offset).unwrap_or(u32::MAX);
        Some(ChunkRange {
            region: index,
            guest_address: region.guest_address + offset,
            len_bytes: left.min(self.chunk_size.bytes()),
        })
    }

    /// Returns the chunk that holds the guest physical address, or `None` in a hole.
    pub fn chunk_at(&self, guest_address: u64) -> Option<ChunkNumber> {
        let after = self
            .regions
            .partition_point(|chunks| chunks.region.guest_address <= guest_address);
        let RegionChunks { first_chunk, region } = *self.regions.get(after.checked_sub(1)?)?;
        let offset = guest_address - region.guest_address;
        (offset < region.len_bytes).then(|| ChunkNumber(first_chunk + (offset >> self.chunk_size.log2())))
    }

    /// Returns, for every region, the number after its last chunk.
    pub(crate) fn region_ends(&self) -> impl Iterator<Item = u64> {
        let next = self.regions.iter().skip(1).map(|region| region.first_chunk);
        next.chain(std::iter::once(self.chunk_count))
    }

    /// Returns how many chunks `chunk` is from the start of its region.
    pub(crate) fn chunk_in_region(&self, chunk: ChunkNumber) -> u64 {
        let after = self
            .regions
            .partition_point(|region| region.first_chunk <= chunk.0);
        let region = after.checked_sub(1).and_then(|index| self.regions.get(index));
        region.map_or(0, |region| chunk.0 - region.first_chunk)
    }

    /// Returns the guest memory that a run of chunks covers, one range per region.
    pub fn guest_ranges(&self, chunks: Range<u64>) -> GuestRanges {
        let mut ranges = Vec::new();
        for (index, region) in self.regions.iter().enumerate() {
            let own = self.region_chunks(index);
            let (start, end) = (own.start.max(chunks.start), own.end.min(chunks.end));
            if start < end {
                let address = |chunk: u64| {
                    let offset = (chunk - own.start) << self.chunk_size.log2();
                    region.region.guest_address + offset.min(region.region.len_bytes)
                };
                ranges.push(address(start)..address(end));
            }
        }
        GuestRanges(ranges)
    }

    /// Returns the numbers of the chunks of one region.
    pub fn region_chunks(&self, region: usize) -> Range<u64> {
        let first = self
            .regions
            .get(region)
            .map_or(self.chunk_count, |chunks| chunks.first_chunk);
        let next = self
            .regions
            .get(region + 1)
            .map_or(self.chunk_count, |chunks| chunks.first_chunk);
        first..next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(regions: &[(u64, u64)]) -> Result<MemoryMap> {
        let region = |&(guest_address, len_bytes)| MemoryRegion {
            guest_address,
            len_bytes,
        };
        MemoryMap::new(regions.iter().map(region).collect())
    }

    #[test]
    fn refuses_regions_that_are_empty_unaligned_overlapping_or_out_of_order() {
        let refused: [&[(u64, u64)]; 7] = [
            &[],
            &[(0, 0)],
            &[(1, 4096)],
            &[(0, 4097)],
            &[(0, 8192), (4096, 4096)],
            &[(8192, 4096), (0, 4096)],
            &[(u64::MAX - 4095, 4096)],
        ];
        for regions in refused {
            assert!(map(regions).is_err(), "{regions:?}");
        }
        assert!(map(&[(0, 4096), (4096, 4096)]).is_ok(), "regions may touch");
    }

    #[test]
    fn every_region_starts_a_chunk_and_only_its_last_chunk_is_short() {
        let map = map(&[(0, 0x5000), (0x10000, 0x4000)]).unwrap();
        let layout = ChunkLayout::new(&map, ChunkSize::new(0x2000).unwrap());
        let chunks: Vec<_> = (0..6).map(|n| layout.chunk(ChunkNumber(n))).collect();
        let range = |region, guest_address, len_bytes| {
            Some(ChunkRange {
                region,
                guest_address,
                len_bytes,
            })
        };
        assert_eq!(
            chunks,
            [
                range(0, 0, 0x2000),
                range(0, 0x2000, 0x2000),
                range(0, 0x4000, 0x1000),
                range(1, 0x10000, 0x2000),
                range(1, 0x12000, 0x2000),
                None
            ]
        );
        assert_eq!(layout.chunk_at(0x4fff), Some(ChunkNumber(2)));
        assert_eq!(layout.chunk_at(0x5000), None, "in the hole");
        assert_eq!(layout.chunk_at(0x12345), Some(ChunkNumber(4)));
        assert_eq!(layout.chunk_in_region(ChunkNumber(4)), 1);
        assert_eq!(layout.guest_ranges(1..4).0, [0x2000..0x5000, 0x10000..0x12000]);
    }
}
