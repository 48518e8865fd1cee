//! Guest memory as a capture sees it: regions cut into chunks, runs of 2 MiB and pieces of 16 MiB.
//!
//! A *run* is what a walker takes at a time. Runs end on 2 MiB boundaries of host addresses, so that a
//! transparent huge page is never split by lifting a run's protection. A *piece* is a number of runs, the
//! amount protected in one call. Chunks number the memory of all regions in address order.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use snapfile::{ChunkLayout, ChunkNumber, MemoryMap, MemoryRegion};
use uffd::{MappedRange, PAGE_SIZE};
use vm_memory::{
    Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion, VolatileMemory,
};

use crate::error::{Error, Result};

/// Bytes of a run: those of a huge page.
pub(crate) const RUN: usize = 2 << 20;
/// Runs in a piece.
const PIECE_RUNS: u64 = 8;

/// Describes guest memory as a snapshot's memory map.
///
/// # Errors
/// [`Error::Source`] where the format's limits do not allow it.
pub fn memory_map(memory: &GuestMemoryMmap<()>) -> Result<MemoryMap> {
    let regions = memory.iter().map(|region| MemoryRegion {
        guest_address: region.start_addr().raw_value(),
        len_bytes: region.len(),
    });
    MemoryMap::new(regions.collect()).map_err(Error::Source)
}

/// One region's mapping, shared with the guest memory that it came from and so kept alive.
#[derive(Clone, Debug)]
pub(crate) struct Mapping(Arc<MmapRegion<()>>);

impl Mapping {
    pub(crate) fn new(region: Arc<MmapRegion<()>>) -> Self {
        Mapping(region)
    }

    pub(crate) fn region(&self) -> &MmapRegion<()> {
        &self.0
    }

    /// The host address of the first byte.
    pub(crate) fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }
}

#[expect(unsafe_code, reason = "vouches for the life of a mapping")]
// SAFETY: `MmapRegion` owns its mapping or was made by unsafe code that vouches for it; it neither moves
// nor unmaps it before it is dropped, gives out no references to its bytes, and is kept by the `Arc`.
unsafe impl MappedRange for Mapping {
    fn start(&self) -> NonNull<u8> {
        NonNull::new(self.0.as_ptr()).unwrap_or(NonNull::dangling())
    }

    fn len_bytes(&self) -> usize {
        self.0.size()
    }
}

/// A region with its place among the chunks and runs.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) mapping: Mapping,
    pub(crate) guest_address: u64,
    pub(crate) len: usize,
    /// Whether a file or memory file is known to be behind it.
    pub(crate) file_backed: bool,
    first_chunk: u64,
    first_run: u64,
    /// Bytes before the first 2 MiB boundary of host addresses, in whole chunks.
    lead: usize,
}

/// Bytes of one region, as offsets into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) region: usize,
    pub(crate) bytes: Range<usize>,
}

/// All regions and how they are cut.
#[derive(Debug)]
pub(crate) struct Geometry {
    regions: Vec<Region>,
    chunk_size: usize,
    chunk_count: u64,
    run_count: u64,
}

impl Geometry {
    /// Cuts `memory` as `layout` says, which must describe the same regions.
    pub(crate) fn new(memory: &GuestMemoryMmap<()>, layout: &ChunkLayout) -> Result<Self> {
        let chunk_size = layout.chunk_size().bytes() as usize;
        let own = ChunkLayout::new(&memory_map(memory)?, layout.chunk_size());
        if own != *layout {
            return Err(Error::MemoryMap {
                guest_address: first_difference(&own, layout),
            });
        }
        let (mut regions, mut run_count) = (Vec::new(), 0);
        for (index, region) in memory.iter().enumerate() {
            let mapping = Mapping(region.get_mmap());
            let len = mapping.len_bytes();
            let lead = mapping.address().wrapping_neg() % RUN / chunk_size * chunk_size;
            let lead = lead.min(len);
            regions.push(Region {
                mapping,
                guest_address: region.start_addr().raw_value(),
                len,
                file_backed: region.file_offset().is_some(),
                first_chunk: layout.region_chunks(index).start,
                first_run: run_count,
                lead,
            });
            run_count += u64::from(lead > 0) + (len - lead).div_ceil(RUN) as u64;
        }
        Ok(Geometry {
            regions,
            chunk_size,
            chunk_count: layout.chunk_count(),
            run_count,
        })
    }

    pub(crate) fn regions(&self) -> &[Region] {
        &self.regions
    }

    pub(crate) fn region(&self, index: usize) -> &Region {
        &self.regions[index]
    }

    pub(crate) fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    pub(crate) fn chunk_count(&self) -> u64 {
        self.chunk_count
    }

    pub(crate) fn run_count(&self) -> u64 {
        self.run_count
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.len as u64).sum()
    }

    /// The memory of a chunk.
    ///
    /// # Panics
    /// When there is no such chunk.
    pub(crate) fn chunk(&self, chunk: u64) -> Span {
        let index = self.regions.partition_point(|region| region.first_chunk <= chunk) - 1;
        let region = &self.regions[index];
        let start = to_usize(chunk - region.first_chunk) * self.chunk_size;
        Span {
            region: index,
            bytes: start..region.len.min(start + self.chunk_size),
        }
    }

    /// The guest physical address of a chunk.
    pub(crate) fn guest_address(&self, chunk: u64) -> u64 {
        let span = self.chunk(chunk);
        self.regions[span.region].guest_address + span.bytes.start as u64
    }

    /// The memory at a guest physical address, if all of it lies in one region.
    pub(crate) fn span_at(&self, guest_address: u64, len: usize) -> Option<Span> {
        self.regions.iter().enumerate().find_map(|(index, region)| {
            let offset = usize::try_from(guest_address.checked_sub(region.guest_address)?).ok()?;
            let end = offset.checked_add(len).filter(|end| *end <= region.len)?;
            Some(Span {
                region: index,
                bytes: offset..end,
            })
        })
    }

    /// The chunks that a span has a part of.
    pub(crate) fn chunks(&self, span: &Span) -> Range<u64> {
        let first = self.regions[span.region].first_chunk;
        let start = first + (span.bytes.start / self.chunk_size) as u64;
        start..first + span.bytes.end.div_ceil(self.chunk_size) as u64
    }

    /// The memory of chunks that follow each other, cut where a region ends.
    pub(crate) fn spans(&self, chunks: Range<u64>) -> impl Iterator<Item = Span> + '_ {
        let mut next = chunks.start;
        std::iter::from_fn(move || {
            let first = (next < chunks.end).then(|| self.chunk(next))?;
            let region = &self.regions[first.region];
            let end = chunks
                .end
                .min(region.first_chunk + region.len.div_ceil(self.chunk_size) as u64);
            next = end;
            Some(Span {
                region: first.region,
                bytes: first.bytes.start..self.chunk(end - 1).bytes.end,
            })
        })
    }

    /// The chunk that holds a host address.
    pub(crate) fn chunk_at(&self, host_address: usize) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = host_address
                .checked_sub(region.start())
                .filter(|offset| *offset < region.len)?;
            Some(region.first_chunk + (offset / self.chunk_size) as u64)
        })
    }

    /// The memory of a run.
    ///
    /// # Panics
    /// When there is no such run.
    pub(crate) fn run(&self, run: u64) -> Span {
        let index = self.regions.partition_point(|region| region.first_run <= run) - 1;
        let region = &self.regions[index];
        let number = run - region.first_run;
        Span {
            region: index,
            bytes: region.run_start(number)..region.run_start(number + 1),
        }
    }

    /// All pieces in address order.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = Span> + '_ {
        self.regions.iter().enumerate().flat_map(|(index, region)| {
            (0..region.piece_count()).map(move |piece| {
                let bytes = region.run_start(piece * PIECE_RUNS)..region.run_start((piece + 1) * PIECE_RUNS);
                Span { region: index, bytes }
            })
        })
    }
}

impl Region {
    fn start(&self) -> usize {
        self.mapping.address()
    }

    pub(crate) fn is_hugetlbfs(&self) -> bool {
        self.mapping.0.is_hugetlbfs() == Some(true)
    }

    /// The host address of an offset.
    pub(crate) fn host_address(&self, offset: usize) -> usize {
        self.start() + offset
    }

    fn run_count(&self) -> u64 {
        u64::from(self.lead > 0) + (self.len - self.lead).div_ceil(RUN) as u64
    }

    fn piece_count(&self) -> u64 {
        self.run_count().div_ceil(PIECE_RUNS)
    }

    fn run_start(&self, run: u64) -> usize {
        let whole = run.saturating_sub(u64::from(self.lead > 0));
        let lead = if run == 0 { 0 } else { self.lead };
        self.len.min(lead + to_usize(whole) * RUN)
    }

    /// Copies guest memory from `offset` on into `plain`, except pages that `present` says are not there:
    /// those are zeros, and are not touched.
    pub(crate) fn read(&self, offset: usize, present: &[u8], plain: &mut [u8]) {
        for (pages, there) in uffd::Residency::runs(present) {
            let target = &mut plain[pages.start * PAGE_SIZE..pages.end * PAGE_SIZE];
            if there {
                let source = self
                    .mapping
                    .0
                    .get_slice(offset + pages.start * PAGE_SIZE, target.len());
                source.expect("a span lies inside its region").copy_to(target);
            } else {
                target.fill(0);
            }
        }
    }

    /// Writes `plain` to guest memory at `offset`.
    pub(crate) fn write(&self, offset: usize, plain: &[u8]) {
        let target = self.mapping.0.get_slice(offset, plain.len());
        target.expect("a span lies inside its region").copy_from(plain);
    }
}

/// The first guest physical address at which two layouts differ.
fn first_difference(ours: &ChunkLayout, theirs: &ChunkLayout) -> u64 {
    let count = ours.chunk_count().max(theirs.chunk_count());
    let range = |layout: &ChunkLayout, chunk| layout.chunk(ChunkNumber(chunk));
    (0..count)
        .find(|chunk| range(ours, *chunk) != range(theirs, *chunk))
        .and_then(|chunk| range(ours, chunk).or(range(theirs, chunk)))
        .map_or(0, |range| range.guest_address)
}

/// Offsets into memory that this process has mapped fit `usize`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "an offset into a mapping of this process"
)]
fn to_usize(value: u64) -> usize {
    value as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use snapfile::ChunkSize;
    use vm_memory::GuestAddress;

    const CHUNK: usize = 64 << 10;

    /// Two regions, the second of an odd number of pages.
    fn geometry(lens: [usize; 2], chunk: usize) -> Geometry {
        let ranges = [(GuestAddress(0), lens[0]), (GuestAddress(1 << 32), lens[1])];
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        let size = ChunkSize::new(u32::try_from(chunk).unwrap()).unwrap();
        Geometry::new(&memory, &ChunkLayout::new(&memory_map(&memory).unwrap(), size)).unwrap()
    }

    /// Gives the first region a start that lies `before` bytes below a 2 MiB boundary.
    fn shifted(mut geometry: Geometry, before: usize) -> Geometry {
        geometry.regions[0].lead = before;
        geometry.regions[1].first_run = geometry.regions[0].run_count();
        geometry.run_count = geometry.regions.iter().map(Region::run_count).sum();
        geometry
    }

    /// Spans in order, without gap or overlap, cover every region.
    fn assert_covers(geometry: &Geometry, spans: impl Iterator<Item = Span>) {
        let mut ends = vec![0; geometry.regions.len()];
        for span in spans {
            assert_eq!(span.bytes.start, ends[span.region]);
            assert!(span.bytes.end > span.bytes.start);
            ends[span.region] = span.bytes.end;
        }
        let lens: Vec<_> = geometry.regions.iter().map(|region| region.len).collect();
        assert_eq!(ends, lens);
    }

    #[test]
    fn chunks_runs_and_pieces_each_cover_all_memory_once() {
        for chunk in [4 << 10, CHUNK, RUN] {
            for lens in [[64 << 20, 4096], [3 << 20, (33 << 20) + 3 * 4096], [4096, 8192]] {
                for before in [0, chunk, 31 * CHUNK]
                    .into_iter()
                    .filter(|before| *before < lens[0])
                {
                    let geometry = shifted(geometry(lens, chunk), before);
                    assert_covers(
                        &geometry,
                        (0..geometry.chunk_count()).map(|chunk| geometry.chunk(chunk)),
                    );
                    assert_covers(&geometry, (0..geometry.run_count()).map(|run| geometry.run(run)));
                    assert_covers(&geometry, geometry.pieces());
                    assert_covers(&geometry, geometry.spans(0..geometry.chunk_count()));
                }
            }
        }
    }

    #[test]
    fn runs_end_where_huge_pages_do() {
        let geometry = geometry([64 << 20, 64 << 20], CHUNK);
        for run in (0..geometry.run_count()).map(|run| geometry.run(run)) {
            let region = geometry.region(run.region);
            let at_end = run.bytes.end == region.len;
            assert!(at_end || region.host_address(run.bytes.end).is_multiple_of(RUN));
        }
    }

    #[test]
    fn host_addresses_lead_to_their_chunk() {
        let geometry = geometry([1 << 20, CHUNK + 4096], CHUNK);
        for chunk in 0..geometry.chunk_count() {
            let span = geometry.chunk(chunk);
            let region = geometry.region(span.region);
            assert_eq!(
                geometry.chunk_at(region.host_address(span.bytes.start)),
                Some(chunk)
            );
            assert_eq!(
                geometry.chunk_at(region.host_address(span.bytes.end - 1)),
                Some(chunk)
            );
        }
        assert_eq!(geometry.chunk_at(0), None);
        assert_eq!(
            geometry.guest_address(geometry.chunk_count() - 1),
            (1 << 32) + CHUNK as u64
        );
    }
}
