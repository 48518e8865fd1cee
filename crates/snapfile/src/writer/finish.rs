//! Completes a snapshot: index, directory and footer, in that order (spec 5.8).

use std::io::Write;

use super::Writer;
use super::shared::BATCH_BYTES;
use crate::digest::root_digest;
use crate::error::{Result, Usage};
use crate::footer::{self, FOOTER_LEN, Summary, Targets};
use crate::format::{FrameType, RootEntry};
use crate::frame::FrameDraft;
use crate::section::{SectionEntry, directory};

/// Writes everything that comes after the data and returns the output.
pub(super) fn finish<W: Write + Send>(writer: Writer<W>) -> Result<(W, Summary)> {
    let mut state = writer.shared.lock()?;
    if let Some((first, count)) = state.index.missing() {
        return Err(Usage::ChunksMissing { first, count }.into());
    }
    state.append_extents();
    drop(state);
    let root = append_leaves(&writer)?;

    let mut guard = writer.shared.lock()?;
    let state = &mut *guard;
    let root_offset = state.offset();
    let root: Vec<u8> = root.iter().flat_map(RootEntry::encode).collect();
    let root_frame = FrameDraft::plain(FrameType::Root, 0, &root).append(&root, &mut state.batch);
    let directory_offset = state.offset();
    let directory = directory::encode(&state.sections);
    let directory_frame =
        FrameDraft::plain(FrameType::Directory, 0, &directory).append(&directory, &mut state.batch);
    state.frame_count += 2;

    let region_digests = state.index.region_digests();
    let states = state.sections.iter().filter_map(SectionEntry::as_state).collect();
    let architecture = writer.header.architecture.code();
    let summary = Summary {
        root_digest: root_digest(architecture, &writer.map, &region_digests, states),
        file_id: writer.header.file_id,
        file_len: state.offset() + FOOTER_LEN,
        memory_bytes: writer.header.memory_bytes,
        stored_bytes: state.stored_bytes,
        chunks: writer.shared.counts(),
    };
    let targets = Targets {
        root_offset,
        root_crc: root_frame.payload_crc,
        directory_offset,
        directory_crc: directory_frame.payload_crc,
        frame_count: state.frame_count,
        section_count: u32::try_from(state.sections.len()).unwrap_or(u32::MAX),
        header_crc: writer.header_crc,
    };
    footer::append(&summary, &targets, &mut state.batch);
    debug_assert_eq!(state.offset(), summary.file_len, "the footer ends the file");
    writer.shared.write_batch(guard)?;
    let mut output = writer.shared.into_output()?;
    output.flush()?;
    Ok((output, summary))
}

/// Appends all leaves that are not zero and returns the entries of the root.
fn append_leaves<W: Write + Send>(writer: &Writer<W>) -> Result<Vec<RootEntry>> {
    let mut root = Vec::new();
    let mut guard = writer.shared.lock()?;
    for leaf in 0..guard.index.leaf_count() {
        let offset = guard.offset();
        let state = &mut *guard;
        let entry = state.index.append_leaf(leaf, offset, &mut state.batch);
        if entry.offset != 0 {
            state.frame_count += 1;
        }
        root.push(entry);
        if state.batch.len() >= BATCH_BYTES {
            writer.shared.write_batch(guard)?;
            guard = writer.shared.lock()?;
        }
    }
    Ok(root)
}
