//! Writing changed refcounts so that a crash at any point leaves leaks at worst.
//!
//! ```text
//! blocks, and a moved table as a whole | sync | entries of the table, or the header's 12 bytes | sync
//! ```
//!
//! A block is complete in the file before the table names it, and so is everything that counts the block's own
//! cluster: where that is counted by another new block, that one is entered first, and durably. A table that has
//! moved is named by one write into the header; the clusters of the old one are freed after that.
//!
//! Decrements are written together with increments. Whoever decrements waits until the references are durably gone;
//! whoever increments writes references only after this is durable.

use super::{Refcounts, Table};
use crate::{ClusterSize, Header, HostCluster, Result, Storage, fields};

/// Offset of `refcount_table_offset` in the header, followed by `refcount_table_clusters` (qcow2 specification).
const HEADER_REFCOUNT_TABLE: u64 = 48;

/// Changed refcount structures as they were at one instant, to be written while the refcounts change on.
///
/// After [`write`](Self::write) it goes back to [`Refcounts::written`] or, if writing failed, to
/// [`Refcounts::put_back`].
#[derive(Debug)]
#[must_use = "what was taken is given back by `written` or `put_back`"]
pub struct DirtyRefcounts {
    blocks: Vec<DirtyBlock>,
    table: TableChange,
    retired: Vec<(u64, u64)>,
}

/// One changed block.
#[derive(Debug)]
struct DirtyBlock {
    index: usize,
    /// Where the bytes begin in the block.
    start: usize,
    /// Where they begin in the file.
    offset: u64,
    /// The block's bytes that have changed.
    bytes: Box<[u8]>,
    /// The table's entry has changed.
    entry: bool,
}

/// How the refcount table changes.
#[derive(Debug)]
enum TableChange {
    /// Entries at these offsets of the file get these values; one round after the other, durably.
    Rounds(Vec<Vec<(u64, u64)>>),
    /// The whole table is at a new place.
    Moved {
        offset: u64,
        clusters: u32,
        bytes: Vec<u8>,
    },
}

impl DirtyRefcounts {
    /// Returns whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && !matches!(self.table, TableChange::Moved { .. })
    }

    /// Writes everything in an order that survives a crash.
    ///
    /// What is durable before this returns is only what the order needs. After the caller's next
    /// [`Storage::sync`] everything is, and only then may references to newly counted clusters be written.
    ///
    /// # Errors
    /// Fails if the storage does; what has been written until then leaves leaks at worst.
    pub fn write(&self, storage: &dyn Storage) -> Result<()> {
        for block in &self.blocks {
            if !block.bytes.is_empty() {
                storage.write_at(&block.bytes, block.offset)?;
            }
        }
        match &self.table {
            TableChange::Rounds(rounds) => {
                for round in rounds {
                    storage.sync()?;
                    for (offset, value) in round {
                        storage.write_at(&value.to_be_bytes(), *offset)?;
                    }
                }
            }
            TableChange::Moved {
                offset,
                clusters,
                bytes,
            } => {
                storage.write_at(bytes, *offset)?;
                storage.sync()?;
                let mut location = [0; 12];
                location[..8].copy_from_slice(&offset.to_be_bytes());
                location[8..].copy_from_slice(&clusters.to_be_bytes());
                storage.write_at(&location, HEADER_REFCOUNT_TABLE)?;
            }
        }
        Ok(())
    }
}

impl Refcounts {
    /// Writes every change and makes it durable, in an order that leaves only leaks after a crash.
    ///
    /// The header is told where the refcount table is now; the file's header is already written where that changed.
    ///
    /// # Errors
    /// Fails if the storage does; the changes stay in memory and the next call tries again.
    pub fn write_dirty(&mut self, header: &mut Header) -> Result<()> {
        loop {
            let dirty = self.take_dirty();
            if dirty.is_empty() {
                self.written(dirty)?;
                return Ok(());
            }
            let result = dirty
                .write(self.storage.as_ref())
                .and_then(|()| Ok(self.storage.sync()?));
            if let Err(error) = result {
                self.put_back(dirty);
                return Err(error);
            }
            self.written(dirty)?;
            (header.refcount_table_offset, header.refcount_table_clusters) = self.table_location();
        }
    }

    /// Takes a copy of everything that has changed since it was last taken; one may be out at a time.
    pub fn take_dirty(&mut self) -> DirtyRefcounts {
        let table = self.table_change();
        let mut blocks = Vec::with_capacity(self.changed.len());
        for index in std::mem::take(&mut self.changed) {
            let Some(block) = self.blocks.get_mut(index) else {
                continue;
            };
            let dirty = std::mem::take(&mut block.dirty);
            let bytes = block.bytes.as_ref().and_then(|bytes| bytes.get(dirty.clone()));
            blocks.push(DirtyBlock {
                index,
                start: dirty.start,
                offset: block.offset + dirty.start as u64,
                bytes: bytes.unwrap_or_default().into(),
                entry: std::mem::take(&mut block.entry_dirty),
            });
            block.in_flight = true;
        }
        self.table.moved = false;
        let retired = match table {
            TableChange::Moved { .. } => std::mem::take(&mut self.table.retired),
            TableChange::Rounds(_) => Vec::new(),
        };
        DirtyRefcounts {
            blocks,
            table,
            retired,
        }
    }

    /// Notes that what was taken is durable: clusters of a table that has moved away become free.
    ///
    /// # Errors
    /// Fails if the old table's refcounts cannot be read or are 0: then the image is corrupt.
    pub fn written(&mut self, dirty: DirtyRefcounts) -> Result<()> {
        for block in &dirty.blocks {
            if let Some(block) = self.blocks.get_mut(block.index) {
                block.in_flight = false;
            }
        }
        for (offset, clusters) in dirty.retired {
            let first = self.cluster.cluster_of(offset);
            self.unprotect(first, clusters);
            self.free(first, clusters)?;
        }
        Ok(())
    }

    /// Takes back what could not be written: it counts as changed again.
    pub fn put_back(&mut self, dirty: DirtyRefcounts) {
        for taken in &dirty.blocks {
            if let Some(block) = self.blocks.get_mut(taken.index) {
                block.in_flight = false;
                block.entry_dirty |= taken.entry;
                if block.dirty.is_empty() {
                    block.dirty = taken.start..taken.start + taken.bytes.len();
                } else if !taken.bytes.is_empty() {
                    let end = taken.start + taken.bytes.len();
                    block.dirty = block.dirty.start.min(taken.start)..block.dirty.end.max(end);
                }
                self.changed.insert(taken.index);
            }
        }
        self.table.moved |= matches!(dirty.table, TableChange::Moved { .. });
        self.table.retired.extend(dirty.retired);
    }

    /// How the table on disk becomes the one in memory.
    fn table_change(&self) -> TableChange {
        let Table { offset, clusters, .. } = self.table;
        if self.table.moved {
            let bytes = fields::entry_bytes(self.blocks.iter().map(|block| block.offset));
            return TableChange::Moved {
                offset,
                clusters,
                bytes,
            };
        }
        let entry_dirty = |index: &usize| self.blocks.get(*index).is_some_and(|block| block.entry_dirty);
        let mut waiting: Vec<usize> = self.changed.iter().copied().filter(entry_dirty).collect();
        let mut rounds = Vec::new();
        while !waiting.is_empty() {
            let (mut now, mut later) = (Vec::new(), Vec::new());
            for &index in &waiting {
                let counted_by = self.counting_block(index, self.cluster);
                if counted_by != index && waiting.binary_search(&counted_by).is_ok() {
                    later.push(index);
                } else {
                    now.push(index);
                }
            }
            if now.is_empty() {
                // Blocks never count each other in a circle: each lies in its own range or before it.
                std::mem::swap(&mut now, &mut later);
            }
            let entry = |&index: &usize| {
                let value = self.blocks.get(index).map_or(0, |block| block.offset);
                (offset + index as u64 * 8, value)
            };
            rounds.push(now.iter().map(entry).collect());
            waiting = later;
        }
        TableChange::Rounds(rounds)
    }

    /// The index of the block that counts the cluster of the block at `index`.
    fn counting_block(&self, index: usize, cluster: ClusterSize) -> usize {
        let offset = self.blocks.get(index).map_or(0, |block| block.offset);
        self.position(HostCluster(offset >> cluster.bits())).0
    }
}
