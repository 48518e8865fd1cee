//! Names what is wrong once it is known that index and frames do not describe the same chunks.
//!
//! A second, slower pass that sound files never need: it asks which chunks the frames describe, and
//! whether each data chunk's frame is what the index says.

use super::findings::Findings;
use super::index::Leaves;
use super::structures::{Structures, read_frame_header, read_payload};
use crate::chunk::{ChunkEntry, Extent};
use crate::error::{Corruption, Error, Result};
use crate::format::{ExtentRecord, FrameType, HEADER_LEN};
use crate::frame::FrameInfo;
use crate::index::IndexShape;
use crate::intervals::Intervals;
use crate::memory_map::ChunkNumber;
use crate::storage::ReadAt;

/// Records the chunks described twice or not at all, and those whose frame is not what the index
/// says; at the least, that there is a difference.
pub(super) fn name_mismatches(
    storage: &dyn ReadAt,
    structures: &Structures,
    findings: &Findings,
) -> Result<()> {
    let Some(leaves) = Leaves::new(storage, structures) else {
        return Ok(());
    };
    let mut named = check_coverage(storage, structures, leaves.shape, findings)?;
    leaves.for_each(findings, |chunks, entry| {
        let Some(entry) = entry.filter(|entry| entry.kind.is_data()) else {
            return Ok(());
        };
        let compared = read_frame_header(storage, structures.file_bytes, entry.location)
            .and_then(|frame| check_frame(leaves.shape, chunks.start, entry, &frame));
        named |= findings.note(compared)?.is_none();
        Ok(())
    })?;
    if !named {
        findings.corrupt(Corruption::IndexMismatch {
            offset: structures.footer_offset(),
        });
    }
    Ok(())
}

/// Compares an entry with the frame that it names (spec 9.7).
fn check_frame(shape: &IndexShape, chunk: u64, entry: &ChunkEntry, frame: &FrameInfo) -> Result<()> {
    let fields = [
        ("type", frame.frame_type == Some(FrameType::Data)),
        ("chunk number", frame.fields.key == chunk),
        ("kind", frame.kind == entry.kind),
        ("stored length", frame.fields.stored_len == entry.stored_len),
        ("digest", frame.digest() == entry.digest),
    ];
    match fields.iter().find(|(_, agrees)| !agrees) {
        None => Ok(()),
        Some((field, _)) => {
            let guest = shape.chunk_guest(ChunkNumber(chunk));
            Err(Corruption::IndexFrame {
                chunk,
                offset: frame.offset,
                field,
                guest,
            }
            .into())
        }
    }
}

/// Checks that the frames describe every chunk once (spec 8.8, 8.9); returns whether they do not.
fn check_coverage(
    storage: &dyn ReadAt,
    structures: &Structures,
    shape: &IndexShape,
    findings: &Findings,
) -> Result<bool> {
    let mut described = Intervals::default();
    let mut twice = false;
    let mut offset = HEADER_LEN as u64;
    while offset < structures.footer_offset() {
        let frame = match read_frame_header(storage, structures.file_bytes, offset) {
            Ok(frame) => frame,
            Err(Error::Io(error)) => return Err(error.into()),
            // Broken frames have been recorded; what follows cannot be told.
            Err(_) => return Ok(twice),
        };
        for run in described_by(storage, &frame, shape)? {
            if let Some(chunk) = described.insert(run) {
                findings.corrupt(Corruption::ChunkTwice { chunk, offset });
                twice = true;
            }
        }
        offset = frame.end();
    }
    let chunk_count = shape.layout.chunk_count();
    if let Some(chunk) = described.first_missing(chunk_count).filter(|_| !twice) {
        let count = chunk_count.saturating_sub(described.count());
        let guest = shape.chunk_guest(ChunkNumber(chunk));
        findings.corrupt(Corruption::ChunkMissing { chunk, count, guest });
        return Ok(true);
    }
    Ok(twice)
}

/// Returns the runs of chunks that a frame describes.
fn described_by(
    storage: &dyn ReadAt,
    frame: &FrameInfo,
    shape: &IndexShape,
) -> Result<Vec<std::ops::Range<u64>>> {
    let chunk_count = shape.layout.chunk_count();
    match frame.frame_type {
        Some(FrameType::Data) if frame.fields.key < chunk_count => {
            Ok(std::iter::once(frame.fields.key..frame.fields.key + 1).collect())
        }

        Some(FrameType::Extents) => {
            let padded = read_payload(storage, frame)?;
            let records = padded.as_chunks::<{ ExtentRecord::LEN }>().0.iter();
            let extents = records
                .filter_map(|record| Extent::from_record(&ExtentRecord::decode(record), chunk_count).ok());
            Ok(extents
                .map(|extent| extent.first.0..extent.first.0 + extent.count)
                .collect())
        }
        _ => Ok(Vec::new()),
    }
}
