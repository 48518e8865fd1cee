//! Header extensions, and what is read of those that the specification knows.

use crate::fields;
use crate::format;

/// Bytes of one entry of the feature name table.
const FEATURE_NAME_BYTES: usize = 48;

/// One header extension, as it is in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its type, `format::EXTENSION_*` or unknown.
    pub kind: u32,
    /// Its data without padding.
    pub data: Vec<u8>,
}

/// The name of one feature bit (qcow2 specification, feature name table).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// 0 incompatible, 1 compatible, 2 autoclear.
    pub kind: u8,
    /// Number of the bit.
    pub bit: u8,
    /// The name; what is not UTF-8 is replaced.
    pub name: String,
}

/// Names that are written into the feature name table of new images: kind, bit, name.
const KNOWN_FEATURES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

impl FeatureName {
    /// Reads the table; an entry that is cut is dropped.
    pub(crate) fn parse_table(data: &[u8]) -> Vec<Self> {
        let entries = data.chunks_exact(FEATURE_NAME_BYTES);
        entries.filter_map(Self::parse).collect()
    }

    fn parse(entry: &[u8]) -> Option<Self> {
        let [kind, bit, name @ ..] = entry else {
            return None;
        };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Self {
            kind: *kind,
            bit: *bit,
            name: String::from_utf8_lossy(name).into_owned(),
        })
    }

    /// Returns the table of the features that the specification has.
    pub(crate) fn known_table() -> Extension {
        let mut data = Vec::with_capacity(KNOWN_FEATURES.len() * FEATURE_NAME_BYTES);
        for (kind, bit, name) in KNOWN_FEATURES {
            let end = data.len() + FEATURE_NAME_BYTES;
            data.extend([kind, bit]);
            data.extend(name.as_bytes());
            data.resize(end, 0);
        }
        Extension {
            kind: format::EXTENSION_FEATURE_NAMES,
            data,
        }
    }
}

/// What the bitmaps extension says (qcow2 specification, bitmaps extension).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Number of bitmaps.
    pub bitmap_count: u32,
    /// Bytes of the bitmap directory.
    pub directory_bytes: u64,
    /// Offset of the bitmap directory.
    pub directory_offset: u64,
}

impl BitmapsExtension {
    /// Reads the extension; nothing if it is cut.
    pub(crate) fn parse(data: &[u8]) -> Option<Self> {
        Some(Self {
            bitmap_count: fields::u32_at(data, 0)?,
            directory_bytes: fields::u64_at(data, 8)?,
            directory_offset: fields::u64_at(data, 16)?,
        })
    }
}
