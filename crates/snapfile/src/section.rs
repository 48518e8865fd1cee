//! Typed, named payloads beside guest memory (spec 7).
//!
//! A section says of itself what it is; the directory repeats that for all of them, so that a
//! reader knows what is there without visiting each. The body is opaque here, but for the memory
//! map, whose encoding is in `section::map`; the directory's is in `section::directory`.

pub(crate) mod directory;
pub(crate) mod map;

use crate::chunk::ChunkKind;
use crate::codec;
use crate::digest::{Digest, StateSection};
use crate::error::{Corruption, Error, LimitExceeded, Result, Usage};
use crate::format::{FrameType, SECTION_STATE, SectionPrefix};
use crate::frame::{FrameDraft, FrameInfo, len_u32};
use crate::limits;

/// Bodies shorter than this are never compressed.
const MIN_COMPRESSED_BODY: usize = 1024;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SectionKind {
    /// The guest's memory regions; written by the writer itself.
    MemoryMap,
    /// State of a vCPU, a device or the virtual machine.
    VmState,
    /// What the host must offer for the guest to run.
    Platform,
    /// The guest's disks.
    DiskTable,
    /// Who made the snapshot, when and where, and free-form labels.
    Provenance,
    /// What the capture cost.
    Statistics,
    /// Order in which a restored guest touches its pages.
    WorkingSet,
    /// A signature of the root digest.
    Signature,
    /// A code that this version does not know.
    Unknown(u32),
}

impl SectionKind {
    /// Code, name and whether it is part of the guest's state (spec 7.2).
    const KNOWN: [(u32, Self, &'static str, bool); 8] = [
        (1, Self::MemoryMap, "memory map", false),
        (2, Self::VmState, "vmstate", true),
        (3, Self::Platform, "platform requirements", true),
        (4, Self::DiskTable, "disk table", true),
        (5, Self::Provenance, "provenance", false),
        (6, Self::Statistics, "capture statistics", false),
        (7, Self::WorkingSet, "working set", false),
        (8, Self::Signature, "signature", false),
    ];

    /// Returns the kind with that code in the file.
    pub fn from_code(code: u32) -> Self {
        let known = Self::KNOWN.iter().find(|row| row.0 == code);
        known.map_or(Self::Unknown(code), |row| row.1)
    }

    /// Returns the code in the file.
    pub fn code(self) -> u32 {
        match self {
            Self::Unknown(code) => code,
            known => Self::KNOWN
                .iter()
                .find(|row| row.1 == known)
                .map_or(0, |row| row.0),
        }
    }

    /// Returns the kind's name for messages.
    pub fn name(self) -> &'static str {
        Self::KNOWN
            .iter()
            .find(|row| row.1 == self)
            .map_or("unknown", |row| row.2)
    }

    /// Returns whether sections of this kind are part of the root digest; `None` if the kind is unknown.
    pub fn is_state(self) -> Option<bool> {
        Self::KNOWN.iter().find(|row| row.1 == self).map(|row| row.3)
    }
}

/// How the payload of a section is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encoding {
    /// Bytes whose meaning the kind defines.
    Bytes,
    /// One CBOR map.
    Cbor,
    /// A code that this version does not know.
    Unknown(u8),
}

impl Encoding {
    /// Returns the encoding with that code in the file.
    pub fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Bytes,
            1 => Self::Cbor,
            unknown => Self::Unknown(unknown),
        }
    }

    /// Returns the code in the file.
    pub fn code(self) -> u8 {
        match self {
            Self::Bytes => 0,
            Self::Cbor => 1,
            Self::Unknown(code) => code,
        }
    }
}

/// A section with its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// Its name, unique among the sections of its kind; at most 255 bytes.
    pub name: String,
    /// Version of the payload's schema.
    pub version: u32,
    /// Encoding of the payload.
    pub encoding: Encoding,
    /// The plain payload.
    pub payload: Vec<u8>,
}

/// A section as the directory lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionEntry {
    /// What it holds.
    pub kind: SectionKind,
    /// Its name.
    pub name: String,
    /// Version of the payload's schema.
    pub version: u32,
    /// Encoding of the payload.
    pub encoding: Encoding,
    /// Whether it is part of the guest's state and so of the root digest.
    pub state: bool,
    /// Offset of its frame in the file.
    pub offset: u64,
    /// Bytes of the plain payload.
    pub len_bytes: u32,
    /// Bytes of the frame's payload.
    pub stored_len: u32,
    /// BLAKE3 of the plain payload.
    pub digest: Digest,
}

impl SectionEntry {
    /// Returns what enters the root digest, if the section is part of the guest's state.
    pub(crate) fn as_state(&self) -> Option<StateSection> {
        self.state.then(|| StateSection {
            kind: self.kind.code(),
            name: self.name.clone(),
            version: self.version,
            len_bytes: u64::from(self.len_bytes),
            digest: self.digest,
        })
    }

    /// Decodes the checked payload of a section's frame to its entry and its body as stored (spec 7.3).
    pub(crate) fn parse<'a>(frame: &FrameInfo, payload: &'a [u8]) -> Result<(Self, &'a [u8])> {
        let invalid = |field| {
            Error::from(Corruption::SectionLayout {
                offset: frame.offset,
                field,
            })
        };
        let mut rest = payload;
        let prefix = SectionPrefix::split_from(&mut rest).ok_or_else(|| invalid("length"))?;
        LimitExceeded::check(
            "section name bytes",
            u64::from(prefix.name_len),
            limits::MAX_SECTION_NAME,
        )?;
        let (name, body) = rest
            .split_at_checked(usize::from(prefix.name_len))
            .ok_or_else(|| invalid("length"))?;
        let name = section_name(name).ok_or_else(|| invalid("name"))?;
        let kind = SectionKind::from_code(prefix.kind);
        let state = prefix.flags & SECTION_STATE != 0;
        if kind.is_state().is_some_and(|expected| expected != state) {
            return Err(invalid("state flag"));
        }
        let plain_len = frame.fields.plain_len;
        LimitExceeded::check("section bytes", u64::from(plain_len), limits::MAX_SECTION_BYTES)?;
        if frame.kind == ChunkKind::Raw && body.len() as u64 != u64::from(plain_len) {
            return Err(invalid("body length"));
        }
        let entry = Self {
            kind,
            name,
            version: prefix.version,
            encoding: Encoding::from_code(prefix.encoding),
            state,
            offset: frame.offset,
            len_bytes: plain_len,
            stored_len: frame.fields.stored_len,
            digest: frame.digest(),
        };
        Ok((entry, body))
    }

    /// Decodes a body as stored in the section's frame, and checks it by its digest (spec 7.4).
    pub(crate) fn decode_body(&self, frame: &FrameInfo, stored: &[u8]) -> Result<Vec<u8>> {
        let body = match frame.kind {
            ChunkKind::Zstd => codec::decompress_section(stored, self.len_bytes)?,
            _ => Some(stored.to_vec()),
        };
        match body {
            Some(body) if Digest::of(&body) == self.digest => Ok(body),
            _ => Err(Corruption::SectionBody {
                offset: self.offset,
                name: self.name.clone(),
            }
            .into()),
        }
    }
}

/// Returns the bytes as the name of a section, if they are one (spec 3.6).
fn section_name(bytes: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(bytes).ok()?;
    (!bytes.contains(&0)).then(|| name.to_owned())
}

impl Section {
    /// Appends the section's frame to `out`; `number` is its place among the sections, `offset` in the file.
    pub(crate) fn append(
        &self,
        number: u64,
        offset: u64,
        state: bool,
        out: &mut Vec<u8>,
    ) -> Result<SectionEntry> {
        LimitExceeded::check(
            "section name bytes",
            self.name.len() as u64,
            limits::MAX_SECTION_NAME,
        )?;
        LimitExceeded::check(
            "section bytes",
            self.payload.len() as u64,
            limits::MAX_SECTION_BYTES,
        )?;
        if self.name.contains('\0') {
            return Err(Usage::Nul { what: "section name" }.into());
        }
        let mut kind = ChunkKind::Raw;
        let mut compressed = None;
        if self.payload.len() >= MIN_COMPRESSED_BODY && self.kind != SectionKind::MemoryMap {
            compressed = codec::compress_section(&self.payload)?;
        }
        if compressed.is_some() {
            kind = ChunkKind::Zstd;
        }
        let prefix = SectionPrefix {
            kind: self.kind.code(),
            version: self.version,
            encoding: self.encoding.code(),
            flags: if state { SECTION_STATE } else { 0 },
            name_len: u16::try_from(self.name.len()).unwrap_or(u16::MAX),
            reserved: [0; 4],
        };
        let body = compressed.as_deref().unwrap_or(&self.payload);
        let payload = [prefix.encode().as_slice(), self.name.as_bytes(), body].concat();
        let digest = Digest::of(&self.payload);
        let plain_len = len_u32(&self.payload);
        let frame_type = FrameType::Section.code();
        FrameDraft {
            frame_type,
            kind,
            key: number,
            plain_len,
            digest,
        }
        .append(&payload, out);
        Ok(SectionEntry {
            kind: self.kind,
            name: self.name.clone(),
            version: self.version,
            encoding: self.encoding,
            state,
            offset,
            len_bytes: plain_len,
            stored_len: len_u32(&payload),
            digest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_equal_the_table_of_the_specification() {
        let spec = include_str!("../../../fmt-spec/snapfile-v1.md");
        for (code, kind, name, state) in SectionKind::KNOWN {
            let row = format!("| {code} | {name} | {} |", if state { "yes" } else { "no" });
            assert!(spec.contains(&row), "{row}");
            assert_eq!((SectionKind::from_code(code), kind.code()), (kind, code));
        }
    }
}
