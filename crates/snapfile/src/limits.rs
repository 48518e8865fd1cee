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
/// Longest payload of a padding frame or of one that may be skipped, in bytes.
pub const MAX_SKIPPED_BYTES: u64 = 64 << 20;
/// Longest producer string, in bytes.
pub const MAX_PRODUCER: u64 = 120;
/// Longest hint where the parent is, in bytes.
pub const MAX_PARENT_HINT: u64 = 2048;
/// Most files between a snapshot and the last of its parents.
pub const MAX_PARENT_DEPTH: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_equal_the_table_of_the_specification() {
        let spec = include_str!("../../../fmt-spec/snapfile-v1.md");
        let (_, table) = spec
            .split_once("<!-- limits -->")
            .expect("the specification has the table");
        let expected = [
            ("MAX_REGIONS", MAX_REGIONS),
            ("MAX_GUEST_ADDRESS", MAX_GUEST_ADDRESS),
            ("MAX_MEMORY_BYTES", MAX_MEMORY_BYTES),
            ("MAX_LEAVES", MAX_LEAVES),
            ("MAX_SECTIONS", MAX_SECTIONS),
            ("MAX_SECTION_NAME", MAX_SECTION_NAME),
            ("MAX_SECTION_BYTES", MAX_SECTION_BYTES),
            ("MAX_SECTIONS_BYTES", MAX_SECTIONS_BYTES),
            ("MAX_EXTENTS", MAX_EXTENTS),
            ("MAX_SKIPPED_BYTES", MAX_SKIPPED_BYTES),
            ("MAX_PRODUCER", MAX_PRODUCER),
            ("MAX_PARENT_HINT", MAX_PARENT_HINT),
            ("MAX_PARENT_DEPTH", MAX_PARENT_DEPTH as u64),
        ];
        let rows = table
            .trim_start()
            .lines()
            .take_while(|line| line.starts_with('|'))
            .skip(2);
        let stated: Vec<(String, u64)> = rows
            .map(|row| {
                let cells: Vec<&str> = row.split('|').map(str::trim).collect();
                let value = match cells[2].split_once('^') {
                    Some((base, exponent)) => base.parse::<u64>().unwrap().pow(exponent.parse().unwrap()),
                    None => cells[2].parse().unwrap(),
                };
                (cells[3].to_owned(), value)
            })
            .collect();
        assert_eq!(stated, expected.map(|(name, value)| (name.to_owned(), value)));
    }
}
