//! Reference counts of host clusters, the whole image's, loaded block by block.
//!
//! [`Refcounts`] is the one view of the refcount table and its blocks: every change is made in memory and reaches the
//! file through [`write_dirty`](Refcounts::write_dirty), or through [`take_dirty`](Refcounts::take_dirty) for whoever
//! has a write order of their own. Allocation grows blocks and table by itself. What is in memory is bounded by what
//! the file's length can have: a block is read when a cluster that it counts is asked for, and can be dropped again.
//!
//! The order in which blocks, table and header are written is in `write`; how clusters are found is in `allocate`.
//! Which references exist is not known here: that is the business of `check` and `repair`.

mod allocate;
mod guard;
#[cfg(test)]
mod tests;
mod width;
mod write;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

pub(crate) use width::Width;
pub use write::DirtyRefcounts;

use crate::format::REFCOUNT_BLOCK_MASK;
use crate::{ClusterSize, Corruption, Error, Header, HostCluster, Result, Storage, fields, limits};
use allocate::FreeHints;
use guard::Guard;

/// Changed parts of a block are written in multiples of this many bytes.
const WRITE_BYTES: usize = 4096;

/// The refcounts of one image.
///
/// Counts are changed in memory; the file has them after [`write_dirty`](Self::write_dirty). One instance at a time
/// may change an image.
#[derive(Debug)]
pub struct Refcounts {
    storage: Arc<dyn Storage>,
    cluster: ClusterSize,
    width: Width,
    blocks: Vec<Block>,
    table: Table,
    /// The blocks that differ from the file, or whose entries do.
    changed: BTreeSet<usize>,
    /// Blocks that are in memory.
    loaded: u64,
    guard: Guard,
    hints: FreeHints,
}

/// One entry of the refcount table, and its block where that is in memory.
#[derive(Debug, Default)]
struct Block {
    /// Offset of the block; 0 says that there is none and that all its counts are 0.
    offset: u64,
    /// The block's bytes, if loaded.
    bytes: Option<Box<[u8]>>,
    /// The first and the end of the bytes that differ from the file's.
    dirty: Range<usize>,
    /// The table's entry differs from the file's.
    entry_dirty: bool,
    /// A [`DirtyRefcounts`] holds a copy that may not have reached the file.
    in_flight: bool,
}

/// Where the refcount table is.
#[derive(Debug)]
struct Table {
    offset: u64,
    clusters: u32,
    /// The table has moved since the header was written.
    moved: bool,
    /// Clusters of former tables, freed once the header names the new one: offset and number of clusters.
    retired: Vec<(u64, u64)>,
}

impl Refcounts {
    /// Reads the refcount table of the image whose header is given; its blocks are read as they are needed.
    ///
    /// # Errors
    /// Fails if the table is larger than [`limits::MAX_REFCOUNT_TABLE_BYTES`] or cannot be read, and if it names a
    /// block twice or one that is on other metadata: two copies of a block would overwrite each other.
    pub fn open(storage: Arc<dyn Storage>, header: &Header) -> Result<Self> {
        let cluster = header.cluster_size;
        let len_bytes = u64::from(header.refcount_table_clusters) * cluster.bytes();
        let bytes = fields::read_vec(
            storage.as_ref(),
            "refcount table bytes",
            header.refcount_table_offset,
            len_bytes,
            limits::MAX_REFCOUNT_TABLE_BYTES,
        )?;
        let blocks: Vec<Block> = fields::entries(&bytes)
            .map(|entry| Block {
                offset: entry & REFCOUNT_BLOCK_MASK,
                ..Block::default()
            })
            .collect();
        let width = Width::from_order(header.refcount_order)
            .ok_or_else(|| Corruption::new("refcounts are wider than 64 bits", 96))?;
        let mut guard = Guard::default();
        guard.add(HostCluster(0), 1);
        guard.add_bytes(cluster, header.refcount_table_offset, len_bytes);
        guard.add_bytes(cluster, header.l1_offset, u64::from(header.l1_entries) * 8);
        for block in blocks.iter().filter(|block| block.offset != 0) {
            let place = cluster.cluster_of(block.offset);
            if guard.any_in(place, 1).is_some() {
                return Err(Corruption::new("refcount block is on other metadata", block.offset).into());
            }
            guard.add(place, 1);
        }
        Ok(Self {
            storage,
            cluster,
            width,
            blocks,
            table: Table {
                offset: header.refcount_table_offset,
                clusters: header.refcount_table_clusters,
                moved: false,
                retired: Vec::new(),
            },
            changed: BTreeSet::new(),
            loaded: 0,
            guard,
            hints: FreeHints::default(),
        })
    }

    /// Returns the largest count that the image's refcounts can hold.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.width.max()
    }

    /// Returns where the refcount table is or will be once everything is written: its offset and its clusters.
    ///
    /// Whoever holds a [`Header`] takes both over before writing it.
    #[must_use]
    pub fn table_location(&self) -> (u64, u32) {
        (self.table.offset, self.table.clusters)
    }

    /// Returns how many host clusters the present refcount table can count; those beyond have the count 0.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.per_block().saturating_mul(self.blocks.len() as u64)
    }

    /// Returns the refcount of a cluster.
    ///
    /// # Errors
    /// Fails if the refcount block cannot be read or is where no block can be.
    pub fn get(&mut self, cluster: HostCluster) -> Result<u64> {
        let (index, within) = self.position(cluster);
        let width = self.width;
        Ok(self.block(index)?.map_or(0, |bytes| width.get(bytes, within)))
    }

    /// Sets the refcount of a cluster.
    ///
    /// # Errors
    /// Fails if the count does not fit, a new block is needed and cannot be allocated, or a block cannot be read.
    pub fn set(&mut self, cluster: HostCluster, count: u64) -> Result<()> {
        self.change(cluster, |_| Some(count)).map(drop)
    }

    /// Adds `by` to the refcount of a cluster and returns the new one.
    ///
    /// # Errors
    /// Fails as [`set`](Self::set) does.
    pub fn add(&mut self, cluster: HostCluster, by: u64) -> Result<u64> {
        self.change(cluster, |count| count.checked_add(by))
    }

    /// Subtracts `by` from the refcount of a cluster and returns the new one; at 0 the cluster is free.
    ///
    /// # Errors
    /// Fails if the count is smaller than `by`: the image is corrupt and nothing is changed. Fails as
    /// [`set`](Self::set) does.
    pub fn sub(&mut self, cluster: HostCluster, by: u64) -> Result<u64> {
        self.change(cluster, |count| count.checked_sub(by))
    }

    /// Subtracts 1 from the refcounts of `clusters` clusters from `first` on.
    ///
    /// # Errors
    /// Fails as [`sub`](Self::sub) does; the clusters before the one that failed are changed.
    pub fn free(&mut self, first: HostCluster, clusters: u64) -> Result<()> {
        for number in first.0..first.0.saturating_add(clusters) {
            self.sub(HostCluster(number), 1)?;
        }
        Ok(())
    }

    /// Keeps [`allocate`](Self::allocate) from ever handing out these clusters, whatever their refcounts say.
    ///
    /// The header, the active L1 table, the refcount table and its blocks are kept from the start.
    pub fn protect(&mut self, first: HostCluster, clusters: u64) {
        self.guard.add(first, clusters);
    }

    /// Takes back [`protect`](Self::protect), for clusters that hold nothing any more.
    pub fn unprotect(&mut self, first: HostCluster, clusters: u64) {
        self.guard.remove(first, clusters);
    }

    /// Returns whether one of these clusters is kept from being handed out.
    #[must_use]
    pub fn is_protected(&self, first: HostCluster, clusters: u64) -> bool {
        self.protected_in(first, clusters).is_some()
    }

    /// Returns one of these clusters that is kept from being handed out.
    pub(crate) fn protected_in(&self, first: HostCluster, clusters: u64) -> Option<HostCluster> {
        self.guard.any_in(first, clusters)
    }

    /// Returns whether the file has every change.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.changed.is_empty() && !self.table.moved
    }

    /// Returns the bytes of refcount blocks in memory.
    #[must_use]
    pub fn loaded_bytes(&self) -> u64 {
        self.loaded.saturating_mul(self.cluster.bytes())
    }

    /// Forgets blocks that agree with the file if more than `max_bytes` of them are in memory.
    pub fn shrink(&mut self, max_bytes: u64) {
        if self.loaded_bytes() <= max_bytes {
            return;
        }
        for (index, block) in self.blocks.iter_mut().enumerate() {
            if block.bytes.is_some() && !block.in_flight && !self.changed.contains(&index) {
                block.bytes = None;
                self.loaded -= 1;
            }
        }
    }

    /// Counts of one block.
    fn per_block(&self) -> u64 {
        1 << self.width.block_bits(self.cluster)
    }

    /// Index of the block that counts a cluster, and of the count in the block.
    fn position(&self, cluster: HostCluster) -> (usize, usize) {
        let bits = self.width.block_bits(self.cluster);
        let index = usize::try_from(cluster.0 >> bits).unwrap_or(usize::MAX);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a block holds at most 2^24 counts"
        )]
        let within = (cluster.0 & ((1 << bits) - 1)) as usize;
        (index, within)
    }

    /// The bytes of a block, read now if they were not; nothing where there is no block.
    fn block(&mut self, index: usize) -> Result<Option<&mut Box<[u8]>>> {
        let Some(block) = self.blocks.get_mut(index) else {
            return Ok(None);
        };
        if block.bytes.is_none() && block.offset != 0 {
            if !self.cluster.is_aligned(block.offset) {
                return Err(Corruption::new(
                    "refcount block is not at the beginning of a cluster",
                    block.offset,
                )
                .into());
            }
            if block.offset >= self.storage.len()? {
                return Err(
                    Corruption::new("refcount block is beyond the end of the file", block.offset).into(),
                );
            }
            let mut bytes = vec![0; self.cluster.len()].into_boxed_slice();
            self.storage.read_at(&mut bytes, block.offset)?;
            block.bytes = Some(bytes);
            self.loaded += 1;
        }
        Ok(block.bytes.as_mut())
    }

    /// Replaces a count by what `new` makes of it, where that is possible.
    fn change(&mut self, cluster: HostCluster, new: impl Fn(u64) -> Option<u64>) -> Result<u64> {
        let (index, within) = self.position(cluster);
        let width = self.width;
        let old = self.block(index)?.map_or(0, |bytes| width.get(bytes, within));
        let count = new(old).ok_or_else(|| self.refused(cluster, old))?;
        if count > width.max() {
            return Err(self.refused(cluster, old));
        }
        if count == old {
            return Ok(count);
        }
        if self.blocks.get(index).is_none_or(|block| block.offset == 0) {
            self.ensure_block(cluster)?;
        }
        if let Some(bytes) = self.block(index)? {
            width.set(bytes, within, count);
        }
        self.mark(index, width.byte_of(within));
        if count == 0 {
            self.hints.freed(cluster.0);
        }
        Ok(count)
    }

    /// Notes that the byte at `at` of a block, and at most those that follow it up to an alignment, have changed.
    fn mark(&mut self, index: usize, at: usize) {
        let Some(block) = self.blocks.get_mut(index) else {
            return;
        };
        if block.dirty.contains(&at) {
            return;
        }
        let part = at - at % WRITE_BYTES;
        let end = (part + WRITE_BYTES).min(self.cluster.len());
        if block.dirty.is_empty() {
            block.dirty = part..end;
        } else {
            block.dirty = block.dirty.start.min(part)..block.dirty.end.max(end);
        }
        self.changed.insert(index);
    }

    /// Why a count cannot be changed: it would leave the range of what refcounts can be.
    fn refused(&self, cluster: HostCluster, old: u64) -> Error {
        let what = if old == 0 {
            "a cluster that is in use has the refcount 0"
        } else {
            "a refcount would be below 0 or above what its width holds"
        };
        Corruption::new(what, cluster.offset(self.cluster)).into()
    }
}
