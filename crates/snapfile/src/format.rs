//! The bytes of the file: every structure, magic number and code of the specification.
//!
//! Nothing here checks anything; the modules named like the structures do. Offsets stand beside
//! the fields as in the tables of `fmt-spec/snapfile-v1.md`, and a test compares the two.

use crate::fields::on_disk;

/// First bytes of the file (spec 6.1).
pub(crate) const MAGIC: [u8; 8] = *b"\x89VMS\r\n\x1a\n";
/// First bytes of every frame (spec 5.3).
pub(crate) const FRAME_MAGIC: [u8; 4] = *b"VMFR";
/// Last bytes of the file (spec 10.1).
pub(crate) const END_MAGIC: [u8; 8] = *b"VMSEND\r\n";
/// Domain of the root digest (spec 8.16).
pub(crate) const ROOT_DOMAIN: [u8; 16] = *b"vmsnap root v1\0\0";

/// Version of the format that is written (spec 6.3).
pub(crate) const MAJOR: u16 = 1;
/// Minor version of the format that is written (spec 6.3).
pub(crate) const MINOR: u16 = 0;
/// Code of x86-64 (spec 6.4).
pub(crate) const ARCHITECTURE_X86_64: u16 = 1;
/// Binary logarithm of the page size (spec 6.4).
pub(crate) const PAGE_SIZE_LOG2: u8 = 12;
/// Header flag: the snapshot has a parent (spec 6.4).
pub(crate) const HEADER_HAS_PARENT: u8 = 1;
/// Section flag: the section is part of the root digest (spec 7.1).
pub(crate) const SECTION_STATE: u8 = 1;
/// Version of the memory map's schema (spec 7.6).
pub(crate) const MEMORY_MAP_VERSION: u32 = 1;

/// Bytes of the header, and so the offset of the first frame (spec 5.1).
pub(crate) const HEADER_LEN: usize = HeaderFields::LEN;
/// Bytes of the footer with its frame header (spec 10.1).
pub(crate) const FOOTER_FRAME_LEN: usize = FrameHeader::LEN + FooterFields::LEN;

on_disk! {
    /// Fixed first bytes of the file (spec 6.4).
    struct HeaderFields: 4096 {
        /// Must be [`MAGIC`].
        0 => magic: [u8; 8],
        /// Must be [`MAJOR`].
        8 => major: u16,
        /// Any value.
        10 => minor: u16,
        /// Architecture of the guest.
        12 => architecture: u16,
        /// Must be [`PAGE_SIZE_LOG2`].
        14 => page_size_log2: u8,
        /// Must be within its limits.
        15 => chunk_size_log2: u8,
        /// Bits a reader must know or refuse the file (spec 12.2).
        16 => incompatible: u64,
        /// Bits that must be known by whoever appends (spec 12.3).
        24 => read_only_compatible: u64,
        /// Bits that may be ignored (spec 12.4).
        32 => compatible: u64,
        /// Must be within its limits.
        40 => leaf_entries_log2: u8,
        /// [`HEADER_HAS_PARENT`] or nothing.
        41 => flags: u8,
        /// Bytes of `producer` in use.
        42 => producer_len: u16,
        /// Bytes of `parent_hint` in use.
        44 => parent_hint_len: u16,
        /// Reserved.
        46 => reserved_a: [u8; 2],
        /// Must be the sum of all regions (spec 6.6).
        48 => memory_bytes: u64,
        /// Must be the chunks of all regions (spec 6.6).
        56 => chunk_count: u64,
        /// Random identity of the file.
        64 => file_id: [u8; 16],
        /// When the file was begun.
        80 => created_unix_ns: u64,
        /// Root digest of the parent, or zero.
        88 => parent_root_digest: [u8; 32],
        /// Program that wrote the file.
        120 => producer: [u8; 120],
        /// Reserved.
        240 => reserved_b: [u8; 16],
        /// Where the parent was.
        256 => parent_hint: [u8; 2048],
        /// Reserved.
        2304 => reserved_c: [u8; 1788],
        /// Checksum of all bytes before it (spec 6.2).
        4092 => header_crc: u32,
    }
}

on_disk! {
    /// What stands before every payload (spec 5.2).
    struct FrameHeader: 64 {
        /// Must be [`FRAME_MAGIC`].
        0 => magic: [u8; 4],
        /// A [`FrameType`] code.
        4 => frame_type: u8,
        /// How the payload is stored, a code of spec 8.3.
        5 => kind: u8,
        /// Reserved.
        6 => flags: u16,
        /// Chunk, leaf or section number, or 0.
        8 => key: u64,
        /// Bytes of the payload without padding.
        16 => stored_len: u32,
        /// Bytes before compression.
        20 => plain_len: u32,
        /// Digest of the content, or zero.
        24 => digest: [u8; 32],
        /// Checksum of payload and padding (spec 5.7).
        56 => payload_crc: u32,
        /// Checksum of the 60 bytes before (spec 5.4).
        60 => header_crc: u32,
    }
}

on_disk! {
    /// What stands before the name and the body of a section (spec 7.1).
    struct SectionPrefix: 16 {
        /// A code of spec 7.2.
        0 => kind: u32,
        /// Version of the body's schema.
        4 => version: u32,
        /// Encoding of the body.
        8 => encoding: u8,
        /// [`SECTION_STATE`] or nothing.
        9 => flags: u8,
        /// Bytes of the name.
        10 => name_len: u16,
        /// Reserved.
        12 => reserved: [u8; 4],
    }
}

on_disk! {
    /// First bytes of the memory map (spec 7.6).
    struct MapPrefix: 16 {
        /// Number of region records that follow.
        0 => region_count: u32,
        /// Reserved.
        4 => reserved: [u8; 12],
    }
}

on_disk! {
    /// One region of the memory map (spec 7.6).
    struct MapRegion: 32 {
        /// First guest physical address.
        0 => guest_address: u64,
        /// Length in bytes.
        8 => len_bytes: u64,
        /// Reserved.
        16 => reserved: [u8; 16],
    }
}

on_disk! {
    /// What stands before the name of a section in the directory (spec 7.7).
    struct DirectoryEntry: 64 {
        /// Offset of the section's frame.
        0 => offset: u64,
        /// As in the section.
        8 => kind: u32,
        /// As in the section.
        12 => version: u32,
        /// As in the frame header.
        16 => stored_len: u32,
        /// As in the frame header.
        20 => plain_len: u32,
        /// As in the section.
        24 => encoding: u8,
        /// As in the section.
        25 => flags: u8,
        /// As in the section.
        26 => name_len: u16,
        /// Reserved.
        28 => reserved: [u8; 4],
        /// As in the frame header.
        32 => digest: [u8; 32],
    }
}

on_disk! {
    /// A run of chunks without a frame of their own (spec 8.7).
    struct ExtentRecord: 64 {
        /// First chunk described.
        0 => first_chunk: u64,
        /// Chunks described; 1 unless they are zero.
        8 => count: u64,
        /// Zero, fill, duplicate or parent.
        16 => kind: u8,
        /// Reserved.
        17 => reserved: [u8; 7],
        /// Pattern or source.
        24 => value: u64,
        /// Digest of the chunk, or zero.
        32 => digest: [u8; 32],
    }
}

on_disk! {
    /// Where a chunk is (spec 9.2).
    struct IndexEntry: 48 {
        /// Frame offset, pattern or source.
        0 => location: u64,
        /// Bytes of the payload.
        8 => stored_len: u32,
        /// A code of spec 8.3.
        12 => kind: u8,
        /// Reserved.
        13 => reserved: [u8; 3],
        /// Digest of the chunk, or zero.
        16 => digest: [u8; 32],
    }
}

on_disk! {
    /// Where an index leaf is (spec 9.5).
    struct RootEntry: 16 {
        /// Offset of the leaf's frame, or 0.
        0 => offset: u64,
        /// The leaf's payload checksum.
        8 => leaf_crc: u32,
        /// Reserved.
        12 => reserved: [u8; 4],
    }
}

on_disk! {
    /// Payload of the last frame (spec 10.1).
    struct FooterFields: 192 {
        /// Bytes of the whole file.
        0 => file_len: u64,
        /// Offset of the index root's frame.
        8 => root_offset: u64,
        /// Offset of the directory's frame.
        16 => directory_offset: u64,
        /// Payload checksum of the index root.
        24 => root_crc: u32,
        /// Payload checksum of the directory.
        28 => directory_crc: u32,
        /// Identity of the guest state (spec 8.16).
        32 => root_digest: [u8; 32],
        /// Chunks of kind zero.
        64 => zero_chunks: u64,
        /// Chunks of kind fill.
        72 => fill_chunks: u64,
        /// Chunks of kind raw.
        80 => raw_chunks: u64,
        /// Chunks of kind zstd.
        88 => zstd_chunks: u64,
        /// Chunks of kind lz4.
        96 => lz4_chunks: u64,
        /// Chunks of kind duplicate.
        104 => duplicate_chunks: u64,
        /// Chunks of kind parent.
        112 => parent_chunks: u64,
        /// Bytes of the payloads of all data frames.
        120 => stored_bytes: u64,
        /// Frames before the footer.
        128 => frame_count: u64,
        /// As in the header.
        136 => file_id: [u8; 16],
        /// As in the header.
        152 => header_crc: u32,
        /// Entries of the directory.
        156 => section_count: u32,
        /// Reserved.
        160 => reserved: [u8; 24],
        /// Must be [`END_MAGIC`].
        184 => end_magic: [u8; 8],
    }
}

/// The types of frames that this version knows (spec 5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameType {
    /// A named payload.
    Section,
    /// An encoded chunk.
    Data,
    /// Chunks that need no frame of their own.
    Extents,
    /// Nothing.
    Padding,
    /// A block of the index.
    Leaf,
    /// The index root.
    Root,
    /// The list of sections.
    Directory,
    /// The end of the file.
    Footer,
}

impl FrameType {
    const ALL: [(u8, Self, &'static str); 8] = [
        (1, Self::Section, "section"),
        (2, Self::Data, "data frame"),
        (3, Self::Extents, "extents"),
        (4, Self::Padding, "padding"),
        (5, Self::Leaf, "index leaf"),
        (6, Self::Root, "index root"),
        (7, Self::Directory, "directory"),
        (8, Self::Footer, "footer"),
    ];

    /// Returns the type with that code.
    pub(crate) fn from_code(code: u8) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, ..)| *known == code)
            .map(|&(_, frame_type, _)| frame_type)
    }

    fn row(self) -> (u8, &'static str) {
        let row = Self::ALL.iter().find(|(_, frame_type, _)| *frame_type == self);
        row.map_or((0, "frame"), |&(code, _, name)| (code, name))
    }

    /// Returns the code.
    pub(crate) fn code(self) -> u8 {
        self.row().0
    }

    /// Returns the name for messages.
    pub(crate) fn name(self) -> &'static str {
        self.row().1
    }
}

/// Codes from here on may be skipped by readers that do not know them (spec 5.6).
pub(crate) const FIRST_SKIPPABLE_TYPE: u8 = 128;

/// Returns the smallest multiple of 8 that is not less than `len` (spec 3.7).
pub(crate) fn align8(len: u64) -> u64 {
    len.saturating_add(7) & !7
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = include_str!("../../../fmt-spec/snapfile-v1.md");

    /// Returns the rows `offset, size, field` of the table that follows the marker.
    fn spec_table(structure: &str) -> Vec<(String, usize, usize)> {
        let marker = format!("<!-- layout: {structure} -->");
        let (_, after) = SPEC.split_once(&marker).expect("the specification has the table");
        let rows = after
            .trim_start()
            .lines()
            .take_while(|line| line.starts_with('|'))
            .skip(2);
        rows.map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (
                cells[3].to_owned(),
                cells[1].parse().unwrap(),
                cells[2].parse().unwrap(),
            )
        })
        .collect()
    }

    #[test]
    fn structures_equal_the_tables_of_the_specification() {
        let structures = [
            ("HeaderFields", HeaderFields::FIELDS),
            ("FrameHeader", FrameHeader::FIELDS),
            ("SectionPrefix", SectionPrefix::FIELDS),
            ("MapPrefix", MapPrefix::FIELDS),
            ("MapRegion", MapRegion::FIELDS),
            ("DirectoryEntry", DirectoryEntry::FIELDS),
            ("ExtentRecord", ExtentRecord::FIELDS),
            ("IndexEntry", IndexEntry::FIELDS),
            ("RootEntry", RootEntry::FIELDS),
            ("FooterFields", FooterFields::FIELDS),
        ];
        for (name, fields) in structures {
            let fields: Vec<_> = fields
                .iter()
                .map(|&(field, at, size)| (field.to_owned(), at, size))
                .collect();
            assert_eq!(spec_table(name), fields, "{name}");
        }
        assert_eq!(SPEC.matches("<!-- layout: ").count(), structures.len());
    }

    #[test]
    fn frame_types_equal_the_table_of_the_specification() {
        for (code, frame_type, _) in FrameType::ALL {
            let row = format!("| {code} | {}", format!("{frame_type:?}").to_uppercase());
            assert!(SPEC.contains(&row), "{row}");
            assert_eq!(FrameType::from_code(frame_type.code()), Some(frame_type));
        }
    }

    #[test]
    fn encoding_is_little_endian_at_the_stated_offsets() {
        let record = IndexEntry {
            location: 0x0102_0304_0506_0708,
            stored_len: 0x0a0b_0c0d,
            kind: 3,
            reserved: [0; 3],
            digest: [7; 32],
        };
        let bytes = record.encode();
        assert_eq!(bytes[..13], [8, 7, 6, 5, 4, 3, 2, 1, 0x0d, 0x0c, 0x0b, 0x0a, 3]);
        assert_eq!(IndexEntry::decode(&bytes), record);
    }
}
