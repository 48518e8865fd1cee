//! The largest value of every count and length in a file (spec 13).
//!
//! Readers check each before they allocate, writers before they write, so that no file can be
//! written that cannot be read.

/// Smallest binary logarithm of the chunk size: 4 KiB.
pub const MIN_CHUNK_SIZE_LOG2: u8 = 12;
/// Largest binary logarithm of the chunk size: 2 MiB.
pub const MAX_CHUNK_SIZE_LOG2: u8 = 21;
/// Smallest binary logarithm of the entries in an index leaf.
pub const MIN_LEAF_ENTRIES_LOG2: u8 = 6;
/// Largest binary logarithm of the entries in an index leaf.
pub const MAX_LEAF_ENTRIES_LOG2: u8 = 14;
/// Most leaves that an index root can name: 16 MiB of root.
pub const MAX_LEAVES: u64 = 1 << 20;
/// Most memory regions.
pub const MAX_REGIONS: u64 = 1024;
/// First guest physical address that no region may reach beyond.
pub const MAX_GUEST_ADDRESS: u64 = 1 << 52;
/// Most bytes of guest memory in all regions: 64 TiB.
pub const MAX_MEMORY_BYTES: u64 = 1 << 46;
/// Most sections.
pub const MAX_SECTIONS: u64 = 4096;
/// Longest name of a section, in bytes.
pub const MAX_SECTION_NAME: u64 = 255;
/// Longest payload of a section, in bytes.
pub const MAX_SECTION_BYTES: u64 = 64 << 20;
/// Longest payload of all sections of a file together, in bytes.
pub const MAX_SECTIONS_BYTES: u64 = 1 << 30;
/// Most records in one extents frame.
pub const MAX_EXTENTS: u64 = 4096;
/// Longest producer string, in bytes.
pub const MAX_PRODUCER: u64 = 120;
/// Longest hint where the parent is, in bytes.
pub const MAX_PARENT_HINT: u64 = 2048;
/// Most files between a snapshot and the last of its parents.
pub const MAX_PARENT_DEPTH: usize = 64;
