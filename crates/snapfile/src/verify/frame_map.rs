//! Where frames begin, as far as index, root and footer tell: the way back after a broken frame.
//!
//! A frame header whose checksum is wrong does not tell where the next frame begins. If the index
//! knows a data chunk there, its end is known too. Otherwise the file is searched for the next
//! frame header whose checksum holds, but never past the next frame that the index knows: memory
//! may hold bytes that look like frames. Built only when it is needed.

use super::findings::Findings;
use super::index::Leaves;
use super::structures::{Structures, read_frame_header};
use crate::error::Result;
use crate::format::{FRAME_MAGIC, align8};
use crate::frame::FRAME_HEADER_LEN;
use crate::storage::ReadAt;

/// Most frames that are remembered, which bounds the memory used: 24 bytes each. The search does
/// without the others.
const MAX_KNOWN: usize = 1 << 24;

/// Bytes that are searched at a time.
const SEARCH_BYTES: usize = 1 << 20;

/// A frame that other structures know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    offset: u64,
    /// Where the next frame begins, if that is known.
    end: Option<u64>,
    /// The data chunk in it, if it holds one.
    chunk: Option<u64>,
}

/// Where frames begin.
#[derive(Debug, Default)]
pub(super) struct FrameMap {
    /// In ascending order of offsets.
    known: Vec<Known>,
}

impl FrameMap {
    /// Collects what the sound structures know.
    pub(super) fn build(storage: &dyn ReadAt, structures: &Structures, findings: &Findings) -> Result<Self> {
        let mut known = Vec::new();
        let place = |offset| Known {
            offset,
            end: None,
            chunk: None,
        };
        known.extend(
            structures
                .directory
                .iter()
                .flatten()
                .map(|section| place(section.offset)),
        );
        known.extend(
            structures
                .footer
                .iter()
                .flat_map(|footer| [footer.root_offset, footer.directory_offset])
                .map(place),
        );
        known.extend(structures.root.iter().flatten().map(|leaf| place(leaf.offset)));
        if !structures.incomplete {
            known.push(place(structures.footer_offset()));
        }
        if let Some(leaves) = Leaves::new(storage, structures) {
            leaves.for_each(findings, |chunks, entry| {
                if let Some(entry) = entry.filter(|entry| entry.kind.is_data() && known.len() < MAX_KNOWN) {
                    let end = entry.location + FRAME_HEADER_LEN + align8(u64::from(entry.stored_len));
                    known.push(Known {
                        offset: entry.location,
                        end: Some(end),
                        chunk: Some(chunks.start),
                    });
                }
                Ok(())
            })?;
        }
        known.sort_unstable();
        known.dedup_by_key(|known| known.offset);
        Ok(Self { known })
    }

    /// Returns the data chunk whose frame should begin at `offset`.
    pub(super) fn chunk_at(&self, offset: u64) -> Option<u64> {
        let index = self
            .known
            .binary_search_by_key(&offset, |known| known.offset)
            .ok()?;
        self.known.get(index)?.chunk
    }

    /// Returns where the frame after the broken one at `offset` begins.
    pub(super) fn next_frame(
        &self,
        storage: &dyn ReadAt,
        file_bytes: u64,
        offset: u64,
    ) -> Result<Option<u64>> {
        let after = self.known.partition_point(|known| known.offset <= offset);
        let next_known = self.known.get(after).map(|known| known.offset);
        let at = self
            .known
            .get(after.wrapping_sub(1))
            .filter(|known| known.offset == offset);
        if let Some(end) = at.and_then(|known| known.end) {
            // Frames do not overlap: if the end lies beyond the next one, the index is not right.
            return Ok(Some(next_known.map_or(end, |next| next.min(end))));
        }
        Ok(search(storage, offset + 8, next_known.unwrap_or(file_bytes))?.or(next_known))
    }
}

/// Searches `from..to` at multiples of 8 for a frame header whose checksum holds.
fn search(storage: &dyn ReadAt, from: u64, to: u64) -> Result<Option<u64>> {
    let mut window = vec![0; SEARCH_BYTES];
    let mut start = from;
    while start < to {
        let len = usize::try_from(to - start)
            .unwrap_or(SEARCH_BYTES)
            .min(SEARCH_BYTES);
        let Some(bytes) = window.get_mut(..len) else { break };
        storage.read_exact_at(bytes, start)?;
        for (offset, word) in (start..).step_by(8).zip(bytes.as_chunks::<8>().0) {
            if word.starts_with(&FRAME_MAGIC) && read_frame_header(storage, to.max(offset), offset).is_ok() {
                return Ok(Some(offset));
            }
        }
        start += len as u64;
    }
    Ok(None)
}
