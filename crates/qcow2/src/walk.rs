//! Visits what an L1 table maps, the active one's or a snapshot's.
//!
//! [`tables`] hands out one L2 table after the other, [`walk`] the mappings that they hold. Tables that follow one
//! another in the file are read together, and memory is bounded by one such read, whatever the size of the disk. A
//! table that is not where a table can be ends the visit; `check` is what looks on.

#[cfg(test)]
mod tests;

use crate::format::L2Entry;
use crate::{ClusterSize, Corruption, L1Entry, Result, Storage, fields};

/// The most bytes of adjoining L2 tables that are read at once; one table of the largest clusters.
const READ_BYTES: u64 = 2 << 20;

/// A part of a disk that is mapped in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First byte on the disk.
    pub guest: u64,
    /// Length in bytes: of one cluster where something is mapped, of a whole run where nothing is.
    pub len: u64,
    /// What is there.
    pub kind: MappingKind,
    /// The entry says that the refcount of the host cluster is exactly one, so that it may be written in place.
    pub copied: bool,
}

/// What is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingKind {
    /// Nothing: the backing file shows through, or zeros.
    Unallocated,
    /// Zeros, with a host cluster kept at hand where `host` says so.
    Zero {
        /// Offset of the host cluster.
        host: Option<u64>,
    },
    /// Plain data.
    Data {
        /// Offset of the host cluster.
        host: u64,
    },
    /// Compressed data.
    Compressed {
        /// Offset of its first byte, aligned to nothing.
        host: u64,
        /// Bytes from there to the end of its last sector.
        len: u64,
    },
}

impl MappingKind {
    /// Returns what an entry of an L2 table says.
    #[must_use]
    pub fn of(entry: L2Entry, cluster: ClusterSize) -> Self {
        if let Some(compressed) = entry.compressed(cluster.bits()) {
            return Self::Compressed {
                host: compressed.offset,
                len: compressed.len_bytes(),
            };
        }
        match (entry.reads_as_zero(), entry.host_offset()) {
            (true, 0) => Self::Zero { host: None },
            (true, host) => Self::Zero { host: Some(host) },
            (false, 0) => Self::Unallocated,
            (false, host) => Self::Data { host },
        }
    }
}

/// One L2 table, as it is in the file.
#[derive(Debug)]
pub struct L2Table<'a> {
    offset: u64,
    bytes: &'a mut [u8],
}

impl L2Table<'_> {
    /// Returns the table's offset in the file.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the table's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Returns the entries from the first on.
    pub fn entries(&self) -> impl Iterator<Item = L2Entry> + '_ {
        fields::entries(self.bytes).map(L2Entry)
    }

    /// Replaces each entry by what `change` makes of it, in memory, and returns whether one has changed.
    pub fn update(&mut self, mut change: impl FnMut(L2Entry) -> L2Entry) -> bool {
        let mut changed = false;
        for field in self.bytes.chunks_exact_mut(8) {
            let Ok(bytes) = <[u8; 8]>::try_from(&*field) else {
                continue;
            };
            let old = L2Entry(u64::from_be_bytes(bytes));
            let new = change(old);
            if new != old {
                field.copy_from_slice(&new.0.to_be_bytes());
                changed = true;
            }
        }
        changed
    }

    /// Writes the table back to where it came from.
    ///
    /// # Errors
    /// Fails if the storage does.
    pub fn write(&self, storage: &dyn Storage) -> Result<()> {
        Ok(storage.write_at(self.bytes, self.offset)?)
    }
}

/// Visits each L2 table of an L1 table: its index in the L1 table, and the table.
///
/// # Errors
/// Fails if an L2 table is not aligned or not inside the file, if reading fails, and if the visitor does.
pub fn tables(
    storage: &dyn Storage,
    cluster: ClusterSize,
    l1: &[L1Entry],
    visit: &mut dyn FnMut(u64, &mut L2Table<'_>) -> Result<()>,
) -> Result<()> {
    let file_bytes = storage.len()?;
    let mut buffer = Vec::new();
    let mut rest = l1;
    let mut index = 0;
    while let Some(first) = rest.first() {
        let offset = first.host_offset();
        let mut together = 1;
        if offset != 0 {
            judge(offset, cluster, file_bytes)?;
            together = adjoining(rest, cluster, file_bytes);
            buffer.resize(together * cluster.len(), 0);
            storage.read_at(&mut buffer, offset)?;
            let mut at = offset;
            for (number, bytes) in (index..).zip(buffer.chunks_exact_mut(cluster.len())) {
                visit(number, &mut L2Table { offset: at, bytes })?;
                at += cluster.bytes();
            }
        }
        rest = rest.get(together..).unwrap_or_default();
        index += together as u64;
    }
    Ok(())
}

/// Visits what an L1 table maps, in the order of the disk, up to `end_bytes` of it; [`u64::MAX`] visits what lies
/// beyond the disk, too.
///
/// Each mapped cluster is visited by itself; runs without a mapping are visited at once, one L2 table's at most. The
/// offsets of mapped clusters are not judged.
///
/// # Errors
/// Fails as [`tables`] does.
pub fn walk(
    storage: &dyn Storage,
    cluster: ClusterSize,
    l1: &[L1Entry],
    end_bytes: u64,
    visit: &mut dyn FnMut(&Mapping) -> Result<()>,
) -> Result<()> {
    let coverage = cluster.l2_coverage_bytes();
    let wanted = usize::try_from(end_bytes.div_ceil(coverage)).unwrap_or(usize::MAX);
    let l1 = l1.get(..wanted).unwrap_or(l1);
    // Everything before this byte has been visited.
    let mut visited = 0;
    tables(storage, cluster, l1, &mut |index, table| {
        let base = index.saturating_mul(coverage);
        nothing(visited, base, end_bytes, visit)?;
        visited = base;
        let mut guest = base;
        for entry in table.entries() {
            let next = guest.saturating_add(cluster.bytes());
            let kind = MappingKind::of(entry, cluster);
            if kind != MappingKind::Unallocated && guest < end_bytes {
                nothing(visited, guest, end_bytes, visit)?;
                visit(&Mapping {
                    guest,
                    len: next.min(end_bytes) - guest,
                    kind,
                    copied: entry.is_copied(),
                })?;
                visited = next;
            }
            guest = next;
        }
        nothing(visited, guest, end_bytes, visit)?;
        visited = guest;
        Ok(())
    })?;
    let covered = coverage.saturating_mul(l1.len() as u64);
    let end = if end_bytes == u64::MAX { covered } else { end_bytes };
    nothing(visited, end, end_bytes, visit)
}

/// Visits the part of `from..to` that lies before `end` as one run without a mapping.
fn nothing(from: u64, to: u64, end: u64, visit: &mut dyn FnMut(&Mapping) -> Result<()>) -> Result<()> {
    let to = to.min(end);
    if from >= to {
        return Ok(());
    }
    visit(&Mapping {
        guest: from,
        len: to - from,
        kind: MappingKind::Unallocated,
        copied: false,
    })
}

/// Fails if no L2 table can be at `offset`.
pub(crate) fn judge(offset: u64, cluster: ClusterSize, file_bytes: u64) -> Result<()> {
    if !cluster.is_aligned(offset) {
        return Err(Corruption::new("l2 table is not at the beginning of a cluster", offset).into());
    }
    if offset >= file_bytes {
        return Err(Corruption::new("l2 table is beyond the end of the file", offset).into());
    }
    Ok(())
}

/// How many L2 tables, the first included, follow one another in the file and in the L1 table.
fn adjoining(l1: &[L1Entry], cluster: ClusterSize, file_bytes: u64) -> usize {
    let most = usize::try_from((READ_BYTES >> cluster.bits()).max(1)).unwrap_or(1);
    let offsets = l1.iter().map(|entry| entry.host_offset());
    let first = l1.first().map_or(0, |entry| entry.host_offset());
    offsets
        .zip((first..file_bytes).step_by(cluster.len()))
        .take(most)
        .take_while(|(offset, expected)| offset == expected)
        .count()
        .max(1)
}
