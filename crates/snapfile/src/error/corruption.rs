//! The clauses of the specification that a file can break, one variant each.
//!
//! The message tells the structure, where it is and what is wrong; [`Corruption::clause`] tells the
//! clause, and [`Corruption::guest_ranges`] the guest memory that is lost with it.

use std::fmt;
use std::ops::Range;

use crate::digest::Digest;

/// Guest physical addresses, as half-open ranges in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct GuestRanges(pub Vec<Range<u64>>);

impl fmt::Display for GuestRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{:#x}-{:#x}", range.start, range.end)?;
        }
        Ok(())
    }
}

/// Declares the variants with their clause and message, so that the three cannot drift apart.
macro_rules! corruptions {
    ($(
        $clause:literal $doc:literal
        $name:ident { $($field:ident: $type:ty),* } => $message:literal,
    )*) => {
        /// A broken clause of the specification.
        #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
        #[non_exhaustive]
        #[expect(missing_docs, reason = "the fields are the numbers in the message of their variant")]
        pub enum Corruption {
            $(
                #[doc = concat!($clause, ": ", $doc)]
                #[error($message)]
                $name { $($field: $type),* },
            )*
        }

        impl Corruption {
            /// Names and clauses of all variants.
            #[cfg(test)]
            pub(crate) const CLAUSES: &'static [(&'static str, &'static str)] =
                &[$((stringify!($name), $clause),)*];

            /// Returns the clause of the specification that is broken, such as `8.4`.
            pub fn clause(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => $clause,)*
                }
            }

            /// Returns the name of the variant.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => stringify!($name),)*
                }
            }
        }
    };
}

corruptions! {
    "5.3" "a frame does not begin with the frame magic."
    FrameMagic { offset: u64 } => "frame at offset {offset:#x}: no frame magic",
    "5.4" "the checksum of a frame header is wrong."
    FrameChecksum { offset: u64, stored: u32, computed: u32 }
        => "frame header at offset {offset:#x}: checksum mismatch (stored {stored:#010x}, computed {computed:#010x})",
    "5.5" "a frame is longer than its type allows, or does not lie within the file."
    FrameLength { frame: &'static str, offset: u64, len_bytes: u64 }
        => "{frame} at offset {offset:#x}: {len_bytes} bytes do not fit",
    "5.6" "a frame header has a value that its type does not allow."
    FrameFields { frame: &'static str, offset: u64, field: &'static str }
        => "{frame} at offset {offset:#x}: invalid {field}",
    "5.7" "the checksum of a payload is wrong."
    PayloadChecksum { frame: &'static str, offset: u64, stored: u32, computed: u32 }
        => "{frame} at offset {offset:#x}: checksum mismatch (stored {stored:#010x}, computed {computed:#010x})",
    "5.8" "a frame stands where its type may not."
    FrameOrder { frame: &'static str, offset: u64 } => "{frame} at offset {offset:#x}: out of order",
    "5.9" "another frame is where one is said to be."
    FrameTarget { frame: &'static str, offset: u64 } => "offset {offset:#x}: not the {frame} that should be there",
    "6.1" "the file does not begin with the magic bytes."
    Magic {} => "header at offset 0x0: not a snapshot file",
    "6.2" "the checksum of the header is wrong."
    HeaderChecksum { stored: u32, computed: u32 }
        => "header at offset 0x0: checksum mismatch (stored {stored:#010x}, computed {computed:#010x})",
    "6.5" "a field of the header breaks its rule."
    HeaderField { field: &'static str, value: u64 } => "header at offset 0x0: invalid {field} {value}",
    "6.6" "the header does not agree with the memory map."
    HeaderCounts { field: &'static str, stored: u64, computed: u64 }
        => "header at offset 0x0: {field} is {stored}, by the memory map {computed}",
    "7.3" "the payload of a section is not laid out as it must be."
    SectionLayout { offset: u64, field: &'static str } => "section at offset {offset:#x}: invalid {field}",
    "7.4" "the body of a section does not decode to what its header says."
    SectionBody { offset: u64, name: String } => "section {name:?} at offset {offset:#x}: body does not decode",
    "7.5" "two sections have the same kind and name."
    SectionTwice { offset: u64, kind: u32, name: String }
        => "section {name:?} of kind {kind} at offset {offset:#x}: there are two of them",
    "7.6" "the memory map is malformed or not where it must be."
    MemoryMap { offset: u64, field: &'static str } => "memory map at offset {offset:#x}: invalid {field}",
    "7.7" "the directory is not laid out as it must be."
    DirectoryLayout { offset: u64, entry: u64, field: &'static str }
        => "directory at offset {offset:#x}: entry {entry}: invalid {field}",
    "7.8" "an offset in the directory is out of order."
    DirectoryOffset { offset: u64, entry: u64, section_offset: u64 }
        => "directory at offset {offset:#x}: entry {entry}: section offset {section_offset:#x} out of order",
    "7.9" "the directory does not agree with the sections."
    DirectoryMismatch { offset: u64, name: String, field: &'static str }
        => "directory: section {name:?} at offset {offset:#x}: {field} differs",
    "8.4" "the frame header of a chunk has a value that is not allowed."
    ChunkFrame { chunk: u64, offset: u64, field: &'static str, guest: GuestRanges }
        => "chunk {chunk} at offset {offset:#x}: invalid {field}; guest memory {guest}",
    "8.5" "the payload of a chunk does not decode."
    ChunkDecode { chunk: u64, offset: u64, guest: GuestRanges }
        => "chunk {chunk} at offset {offset:#x}: payload does not decode; guest memory {guest}",
    "8.6" "the checksum of a chunk's payload is wrong."
    ChunkChecksum { chunk: u64, offset: u64, stored: u32, computed: u32, guest: GuestRanges }
        => "chunk {chunk} at offset {offset:#x}: checksum mismatch (stored {stored:#010x}, computed {computed:#010x}); guest memory {guest}",
    "8.7" "a record of an extents frame is malformed."
    ExtentRecord { offset: u64, record: u64, field: &'static str }
        => "extents at offset {offset:#x}: record {record}: invalid {field}",
    "8.8" "a chunk is described twice."
    ChunkTwice { chunk: u64, offset: u64 } => "chunk {chunk}: described again at offset {offset:#x}",
    "8.9" "a chunk is not described."
    ChunkMissing { chunk: u64, count: u64, guest: GuestRanges }
        => "chunk {chunk}: not described, as {count} in all; guest memory {guest}",
    "8.10" "the source of a duplicate is not an earlier data chunk of the same digest."
    DuplicateSource { chunk: u64, source_chunk: u64, guest: GuestRanges }
        => "chunk {chunk}: invalid duplicate of chunk {source_chunk}; guest memory {guest}",
    "8.14" "the content of a chunk does not have the digest stated."
    ChunkDigest { chunk: u64, stored: Digest, computed: Digest, guest: GuestRanges }
        => "chunk {chunk}: digest mismatch (stored {stored}, computed {computed}); guest memory {guest}",
    "9.2" "an index leaf does not have the length of its entries."
    LeafLength { leaf: u64, offset: u64, guest: GuestRanges }
        => "index leaf {leaf} at offset {offset:#x}: wrong length; guest memory {guest}",
    "9.3" "the checksum of an index leaf is wrong."
    LeafChecksum { leaf: u64, offset: u64, stored: u32, computed: u32, guest: GuestRanges }
        => "index leaf {leaf} at offset {offset:#x}: checksum mismatch (stored {stored:#010x}, computed {computed:#010x}); guest memory {guest}",
    "9.4" "an index entry is malformed."
    IndexEntry { chunk: u64, field: &'static str, guest: GuestRanges }
        => "index entry of chunk {chunk}: invalid {field}; guest memory {guest}",
    "9.5" "the index root does not have the length of its entries."
    RootLength { offset: u64, len_bytes: u64 } => "index root at offset {offset:#x}: {len_bytes} is not its length",
    "9.6" "the index root names a leaf that cannot be there."
    RootEntry { offset: u64, leaf: u64, leaf_offset: u64, guest: GuestRanges }
        => "index root at offset {offset:#x}: leaf {leaf} cannot be at {leaf_offset:#x}; guest memory {guest}",
    "9.7" "an index entry does not agree with the frame it names."
    IndexFrame { chunk: u64, offset: u64, field: &'static str, guest: GuestRanges }
        => "chunk {chunk} at offset {offset:#x}: {field} differs from the index; guest memory {guest}",
    "9.8" "the index does not describe what the frames do."
    IndexMismatch { offset: u64 } => "index before offset {offset:#x}: differs from the frames",
    "10.3" "the length of the file is not what the footer states."
    FileLength { stored: u64, actual: u64 } => "footer: file length is {actual}, stated {stored}",
    "10.4" "the footer does not lead to index root and directory."
    FooterTarget { offset: u64, field: &'static str, value: u64 }
        => "footer at offset {offset:#x}: invalid {field} {value:#x}",
    "10.5" "the footer does not agree with the rest of the file."
    FooterField { offset: u64, field: &'static str } => "footer at offset {offset:#x}: {field} differs",
    "10.6" "the content does not have the root digest stated."
    RootDigest { stored: Digest, computed: Digest }
        => "root digest mismatch (stored {stored}, computed {computed})",
    "11.1" "a chunk is in the parent of a file that has none."
    UnexpectedParent { chunk: u64, guest: GuestRanges }
        => "chunk {chunk}: in the parent of a file that has none; guest memory {guest}",
    "11.4" "the digest of a chunk is not that of the parent's chunk."
    ParentDigest { chunk: u64, stored: Digest, found: Digest, guest: GuestRanges }
        => "chunk {chunk}: digest {stored}, in the parent {found}; guest memory {guest}",
}

impl Corruption {
    /// Returns the file offset of the broken structure, if it has one.
    pub fn offset(&self) -> Option<u64> {
        match self {
            Self::FrameMagic { offset }
            | Self::FrameChecksum { offset, .. }
            | Self::FrameLength { offset, .. }
            | Self::FrameFields { offset, .. }
            | Self::PayloadChecksum { offset, .. }
            | Self::FrameOrder { offset, .. }
            | Self::FrameTarget { offset, .. }
            | Self::SectionLayout { offset, .. }
            | Self::SectionBody { offset, .. }
            | Self::SectionTwice { offset, .. }
            | Self::MemoryMap { offset, .. }
            | Self::DirectoryLayout { offset, .. }
            | Self::DirectoryOffset { offset, .. }
            | Self::DirectoryMismatch { offset, .. }
            | Self::ChunkFrame { offset, .. }
            | Self::ChunkDecode { offset, .. }
            | Self::ChunkChecksum { offset, .. }
            | Self::ExtentRecord { offset, .. }
            | Self::ChunkTwice { offset, .. }
            | Self::LeafLength { offset, .. }
            | Self::LeafChecksum { offset, .. }
            | Self::RootLength { offset, .. }
            | Self::RootEntry { offset, .. }
            | Self::IndexFrame { offset, .. }
            | Self::IndexMismatch { offset }
            | Self::FooterTarget { offset, .. }
            | Self::FooterField { offset, .. } => Some(*offset),
            Self::Magic {}
            | Self::HeaderChecksum { .. }
            | Self::HeaderField { .. }
            | Self::HeaderCounts { .. } => Some(0),
            Self::ChunkMissing { .. }
            | Self::DuplicateSource { .. }
            | Self::ChunkDigest { .. }
            | Self::IndexEntry { .. }
            | Self::FileLength { .. }
            | Self::RootDigest { .. }
            | Self::UnexpectedParent { .. }
            | Self::ParentDigest { .. } => None,
        }
    }

    /// Returns the guest memory that cannot be trusted, if the structure covers a known part of it.
    pub fn guest_ranges(&self) -> Option<&GuestRanges> {
        match self {
            Self::ChunkFrame { guest, .. }
            | Self::ChunkDecode { guest, .. }
            | Self::ChunkChecksum { guest, .. }
            | Self::ChunkMissing { guest, .. }
            | Self::DuplicateSource { guest, .. }
            | Self::ChunkDigest { guest, .. }
            | Self::LeafLength { guest, .. }
            | Self::LeafChecksum { guest, .. }
            | Self::IndexEntry { guest, .. }
            | Self::RootEntry { guest, .. }
            | Self::IndexFrame { guest, .. }
            | Self::UnexpectedParent { guest, .. }
            | Self::ParentDigest { guest, .. } => Some(guest),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clause_is_in_the_specification_and_has_one_variant() {
        let spec = include_str!("../../../../fmt-spec/snapfile-v1.md");
        let mut seen = std::collections::BTreeSet::new();
        for (name, clause) in Corruption::CLAUSES {
            assert!(
                spec.contains(&format!("\n{clause} ")),
                "{name}: no clause {clause}"
            );
            assert!(seen.insert(clause), "{name}: clause {clause} has two variants");
        }
    }

    #[test]
    fn every_variant_has_a_test_vector() {
        let manifest = include_str!("../../../../fmt-spec/vectors/manifest.toml");
        for (name, clause) in Corruption::CLAUSES {
            let entry = format!("kind = \"corrupt\"\nclause = \"{clause}\"\n");
            assert!(
                manifest.contains(&entry),
                "{name}: no vector breaks clause {clause}"
            );
        }
    }
}
