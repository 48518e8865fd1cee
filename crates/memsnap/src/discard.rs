//! Giving guest memory back to the kernel, whether or not it is being captured at that moment.
//!
//! A discard behind a capture's back destroys content that is still to be copied, so the capture is
//! abandoned. [`Discards`] goes through the capture instead: it finds the one under way, if any, and keeps a
//! capture from beginning, freezing or ending in the middle of a discard. What a discard means to the chunks
//! is in `capture/discard.rs`.

#![expect(unsafe_code, reason = "madvise by address")]

use std::io;
use std::ops::Range;

use rustix::mm::{Advice, madvise};
use uffd::PAGE_SIZE;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::control::CaptureControl;
use crate::geometry::{Mapping, RUN};

/// Gives guest memory back to the kernel such that a capture under way loses nothing.
///
/// Taken from a [`CaptureControl`], before or during its capture; clones do the same. Before and after the
/// capture it is a plain discard. Whoever discards in another way during the capture makes it fail.
#[derive(Clone, Debug)]
pub struct Discards(CaptureControl);

impl Discards {
    pub(crate) fn new(control: CaptureControl) -> Self {
        Discards(control)
    }

    /// Gives `len` bytes at `guest_address` back: they read as zero afterwards, until they are written.
    /// Only whole pages are given back; parts of pages at the ends are kept as they are. `memory` is the
    /// memory that is captured.
    ///
    /// Before the point in time this takes no longer than without a capture. After it, what the capture
    /// has not copied yet is copied first. The call waits for a copy buffer for that, or until the capture
    /// gets there by itself; half of the buffers are kept for writers. It never waits for a capture that has
    /// failed. It must not be made by a thread that the capture waits for, such as one inside the sink.
    ///
    /// # Errors
    /// `InvalidInput` where the range is not inside `memory`; `Unsupported` where pages are
    /// a private copy of a file, which would come back instead; whatever else the kernel answers. In the last
    /// case a part of the range may have been given back.
    pub fn discard(&self, memory: &GuestMemoryMmap<()>, guest_address: u64, len: u64) -> io::Result<()> {
        let pieces = pieces(memory, guest_address, len).ok_or(io::ErrorKind::InvalidInput)?;
        for piece in pieces {
            // Locked piece by piece, so that a freeze never waits for more than one.
            let capturing = self.0.capturing().pass();
            match capturing.upgrade() {
                Some(engine) => {
                    let span = engine.geometry.span_at(piece.guest_address, piece.bytes.len());
                    engine.discard(&span.ok_or(io::ErrorKind::InvalidInput)?)?;
                }
                None => piece.mapping.discard(piece.bytes)?,
            }
        }
        Ok(())
    }
}

/// A part of a discard that lies inside one huge page.
struct Piece {
    guest_address: u64,
    mapping: Mapping,
    bytes: Range<usize>,
}

/// Cuts the whole pages of a range of guest memory to pieces; `None` unless they lie inside regions.
fn pieces(memory: &GuestMemoryMmap<()>, guest_address: u64, len: u64) -> Option<Vec<Piece>> {
    let page = PAGE_SIZE as u64;
    let end = guest_address.checked_add(len)? / page * page;
    let (mut pieces, mut next) = (Vec::new(), guest_address.checked_next_multiple_of(page)?);
    while next < end {
        let region = memory.find_region(GuestAddress(next))?;
        let mapping = Mapping::new(region.get_mmap());
        let offset = usize::try_from(next - region.start_addr().raw_value()).ok()?;
        let to_huge_page_end = RUN - (mapping.address() + offset) % RUN;
        let left = usize::try_from((end - next).min(region.len() - offset as u64)).ok()?;
        let len = left.min(to_huge_page_end);
        pieces.push(Piece {
            guest_address: next,
            mapping,
            bytes: offset..offset + len,
        });
        next += len as u64;
    }
    Some(pieces)
}

impl Mapping {
    /// Gives pages back to the kernel; `bytes` are offsets of whole pages inside the mapping.
    ///
    /// Either way is reported by one userfaultfd event where the mapping is registered. A hole punched
    /// through the file would not be.
    pub(crate) fn discard(&self, bytes: Range<usize>) -> io::Result<()> {
        let region = self.region();
        let advice = match (region.flags() & libc::MAP_SHARED != 0, region.file_offset()) {
            // Shared pages stay in the page cache unless a hole is made there.
            (true, _) => Advice::LinuxRemove,
            (false, None) => Advice::LinuxDontNeed,
            (false, Some(_)) => return Err(io::ErrorKind::Unsupported.into()),
        };
        assert!(bytes.end <= region.size(), "a discard lies inside its mapping");
        let start = region.as_ptr().wrapping_add(bytes.start);
        // SAFETY: `start` and the length lie inside the mapping, which `self` keeps alive. Nobody has
        // references to its bytes: they are guest memory, which may change at any time.
        unsafe { madvise(start.cast(), bytes.len(), advice) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory() -> GuestMemoryMmap<()> {
        let ranges = [(0, 5 * MIB), (5 * MIB, MIB), (16 * MIB, MIB)];
        let ranges = ranges.map(|(address, len)| (GuestAddress(address), usize::try_from(len).unwrap()));
        GuestMemoryMmap::from_ranges(&ranges).unwrap()
    }

    #[test]
    fn pieces_cover_a_range_across_regions_and_huge_pages_once() {
        let memory = memory();
        for (start, end) in [(0, 6 * MIB), (4096, 8192), (MIB, 5 * MIB + 4096), (MIB, MIB)] {
            let mut next = start;
            for piece in pieces(&memory, start, end - start).unwrap() {
                assert_eq!(piece.guest_address, next);
                let first = (piece.mapping.address() + piece.bytes.start) / RUN;
                let last = (piece.mapping.address() + piece.bytes.end - 1) / RUN;
                assert_eq!(first, last, "inside one huge page");
                next += piece.bytes.len() as u64;
            }
            assert_eq!(next, end);
        }
    }

    #[test]
    fn parts_of_pages_are_left_out() {
        let memory = memory();
        for (start, len) in [(1, 4096), (0, 4095), (4095, 2), (1, 8190)] {
            assert!(pieces(&memory, start, len).unwrap().is_empty(), "{start} +{len}");
        }
        let pieces = pieces(&memory, MIB - 1, 2 * 4096).unwrap();
        let (address, bytes) = (pieces[0].guest_address, pieces[0].bytes.len());
        assert_eq!((pieces.len(), address, bytes), (1, MIB, 4096));
    }

    #[test]
    fn ranges_that_leave_memory_have_no_pieces() {
        for (start, len) in [(5 * MIB, 2 * MIB), (15 * MIB, MIB), (u64::MAX - 4095, 8192)] {
            assert!(pieces(&memory(), start, len).is_none(), "{start:#x} +{len:#x}");
        }
    }

    #[test]
    fn without_a_capture_a_discard_is_plain() {
        let memory = memory();
        vm_memory::Bytes::write_slice(&memory, &[1; 3 * 4096], GuestAddress(0)).unwrap();
        let discards = CaptureControl::new().discards();
        discards.discard(&memory, 4096, 4096).unwrap();
        for (page, expected) in [1, 0, 1].into_iter().enumerate() {
            let byte: u8 = vm_memory::Bytes::read_obj(&memory, GuestAddress(page as u64 * 4096)).unwrap();
            assert_eq!(byte, expected);
        }
        let error = discards.discard(&memory, 8 * MIB, MIB).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn private_copies_of_a_file_are_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let offset = vm_memory::FileOffset::new(file, 0);
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let mapping =
            vm_memory::MmapRegion::build(Some(offset), 8192, libc::PROT_READ | libc::PROT_WRITE, flags);
        let region = vm_memory::GuestRegionMmap::new(mapping.unwrap(), GuestAddress(0)).unwrap();
        let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        let error = CaptureControl::new().discards().discard(&memory, 0, 4096);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
