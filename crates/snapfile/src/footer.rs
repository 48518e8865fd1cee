//! The footer: the last 256 bytes, which commit the file (spec 10).

use crate::chunk::{ChunkCounts, ChunkKind};
use crate::digest::Digest;
use crate::error::{Corruption, Error, Result};
use crate::format::{
    END_MAGIC, FOOTER_FRAME_LEN, FRAME_MAGIC, FooterFields, FrameHeader, FrameType, HEADER_LEN,
};
use crate::frame::{FRAME_HEADER_LEN, FrameDraft, FrameInfo};
use crate::header::FileId;

/// Bytes of the footer's frame.
pub(crate) const FOOTER_LEN: u64 = FOOTER_FRAME_LEN as u64;

/// Figures of a finished snapshot.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Identity of the guest state.
    pub root_digest: Digest,
    /// Identity of the file.
    pub file_id: FileId,
    /// Bytes of the file.
    pub file_len: u64,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Bytes of encoded chunk payloads.
    pub stored_bytes: u64,
    /// Chunks by kind.
    pub chunks: ChunkCounts,
}

/// Returns whether the last 256 bytes of a file are a footer, sound or not (spec 10.2).
pub(crate) fn is_footer(tail: &[u8; FOOTER_FRAME_LEN]) -> bool {
    let frame = tail.starts_with(&FRAME_MAGIC) && tail.get(4) == Some(&FrameType::Footer.code());
    frame || tail.ends_with(&END_MAGIC)
}

/// Checks the last 256 bytes of a file (spec 10.1, 10.3, 10.4).
pub(crate) fn parse(tail: &[u8; FOOTER_FRAME_LEN], file_len: u64) -> Result<(FrameInfo, FooterFields)> {
    let offset = file_len.saturating_sub(FOOTER_LEN);
    let (head, payload) = tail
        .split_first_chunk::<{ FrameHeader::LEN }>()
        .ok_or(Corruption::Magic {})?;
    let frame = FrameInfo::parse(head, offset)?;
    frame.expect(FrameType::Footer, 0)?;
    let fields = parse_payload(&frame, frame.payload(payload)?)?;
    if fields.file_len != file_len {
        return Err(Corruption::FileLength {
            stored: fields.file_len,
            actual: file_len,
        }
        .into());
    }
    Ok((frame, fields))
}

/// Decodes the checked payload of the footer's frame.
pub(crate) fn parse_payload(frame: &FrameInfo, payload: &[u8]) -> Result<FooterFields> {
    let wrong_length = || Corruption::FrameLength {
        frame: frame.name(),
        offset: frame.offset,
        len_bytes: u64::from(frame.fields.stored_len),
    };
    let exact: &[u8; FooterFields::LEN] = payload.try_into().map_err(|_| Error::from(wrong_length()))?;
    let fields = FooterFields::decode(exact);
    let invalid = |field, value| {
        Error::from(Corruption::FooterTarget {
            offset: frame.offset,
            field,
            value,
        })
    };
    if fields.end_magic != END_MAGIC {
        return Err(invalid("end magic", u64::from_le_bytes(fields.end_magic)));
    }
    let inside = |offset: u64| {
        offset >= HEADER_LEN as u64
            && offset.is_multiple_of(8)
            && offset
                .checked_add(FRAME_HEADER_LEN)
                .is_some_and(|end| end <= frame.offset)
    };
    if !inside(fields.root_offset) {
        return Err(invalid("root offset", fields.root_offset));
    }
    if !inside(fields.directory_offset) || fields.directory_offset <= fields.root_offset {
        return Err(invalid("directory offset", fields.directory_offset));
    }
    Ok(fields)
}

/// Returns the counts by kind that the footer states.
pub(crate) fn counts(fields: &FooterFields) -> ChunkCounts {
    ChunkCounts {
        zero: fields.zero_chunks,
        fill: fields.fill_chunks,
        raw: fields.raw_chunks,
        zstd: fields.zstd_chunks,
        lz4: fields.lz4_chunks,
        duplicate: fields.duplicate_chunks,
        parent: fields.parent_chunks,
    }
}

/// Returns the figures that the footer states.
pub(crate) fn summary(fields: &FooterFields, memory_bytes: u64) -> Summary {
    Summary {
        root_digest: Digest(fields.root_digest),
        file_id: FileId(fields.file_id),
        file_len: fields.file_len,
        memory_bytes,
        stored_bytes: fields.stored_bytes,
        chunks: counts(fields),
    }
}

/// What the writer knows besides the summary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Targets {
    pub(crate) root_offset: u64,
    pub(crate) root_crc: u32,
    pub(crate) directory_offset: u64,
    pub(crate) directory_crc: u32,
    pub(crate) frame_count: u64,
    pub(crate) section_count: u32,
    pub(crate) header_crc: u32,
}

/// Appends the footer's frame.
pub(crate) fn append(summary: &Summary, targets: &Targets, out: &mut Vec<u8>) {
    let of = |kind| summary.chunks.of(kind);
    let fields = FooterFields {
        file_len: summary.file_len,
        root_offset: targets.root_offset,
        directory_offset: targets.directory_offset,
        root_crc: targets.root_crc,
        directory_crc: targets.directory_crc,
        root_digest: summary.root_digest.0,
        zero_chunks: of(ChunkKind::Zero),
        fill_chunks: of(ChunkKind::Fill),
        raw_chunks: of(ChunkKind::Raw),
        zstd_chunks: of(ChunkKind::Zstd),
        lz4_chunks: of(ChunkKind::Lz4),
        duplicate_chunks: of(ChunkKind::Duplicate),
        parent_chunks: of(ChunkKind::Parent),
        stored_bytes: summary.stored_bytes,
        frame_count: targets.frame_count,
        file_id: summary.file_id.0,
        header_crc: targets.header_crc,
        section_count: targets.section_count,
        reserved: [0; 24],
        end_magic: END_MAGIC,
    };
    let payload = fields.encode();
    FrameDraft::plain(FrameType::Footer, 0, &payload).append(&payload, out);
}
