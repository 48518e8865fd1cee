//! Frames: what every range of the file after the header is wrapped in (spec 5).
//!
//! A [`FrameInfo`] exists only for a frame header whose magic, checksum, type and length are
//! right, so that whoever holds one may rely on its numbers, and has the payload's checksum still
//! to check.

use crate::chunk::ChunkKind;
use crate::digest::Digest;
use crate::error::{Corruption, Error, Result, Unsupported};
use crate::format::{
    DirectoryEntry, ExtentRecord, FIRST_SKIPPABLE_TYPE, FRAME_MAGIC, FooterFields, FrameHeader, FrameType,
    IndexEntry, RootEntry, SectionPrefix, align8,
};
use crate::limits;

/// Bytes of a frame header.
pub(crate) const FRAME_HEADER_LEN: u64 = FrameHeader::LEN as u64;

/// Bytes of a frame header that its own checksum covers.
const CHECKED_LEN: usize = FrameHeader::LEN - 4;

/// A frame header that has been checked, and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameInfo {
    /// Offset of the frame in the file.
    pub(crate) offset: u64,
    /// Its type; `None` if the type is unknown and may be skipped.
    pub(crate) frame_type: Option<FrameType>,
    /// How the payload is stored.
    pub(crate) kind: ChunkKind,
    /// The header's fields.
    pub(crate) fields: FrameHeader,
}

impl FrameInfo {
    /// Checks the frame header at `offset` (spec 5.3 to 5.6).
    pub(crate) fn parse(bytes: &[u8; FrameHeader::LEN], offset: u64) -> Result<Self> {
        let fields = FrameHeader::decode(bytes);
        if fields.magic != FRAME_MAGIC {
            return Err(Corruption::FrameMagic { offset }.into());
        }
        let computed = crc32fast::hash(bytes.first_chunk::<CHECKED_LEN>().map_or(&[], |head| head));
        if computed != fields.header_crc {
            let stored = fields.header_crc;
            return Err(Corruption::FrameChecksum {
                offset,
                stored,
                computed,
            }
            .into());
        }
        let frame_type = FrameType::from_code(fields.frame_type);
        if frame_type.is_none() && fields.frame_type < FIRST_SKIPPABLE_TYPE {
            return Err(Unsupported::FrameType {
                offset,
                frame_type: fields.frame_type,
            }
            .into());
        }
        let frame = frame_type.map_or("frame", FrameType::name);
        if u64::from(fields.stored_len) > max_payload(frame_type) {
            let len_bytes = u64::from(fields.stored_len);
            return Err(Corruption::FrameLength {
                frame,
                offset,
                len_bytes,
            }
            .into());
        }
        let kind = ChunkKind::from_code(fields.kind).filter(|kind| match frame_type {
            Some(FrameType::Data) => kind.is_data(),
            Some(FrameType::Section) => matches!(kind, ChunkKind::Raw | ChunkKind::Zstd),
            Some(_) => *kind == ChunkKind::Raw,
            None => true,
        });
        let invalid = |field| Error::from(Corruption::FrameFields { frame, offset, field });
        let info = Self {
            offset,
            frame_type,
            kind: kind.ok_or_else(|| invalid("kind"))?,
            fields,
        };
        if !matches!(frame_type, Some(FrameType::Data | FrameType::Section) | None) {
            if fields.plain_len != fields.stored_len {
                return Err(invalid("plain length"));
            }
            if fields.key != 0 && frame_type != Some(FrameType::Leaf) {
                return Err(invalid("key"));
            }
        }
        Ok(info)
    }

    /// Returns the name of the frame's type for messages.
    pub(crate) fn name(&self) -> &'static str {
        self.frame_type.map_or("unknown frame", FrameType::name)
    }

    /// Returns the bytes of payload and padding.
    pub(crate) fn padded_len(&self) -> u64 {
        align8(u64::from(self.fields.stored_len))
    }

    /// Returns the offset of the first byte after the frame.
    pub(crate) fn end(&self) -> u64 {
        self.offset
            .saturating_add(FRAME_HEADER_LEN)
            .saturating_add(self.padded_len())
    }

    /// Returns the digest in the frame header.
    pub(crate) fn digest(&self) -> Digest {
        Digest(self.fields.digest)
    }

    /// Returns the payload without its padding, if the checksum over both is right (spec 5.7).
    pub(crate) fn payload<'a>(&self, padded: &'a [u8]) -> Result<&'a [u8]> {
        let mismatch = |(stored, computed)| Corruption::PayloadChecksum {
            frame: self.name(),
            offset: self.offset,
            stored,
            computed,
        };
        Ok(self.checked_payload(padded).map_err(mismatch)?)
    }

    /// As [`Self::payload`], but fails with the checksums stored and computed.
    pub(crate) fn checked_payload<'a>(&self, padded: &'a [u8]) -> std::result::Result<&'a [u8], (u32, u32)> {
        let computed = crc32fast::hash(padded);
        let stored = self.fields.payload_crc;
        let len = usize::try_from(self.fields.stored_len).unwrap_or(usize::MAX);
        match padded.get(..len) {
            Some(payload) if computed == stored => Ok(payload),
            _ => Err((stored, computed)),
        }
    }

    /// Refuses a frame of another type or key than a structure says is there (spec 5.9).
    pub(crate) fn expect(&self, frame_type: FrameType, key: u64) -> Result<()> {
        if self.frame_type == Some(frame_type) && self.fields.key == key {
            return Ok(());
        }
        Err(Corruption::FrameTarget {
            frame: frame_type.name(),
            offset: self.offset,
        }
        .into())
    }
}

/// Returns the longest payload that a type may have (spec 13.2).
fn max_payload(frame_type: Option<FrameType>) -> u64 {
    let entries = |len: usize, count: u64| (len as u64) * count;
    match frame_type {
        Some(FrameType::Section) => {
            entries(SectionPrefix::LEN, 1) + limits::MAX_SECTION_NAME + limits::MAX_SECTION_BYTES
        }
        Some(FrameType::Data) => 1 << limits::MAX_CHUNK_SIZE_LOG2,
        Some(FrameType::Extents) => entries(ExtentRecord::LEN, limits::MAX_EXTENTS),
        Some(FrameType::Leaf) => entries(IndexEntry::LEN, 1 << limits::MAX_LEAF_ENTRIES_LOG2),
        Some(FrameType::Root) => entries(RootEntry::LEN, limits::MAX_LEAVES),
        Some(FrameType::Directory) => {
            (entries(DirectoryEntry::LEN, 1) + align8(limits::MAX_SECTION_NAME)) * limits::MAX_SECTIONS
        }
        Some(FrameType::Footer) => entries(FooterFields::LEN, 1),
        Some(FrameType::Padding) | None => limits::MAX_SKIPPED_BYTES,
    }
}

/// What a writer states about a frame; checksums and padding follow from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameDraft {
    /// Code of the type.
    pub(crate) frame_type: u8,
    /// How the payload is stored.
    pub(crate) kind: ChunkKind,
    /// Chunk, leaf or section number, or 0.
    pub(crate) key: u64,
    /// Bytes before compression.
    pub(crate) plain_len: u32,
    /// Digest of the content.
    pub(crate) digest: Digest,
}

impl FrameDraft {
    /// Drafts a frame whose payload is stored as it is and has no digest.
    pub(crate) fn plain(frame_type: FrameType, key: u64, payload: &[u8]) -> Self {
        let plain_len = len_u32(payload);
        Self {
            frame_type: frame_type.code(),
            kind: ChunkKind::Raw,
            key,
            plain_len,
            digest: Digest::NONE,
        }
    }

    /// Returns the frame header for `payload`, which is followed by zeros up to a multiple of 8.
    pub(crate) fn header(&self, payload: &[u8]) -> FrameHeader {
        let mut fields = FrameHeader {
            magic: FRAME_MAGIC,
            frame_type: self.frame_type,
            kind: self.kind.code(),
            flags: 0,
            key: self.key,
            stored_len: len_u32(payload),
            plain_len: self.plain_len,
            digest: self.digest.0,
            payload_crc: padded_checksum(payload),
            header_crc: 0,
        };
        let bytes = fields.encode();
        fields.header_crc = crc32fast::hash(bytes.first_chunk::<CHECKED_LEN>().map_or(&[], |head| head));
        fields
    }

    /// Appends the whole frame to `out` and returns its header.
    pub(crate) fn append(&self, payload: &[u8], out: &mut Vec<u8>) -> FrameHeader {
        let header = self.header(payload);
        append(&header, payload, out);
        header
    }
}

/// Appends a frame: header, payload, padding.
pub(crate) fn append(header: &FrameHeader, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(payload);
    out.extend_from_slice(padding(payload.len()));
}

/// Returns the zeros that follow a payload of `len` bytes.
fn padding(len: usize) -> &'static [u8] {
    const ZEROS: [u8; 8] = [0; 8];
    ZEROS.get(..len.wrapping_neg() % 8).unwrap_or(&ZEROS)
}

/// Returns the checksum of a payload and its padding.
pub(crate) fn padded_checksum(payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(payload);
    hasher.update(padding(payload.len()));
    hasher.finalize()
}

/// Returns the length of a payload of ours, which the limits keep far below 4 GiB.
pub(crate) fn len_u32(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}
