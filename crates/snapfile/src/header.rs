//! The first page of the file (spec 6): what it is, who wrote it, how memory is cut.
//!
//! Its layout and checksum never change, so that any later program can at least say what a file
//! is. Unknown versions and features are told apart from damage: the checksum comes first.

use std::fmt;

use crate::digest::Digest;
use crate::error::{Corruption, Error, LimitExceeded, Result, Unsupported, Usage};
use crate::format::{self, HEADER_LEN, HeaderFields};
use crate::limits;
use crate::memory_map::{ChunkLayout, ChunkSize};

/// Major and minor version of the format that is written; every minor version is read.
pub const FORMAT_VERSION: (u16, u16) = (format::MAJOR, format::MINOR);

/// The processor architecture of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Architecture {
    /// x86-64.
    X86_64,
    /// A code that this version does not know.
    Unknown(u16),
}

impl Architecture {
    /// Returns the architecture with that code in the file.
    pub fn from_code(code: u16) -> Self {
        if code == format::ARCHITECTURE_X86_64 {
            Self::X86_64
        } else {
            Self::Unknown(code)
        }
    }

    /// Returns the code in the file.
    pub fn code(self) -> u16 {
        match self {
            Self::X86_64 => format::ARCHITECTURE_X86_64,
            Self::Unknown(code) => code,
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::X86_64 => f.write_str("x86-64"),
            Self::Unknown(code) => write!(f, "unknown ({code})"),
        }
    }
}

/// Random identity of one file; two files with equal content differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub [u8; 16]);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl serde::Serialize for FileId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The file that an incremental snapshot needs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ParentReference {
    /// Root digest that the parent must have.
    pub root_digest: Digest,
    /// Path where the parent was, relative to the directory of this file; may be stale or empty.
    pub hint: String,
}

/// What the header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Major version of the format.
    pub major: u16,
    /// Minor version of the format.
    pub minor: u16,
    /// Features that a reader must know to read the file.
    pub incompatible: u64,
    /// Features that a program must know to append to the file.
    pub read_only_compatible: u64,
    /// Features that may be ignored.
    pub compatible: u64,
    /// Bytes of guest memory per chunk.
    pub chunk_size: ChunkSize,
    /// Binary logarithm of the entries in an index leaf.
    pub leaf_entries_log2: u8,
    /// Architecture of the guest.
    pub architecture: Architecture,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Chunks in all regions.
    pub chunk_count: u64,
    /// Identity of the file.
    pub file_id: FileId,
    /// When the file was begun, in nanoseconds since the Unix epoch.
    pub created_unix_ns: u64,
    /// The parent, if the snapshot is incremental.
    pub parent: Option<ParentReference>,
    /// The program that wrote the file, such as `vmsnap 0.1.0`.
    pub producer: String,
}

impl Header {
    /// Decodes and checks the first page of a file.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self> {
        let fields = HeaderFields::decode(bytes);
        if fields.magic != format::MAGIC {
            return Err(Corruption::Magic {}.into());
        }
        let computed = checksum(bytes);
        if computed != fields.header_crc {
            return Err(Corruption::HeaderChecksum {
                stored: fields.header_crc,
                computed,
            }
            .into());
        }
        if fields.major != format::MAJOR {
            return Err(Unsupported::Version {
                major: fields.major,
                minor: fields.minor,
            }
            .into());
        }
        if fields.incompatible != 0 {
            return Err(Unsupported::Features {
                bits: fields.incompatible,
            }
            .into());
        }
        Self::from_fields(&fields)
    }

    /// Checks every field by its rule (spec 6.4).
    fn from_fields(fields: &HeaderFields) -> Result<Self> {
        let invalid = |field, value| Error::from(Corruption::HeaderField { field, value });
        if fields.page_size_log2 != format::PAGE_SIZE_LOG2 {
            return Err(invalid("page_size_log2", u64::from(fields.page_size_log2)));
        }
        let chunk_size = ChunkSize::from_log2(fields.chunk_size_log2)
            .ok_or_else(|| invalid("chunk_size_log2", u64::from(fields.chunk_size_log2)))?;
        let leaf_limits = limits::MIN_LEAF_ENTRIES_LOG2..=limits::MAX_LEAF_ENTRIES_LOG2;
        if !leaf_limits.contains(&fields.leaf_entries_log2) {
            return Err(invalid("leaf_entries_log2", u64::from(fields.leaf_entries_log2)));
        }
        LimitExceeded::check(
            "guest memory bytes",
            fields.memory_bytes,
            limits::MAX_MEMORY_BYTES,
        )?;
        let leaves = fields.chunk_count.div_ceil(1 << fields.leaf_entries_log2);
        LimitExceeded::check("index leaves", leaves, limits::MAX_LEAVES)?;
        let producer = string(&fields.producer, fields.producer_len)
            .ok_or_else(|| invalid("producer", u64::from(fields.producer_len)))?;
        let hint = string(&fields.parent_hint, fields.parent_hint_len)
            .ok_or_else(|| invalid("parent_hint", u64::from(fields.parent_hint_len)))?;
        let root_digest = Digest(fields.parent_root_digest);
        let parent = if fields.flags & format::HEADER_HAS_PARENT != 0 {
            Some(ParentReference { root_digest, hint })
        } else if hint.is_empty() && root_digest == Digest::NONE {
            None
        } else {
            return Err(invalid("flags", u64::from(fields.flags)));
        };
        Ok(Self {
            major: fields.major,
            minor: fields.minor,
            incompatible: fields.incompatible,
            read_only_compatible: fields.read_only_compatible,
            compatible: fields.compatible,
            chunk_size,
            leaf_entries_log2: fields.leaf_entries_log2,
            architecture: Architecture::from_code(fields.architecture),
            memory_bytes: fields.memory_bytes,
            chunk_count: fields.chunk_count,
            file_id: FileId(fields.file_id),
            created_unix_ns: fields.created_unix_ns,
            parent,
            producer,
        })
    }

    /// Encodes the header as the first page of a file.
    pub(crate) fn encode(&self) -> Result<[u8; HEADER_LEN]> {
        let parent = self.parent.as_ref();
        let hint = parent.map_or("", |parent| parent.hint.as_str());
        let (producer, producer_len) = string_field("producer", &self.producer)?;
        let (parent_hint, parent_hint_len) = string_field("parent hint", hint)?;
        let fields = HeaderFields {
            magic: format::MAGIC,
            major: self.major,
            minor: self.minor,
            architecture: self.architecture.code(),
            page_size_log2: format::PAGE_SIZE_LOG2,
            chunk_size_log2: self.chunk_size.log2(),
            incompatible: self.incompatible,
            read_only_compatible: self.read_only_compatible,
            compatible: self.compatible,
            leaf_entries_log2: self.leaf_entries_log2,
            flags: if parent.is_some() {
                format::HEADER_HAS_PARENT
            } else {
                0
            },
            producer_len,
            parent_hint_len,
            reserved_a: [0; 2],
            memory_bytes: self.memory_bytes,
            chunk_count: self.chunk_count,
            file_id: self.file_id.0,
            created_unix_ns: self.created_unix_ns,
            parent_root_digest: parent.map_or(Digest::NONE, |parent| parent.root_digest).0,
            producer,
            reserved_b: [0; 16],
            parent_hint,
            reserved_c: [0; 1788],
            header_crc: 0,
        };
        let header_crc = checksum(&fields.encode());
        Ok(HeaderFields { header_crc, ..fields }.encode())
    }

    /// Refuses a header that does not agree with the memory map (spec 6.6).
    pub(crate) fn check_layout(&self, layout: &ChunkLayout) -> Result<()> {
        let counts = [
            ("memory_bytes", self.memory_bytes, layout.memory_bytes()),
            ("chunk_count", self.chunk_count, layout.chunk_count()),
        ];
        for (field, stored, computed) in counts {
            if stored != computed {
                return Err(Corruption::HeaderCounts {
                    field,
                    stored,
                    computed,
                }
                .into());
            }
        }
        Ok(())
    }
}

/// Returns the checksum that belongs at the end of the header.
pub(crate) fn checksum(bytes: &[u8; HEADER_LEN]) -> u32 {
    crc32fast::hash(bytes.first_chunk::<{ HEADER_LEN - 4 }>().map_or(&[], |head| head))
}

/// Returns the first `len` bytes of a field as a string, if the rest is zero (spec 3.6).
fn string(field: &[u8], len: u16) -> Option<String> {
    let (used, rest) = field.split_at_checked(usize::from(len))?;
    let text = std::str::from_utf8(used).ok()?;
    (!used.contains(&0) && rest.iter().all(|byte| *byte == 0)).then(|| text.to_owned())
}

/// Returns a field of `N` bytes that holds `text`.
fn string_field<const N: usize>(what: &'static str, text: &str) -> Result<([u8; N], u16)> {
    LimitExceeded::check(what, text.len() as u64, N as u64)?;
    if text.contains('\0') {
        return Err(Usage::Nul { what }.into());
    }
    let mut field = [0; N];
    if let Some(used) = field.get_mut(..text.len()) {
        used.copy_from_slice(text.as_bytes());
    }
    Ok((field, u16::try_from(text.len()).unwrap_or(u16::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            major: 1,
            minor: 0,
            incompatible: 0,
            read_only_compatible: 0,
            compatible: 0,
            chunk_size: ChunkSize::DEFAULT,
            leaf_entries_log2: 10,
            architecture: Architecture::X86_64,
            memory_bytes: 0x20000,
            chunk_count: 2,
            file_id: FileId([9; 16]),
            created_unix_ns: 1,
            parent: Some(ParentReference {
                root_digest: Digest([3; 32]),
                hint: "base.vmsnap".to_owned(),
            }),
            producer: "test 1".to_owned(),
        }
    }

    #[test]
    fn header_comes_back_as_written() {
        for parent in [None, header().parent] {
            let header = Header { parent, ..header() };
            assert_eq!(Header::parse(&header.encode().unwrap()).unwrap(), header);
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = header().encode().unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(Header::parse(&damaged), Err(Error::Corrupt(_))),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn newer_minor_version_and_compatible_features_are_read() {
        let newer = Header {
            minor: 7,
            compatible: 1 << 63,
            read_only_compatible: 1,
            ..header()
        };
        assert_eq!(Header::parse(&newer.encode().unwrap()).unwrap(), newer);
    }

    #[test]
    fn newer_major_version_and_incompatible_features_are_refused_as_unsupported() {
        for newer in [
            Header { major: 2, ..header() },
            Header {
                incompatible: 4,
                ..header()
            },
        ] {
            let refused = Header::parse(&newer.encode().unwrap());
            assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
        }
    }

    #[test]
    fn strings_that_do_not_fit_are_refused_by_the_writer() {
        let long = Header {
            producer: "x".repeat(121),
            ..header()
        };
        assert!(matches!(long.encode(), Err(Error::LimitExceeded(_))));
        let nul = Header {
            producer: "a\0b".to_owned(),
            ..header()
        };
        assert!(matches!(nul.encode(), Err(Error::Usage(Usage::Nul { .. }))));
    }
}
