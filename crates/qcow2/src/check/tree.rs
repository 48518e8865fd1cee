//! Counts what L1 and L2 tables lead to.
//!
//! L1 tables are gathered first, then every L2 table with the number of L1 entries that lead to it: the active ones
//! and all. Each L2 table is read once, in the order of the file, and what it maps counts as often as it is reached.

use std::collections::BTreeMap;

use super::{FindingKind, Progress, Scan, Structure, tell};
use crate::format::L2Entry;
use crate::{CompressedCluster, L1Entry, LimitExceeded, Result, fields, limits};

/// Bytes of all L1 tables together: those of the most snapshots of a disk of 1 TiB in clusters of 64 KiB, four times.
const MAX_L1_BYTES: u64 = 4 << 30;
/// Entries of an L1 table that are read at once.
const L1_READ_BYTES: u64 = 1 << 20;
/// Bytes of L2 tables that follow one another and are read at once.
const L2_READ_BYTES: u64 = 2 << 20;

/// How often something is reached.
#[derive(Clone, Copy, Debug, Default)]
struct Uses {
    /// From the active L1 table.
    active: u64,
    /// From all L1 tables, the active one included.
    all: u64,
}

/// The L2 tables of an image, by offset.
#[derive(Debug)]
pub(super) struct Tables {
    uses: BTreeMap<u64, Uses>,
}

impl Tables {
    /// Counts all L1 tables and gathers what they lead to; the L2 tables become known as metadata.
    pub(super) fn collect(scan: &mut Scan<'_>) -> Result<Self> {
        let mut l1_tables: BTreeMap<(u64, u64), Uses> = BTreeMap::new();
        let header = &scan.metadata.header;
        let active = (header.l1_offset, u64::from(header.l1_entries));
        l1_tables.insert(active, Uses { active: 1, all: 1 });
        for snapshot in &scan.metadata.snapshots {
            let (offset, entries) = (snapshot.l1_offset, u64::from(snapshot.l1_entries));
            let of = Structure::L1Table;
            if header.version >= 3 && !snapshot.is_complete() {
                scan.report.corrupt(1, offset, FindingKind::IncompleteSnapshot);
            }
            if !scan.cluster.is_aligned(offset) {
                scan.tree_damaged = true;
                scan.report.corrupt(1, offset, FindingKind::Misaligned { of });
            } else if entries * 8 > limits::MAX_L1_BYTES {
                scan.tree_damaged = true;
                scan.report.corrupt(1, offset, FindingKind::L1TooLarge);
            } else {
                l1_tables.entry((offset, entries)).or_default().all += 1;
            }
        }
        let total = l1_tables.keys().map(|(_, entries)| entries * 8).sum();
        LimitExceeded::check("bytes of all l1 tables", total, MAX_L1_BYTES)?;
        let mut tables = Self {
            uses: BTreeMap::new(),
        };
        for ((offset, entries), uses) in l1_tables {
            scan.count_metadata(Structure::L1Table, offset, entries * 8, uses.all)?;
            tables.add_l1(scan, offset, entries * 8, uses)?;
        }
        for (&offset, uses) in &tables.uses {
            scan.count_metadata(Structure::L2Table, offset, scan.cluster.bytes(), uses.all)?;
        }
        Ok(tables)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.uses.len()
    }

    /// Gathers the L2 tables of one L1 table.
    fn add_l1(&mut self, scan: &mut Scan<'_>, offset: u64, len_bytes: u64, uses: Uses) -> Result<()> {
        let mut bytes = Vec::new();
        let mut at = 0;
        while at < len_bytes {
            let part = L1_READ_BYTES.min(len_bytes - at);
            bytes.resize(usize::try_from(part).unwrap_or(usize::MAX), 0);
            scan.storage().read_at(&mut bytes, offset.saturating_add(at))?;
            for entry in fields::entries(&bytes).map(L1Entry).filter(|entry| entry.0 != 0) {
                self.add_l2(scan, entry, uses)?;
            }
            at += part;
        }
        Ok(())
    }

    /// Gathers the L2 table of one entry that is not 0.
    fn add_l2(&mut self, scan: &mut Scan<'_>, entry: L1Entry, uses: Uses) -> Result<()> {
        let of = Structure::L2Table;
        let offset = entry.host_offset();
        if entry.reserved_bits() != 0 {
            let kind = FindingKind::ReservedBits { of, entry: entry.0 };
            scan.report.corrupt(uses.all, offset, kind);
        }
        if uses.active > 0 && offset != 0 {
            scan.judge_copied(of, offset, entry.is_copied(), uses.active)?;
        }
        let misaligned = !scan.cluster.is_aligned(offset);
        if misaligned || offset == 0 {
            scan.tree_damaged = true;
            scan.count(of, offset, scan.cluster.bytes(), uses.all)?;
        }
        if misaligned {
            scan.report
                .corrupt(uses.all, offset, FindingKind::Misaligned { of });
        } else if offset != 0 {
            let known = self.uses.entry(offset).or_default();
            known.active += uses.active;
            known.all += uses.all;
        }
        Ok(())
    }

    /// Counts what all L2 tables map.
    pub(super) fn count(&self, scan: &mut Scan<'_>, progress: &mut Progress<'_>) -> Result<()> {
        let total = self.uses.len() as u64 + 1;
        let cluster_bytes = scan.cluster.bytes();
        let file_bytes = scan.storage().len()?;
        let mut inside = self.uses.range(..file_bytes).peekable();
        let mut buffer = Vec::new();
        let mut done = 0;
        while let Some((&first, &uses)) = inside.next() {
            let mut together = vec![uses];
            let mut next = first + cluster_bytes;
            while next - first < L2_READ_BYTES
                && let Some((_, uses)) = inside.next_if(|(offset, _)| **offset == next)
            {
                together.push(*uses);
                next += cluster_bytes;
            }
            buffer.resize(together.len() * scan.cluster.len(), 0);
            scan.storage().read_at(&mut buffer, first)?;
            for (uses, bytes) in together.iter().zip(buffer.chunks_exact(scan.cluster.len())) {
                scan.count_table(*uses, bytes)?;
            }
            done += together.len() as u64;
            tell(progress, done, total)?;
        }
        Ok(())
    }
}

impl Scan<'_> {
    /// Counts what one L2 table maps.
    fn count_table(&mut self, uses: Uses, bytes: &[u8]) -> Result<()> {
        let cluster_bits = self.cluster.bits();
        // Where the next data cluster would be if the table's clusters followed one another in the file.
        let mut expected = 0;
        for entry in fields::entries(bytes).map(L2Entry).filter(|entry| entry.0 != 0) {
            if let Some(compressed) = entry.compressed(cluster_bits) {
                self.count_compressed(uses, entry, compressed)?;
                continue;
            }
            let offset = entry.host_offset();
            if entry.reserved_bits() != 0 {
                let kind = FindingKind::ReservedBits {
                    of: Structure::Data,
                    entry: entry.0,
                };
                self.report.corrupt(uses.all, offset, kind);
            }
            if offset == 0 {
                continue;
            }
            self.report.allocated_clusters += uses.active;
            if expected != 0 && offset != expected {
                self.report.fragmented_clusters += uses.active;
            }
            expected = offset + self.cluster.bytes();
            self.count_data(uses, entry, offset)?;
        }
        Ok(())
    }

    /// Counts a data cluster, or one kept at hand for zeros.
    fn count_data(&mut self, uses: Uses, entry: L2Entry, offset: u64) -> Result<()> {
        let of = Structure::Data;
        if !self.cluster.is_aligned(offset) {
            self.tree_damaged = true;
            self.report
                .corrupt(uses.all, offset, FindingKind::Misaligned { of });
        }
        self.count(of, offset, self.cluster.bytes(), uses.all)?;
        if uses.active > 0 {
            self.judge_copied(of, offset, entry.is_copied(), uses.active)?;
        }
        Ok(())
    }

    /// Counts the host clusters that compressed data touches.
    fn count_compressed(&mut self, uses: Uses, entry: L2Entry, compressed: CompressedCluster) -> Result<()> {
        if entry.is_copied() {
            self.report
                .corrupt(uses.all, compressed.offset, FindingKind::CopiedCompressed);
        }
        self.report.allocated_clusters += uses.active;
        self.report.compressed_clusters += uses.active;
        self.report.fragmented_clusters += uses.active;
        let (offset, len) = (compressed.offset, compressed.len_bytes());
        self.count(Structure::CompressedData, offset, len, uses.all)
    }

    /// Compares the copied flag of an active entry with the refcount of the cluster that it leads to.
    fn judge_copied(&mut self, of: Structure, offset: u64, copied: bool, times: u64) -> Result<()> {
        let cluster = self.cluster.cluster_of(offset).0;
        if let Some(refcount) = self.on_disk.get(cluster)?
            && (refcount == 1) != copied
        {
            self.report
                .corrupt(times, offset, FindingKind::WrongCopied { of, refcount });
        }
        Ok(())
    }
}
