//! Changes the fields of an image that have a meaning.
//!
//! Where the fields are is read from the valid image; what is written there is chosen to be near what is right:
//! places of other tables, bounds and their neighbours, single bits, powers of two.

use qcow2::replay::Random;
use qcow2::{Header, L1Entry, L2Entry, MemoryStorage};

use crate::images::Seed;

/// Fields of the header: offset and bytes.
const HEADER_FIELDS: [(usize, usize); 20] = [
    (0, 4),
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 4),
    (100, 4),
    (104, 1),
    (112, 4),
];

/// Fields of an entry of the snapshot table: offset and bytes.
const SNAPSHOT_FIELDS: [(usize, usize); 9] = [
    (0, 8),
    (8, 4),
    (12, 2),
    (14, 2),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
];

/// A changed image.
#[derive(Debug)]
pub struct Mutant {
    /// The image that it was.
    pub name: String,
    /// What was changed.
    pub changes: Vec<String>,
    /// What came out.
    pub bytes: Vec<u8>,
}

/// Where the tables of a valid image are.
struct Anatomy {
    cluster_bytes: usize,
    header_tail: usize,
    l1: (usize, usize),
    l2_tables: Vec<usize>,
    refcount_table: usize,
    refcount_blocks: Vec<usize>,
    snapshots: Vec<usize>,
    snapshot_l1s: Vec<(usize, usize)>,
    compressed: Vec<usize>,
}

fn at(value: u64) -> usize {
    usize::try_from(value).unwrap()
}

/// Returns the entry at `offset`; beyond the end, the file was cut and holds zeros.
fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let entry = bytes.get(offset..).and_then(<[u8]>::first_chunk);
    entry.map_or(0, |entry| u64::from_be_bytes(*entry))
}

fn entries(bytes: &[u8], offset: usize, count: usize) -> impl Iterator<Item = u64> + '_ {
    (0..count).map(move |index| u64_at(bytes, offset + index * 8))
}

impl Anatomy {
    fn new(bytes: &[u8]) -> Self {
        let header = Header::read(&MemoryStorage::from_bytes(bytes.to_vec())).unwrap();
        let cluster_bytes = header.cluster_size.len();
        let l1 = (at(header.l1_offset), at(header.l1_entries.into()));
        let (snapshots, snapshot_l1s) = snapshot_table(bytes, &header);
        let mut l2_tables: Vec<usize> = snapshot_l1s
            .iter()
            .chain([&l1])
            .flat_map(|(offset, count)| entries(bytes, *offset, *count))
            .map(|entry| at(L1Entry(entry).host_offset()))
            .filter(|offset| *offset != 0)
            .collect();
        l2_tables.sort_unstable();
        l2_tables.dedup();
        let compressed = l2_tables
            .iter()
            .flat_map(|table| entries(bytes, *table, cluster_bytes / 8))
            .filter_map(|entry| L2Entry(entry).compressed(header.cluster_size.bits()))
            .map(|cluster| at(cluster.offset))
            .collect();
        let refcount_table = at(header.refcount_table_offset);
        let refcount_blocks = entries(bytes, refcount_table, cluster_bytes / 8)
            .map(at)
            .filter(|offset| *offset != 0)
            .collect();
        Self {
            cluster_bytes,
            header_tail: header.to_bytes().unwrap().len(),
            l1,
            l2_tables,
            refcount_table,
            refcount_blocks,
            snapshots,
            snapshot_l1s,
            compressed,
        }
    }
}

/// Returns the entries of the snapshot table, and the L1 tables that they lead to.
fn snapshot_table(bytes: &[u8], header: &Header) -> (Vec<usize>, Vec<(usize, usize)>) {
    let half = |offset: usize| usize::from(u16::from_be_bytes([bytes[offset], bytes[offset + 1]]));
    let word = |offset: usize| at(u64_at(bytes, offset) >> 32);
    let (mut found, mut tables) = (Vec::new(), Vec::new());
    let mut entry = at(header.snapshots_offset);
    for _ in 0..header.snapshot_count {
        found.push(entry);
        tables.push((at(u64_at(bytes, entry)), word(entry + 8)));
        let len = 40 + word(entry + 36) + half(entry + 12) + half(entry + 14);
        entry = (entry + len).next_multiple_of(8);
    }
    (found, tables)
}

impl Mutant {
    /// Returns the mutant of a seed.
    pub fn new(images: &[Seed], seed: u64) -> Self {
        let mut random = Random::new(seed);
        let image = &images[random.index(images.len())];
        let anatomy = Anatomy::new(&image.bytes);
        let mut mutant = Self {
            name: image.name.clone(),
            changes: Vec::new(),
            bytes: image.bytes.clone(),
        };
        // Most images are changed once: what two changes do is often done by the first.
        let changes = 1 + random.index(2) * random.index(4);
        for _ in 0..changes {
            mutant.change(&anatomy, &mut random);
        }
        mutant
    }

    /// Returns whether leaks may come to light that a check did not see before.
    ///
    /// Whoever does not know bitmaps drops them with the first write, and refcounts of clusters beyond the end
    /// of the file count once it has grown.
    pub fn hides_leaks(&self) -> bool {
        let refcounts = self.changes.iter().any(|change| change.starts_with("refcount"));
        refcounts || self.name.contains("bitmap")
    }

    /// Returns whether compressed data was changed.
    pub fn is_damaged(&self) -> bool {
        self.changes
            .iter()
            .any(|change| change.starts_with("compressed data"))
    }

    /// Returns whether the snapshot table or an L1 table of a snapshot was changed.
    pub fn concerns_snapshots(&self) -> bool {
        self.changes.iter().any(|change| change.starts_with("snapshot"))
    }

    fn change(&mut self, anatomy: &Anatomy, random: &mut Random) {
        match random.below(20) {
            0..=3 => {
                let (offset, len) = HEADER_FIELDS[random.index(HEADER_FIELDS.len())];
                self.field("header", anatomy, random, offset, len);
            }
            4 => {
                let offset = 72 + random.index(anatomy.header_tail + 16 - 72);
                self.field("header extension", anatomy, random, offset, 4);
            }
            5..=6 => {
                let offset = anatomy.l1.0 + random.index(anatomy.l1.1) * 8;
                self.field("l1", anatomy, random, offset, 8);
            }
            7..=11 if !anatomy.l2_tables.is_empty() => self.l2_entry(anatomy, random),
            12 => {
                let offset = anatomy.refcount_table + random.index(4) * 8;
                self.field("refcount table", anatomy, random, offset, 8);
            }
            13..=14 => {
                let block = anatomy.refcount_blocks[random.index(anatomy.refcount_blocks.len())];
                let offset = block + random.index(anatomy.cluster_bytes.min(256));
                self.field("refcount block", anatomy, random, offset, 1);
            }
            15..=16 if !anatomy.snapshots.is_empty() => {
                let entry = anatomy.snapshots[random.index(anatomy.snapshots.len())];
                let (offset, len) = SNAPSHOT_FIELDS[random.index(SNAPSHOT_FIELDS.len())];
                self.field("snapshot table", anatomy, random, entry + offset, len);
            }
            17 if !anatomy.snapshot_l1s.is_empty() => {
                let (table, count) = anatomy.snapshot_l1s[random.index(anatomy.snapshot_l1s.len())];
                let offset = table + random.index(count) * 8;
                self.field("snapshot l1", anatomy, random, offset, 8);
            }
            18 if !anatomy.compressed.is_empty() => {
                let offset = anatomy.compressed[random.index(anatomy.compressed.len())] + random.index(40);
                self.field("compressed data", anatomy, random, offset, 1);
            }
            _ => self.length(anatomy, random),
        }
    }

    /// Changes an entry of an L2 table: one that is used, as far as there is one near.
    fn l2_entry(&mut self, anatomy: &Anatomy, random: &mut Random) {
        let table = anatomy.l2_tables[random.index(anatomy.l2_tables.len())];
        let count = anatomy.cluster_bytes / 8;
        let first = random.index(count);
        let used = (first..count).find(|index| u64_at(&self.bytes, table + index * 8) != 0);
        let offset = table + used.unwrap_or(first) * 8;
        self.field("l2", anatomy, random, offset, 8);
    }

    /// Cuts the file or lets it grow.
    fn length(&mut self, anatomy: &Anatomy, random: &mut Random) {
        let cut = random.index(anatomy.cluster_bytes * 3);
        let len = match random.below(4) {
            0 => self.bytes.len() + cut,
            1 => random.index(self.bytes.len()),
            _ => self.bytes.len().saturating_sub(cut),
        };
        self.changes.push(format!("length {} -> {len}", self.bytes.len()));
        self.bytes.resize(len, 0);
    }

    /// Gives a big-endian field another value.
    fn field(&mut self, what: &str, anatomy: &Anatomy, random: &mut Random, offset: usize, len: usize) {
        let Some(field) = self.bytes.get(offset..offset + len) else {
            return;
        };
        let mut old = [0; 8];
        old[8 - len..].copy_from_slice(field);
        let old = u64::from_be_bytes(old);
        let new = value(old, self.bytes.len() as u64, anatomy, random);
        self.changes
            .push(format!("{what} at {offset:#x}: {old:#x} -> {new:#x}"));
        self.bytes[offset..offset + len].copy_from_slice(&new.to_be_bytes()[8 - len..]);
    }
}

/// Chooses a value for a field that holds `old`.
fn value(old: u64, file_bytes: u64, anatomy: &Anatomy, random: &mut Random) -> u64 {
    let cluster = anatomy.cluster_bytes as u64;
    let places = [0, anatomy.l1.0 as u64, anatomy.refcount_table as u64];
    let tables = [&anatomy.l2_tables, &anatomy.refcount_blocks];
    let table = tables[random.index(2)];
    match random.below(12) {
        0 => old ^ (1 << random.below(64)),
        1 => old.wrapping_add(1),
        2 => old.wrapping_sub(1),
        3 => old.wrapping_add(cluster),
        4 => old ^ (1 << 63),
        5 => 1 << random.below(64),
        6 => u64::MAX >> random.below(64),
        7 => places[random.index(places.len())] | (old & (1 << 63)),
        8 if !table.is_empty() => table[random.index(table.len())] as u64 | (1 << 63),
        9 => (file_bytes + cluster * random.below(4)) & !(cluster - 1) | (old & (1 << 63)),
        10 => old & !0x1ff | random.below(512),
        _ => random.bits(),
    }
}
