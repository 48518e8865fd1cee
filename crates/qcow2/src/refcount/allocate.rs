//! Finding free clusters, and the refcount blocks and the table that count them.
//!
//! A cluster is free while its count in memory is 0; whoever frees clusters does it only once no reference to them
//! can come back after a crash. Free clusters are taken from the lowest on, so that files stay short.
//!
//! A run that lies where no refcount block is yet brings its blocks along: they are placed right before it, so that a
//! new block is counted by itself or by a block before it. When the table has no entry for them, a larger table is
//! placed first.

use super::{Block, Refcounts};
use crate::format::OFFSET_MASK;
use crate::{Corruption, HostCluster, LimitExceeded, Result, limits};

/// What is known of where free clusters are not.
#[derive(Debug, Default)]
pub(super) struct FreeHints {
    /// No cluster before this one is free.
    single: u64,
    /// No run of `.0` free clusters begins before `.1`.
    run: Option<(u64, u64)>,
}

impl FreeHints {
    /// A cluster has become free.
    pub(super) fn freed(&mut self, cluster: u64) {
        self.single = self.single.min(cluster);
        if let Some((clusters, from)) = &mut self.run {
            *from = (*from).min(cluster.saturating_sub(*clusters - 1));
        }
    }

    /// Where a search for a run of `clusters` begins.
    fn start(&self, clusters: u64) -> u64 {
        match self.run {
            Some((known, from)) if clusters >= known => from.max(self.single),
            _ => self.single,
        }
    }

    /// A search for a run of `clusters` from [`start`](Self::start) on found the first at `found`.
    fn searched(&mut self, clusters: u64, found: u64) {
        if clusters == 1 {
            self.single = found;
        } else {
            self.run = Some((clusters, found));
        }
    }
}

impl Refcounts {
    /// Takes `clusters` free clusters in one run, at least one, gives each the refcount 1, and returns the first.
    ///
    /// The run is the lowest that is long enough, at the end of the file if there is none before.
    ///
    /// # Errors
    /// Fails if the refcount table cannot grow, if a block cannot be read, and if the refcounts call metadata free:
    /// then the image is corrupt.
    pub fn allocate(&mut self, clusters: u64) -> Result<HostCluster> {
        let clusters = clusters.max(1);
        let mut blocks = 0;
        loop {
            let first = self.find_free(blocks + clusters)?;
            let missing = self.missing_blocks(first, blocks + clusters);
            if missing > blocks {
                blocks = missing;
                continue;
            }
            if self.position(HostCluster(first + missing + clusters - 1)).0 >= self.blocks.len() {
                self.grow_table(first, missing + clusters)?;
                blocks = 0;
                continue;
            }
            self.refuse_metadata(first, missing + clusters)?;
            self.put_blocks(first, missing + clusters);
            for number in first..first + missing + clusters {
                self.set(HostCluster(number), 1)?;
            }
            return Ok(HostCluster(first + missing));
        }
    }

    /// Takes the lowest free clusters that lie in one run, 1 to `most` of them, gives each the refcount 1, and
    /// returns the first and how many they are.
    ///
    /// # Errors
    /// Fails as [`allocate`](Self::allocate) does.
    pub fn allocate_some(&mut self, most: u64) -> Result<(HostCluster, u64)> {
        let first = self.allocate(1)?;
        let mut taken = 1;
        while taken < most {
            let next = first.0 + taken;
            if self.missing_blocks(next, 1) > 0 || self.get(HostCluster(next))? != 0 {
                break;
            }
            self.refuse_metadata(next, 1)?;
            self.set(HostCluster(next), 1)?;
            taken += 1;
        }
        Ok((first, taken))
    }

    /// Makes sure that a block counts `cluster`, which lies where there was none.
    pub(super) fn ensure_block(&mut self, cluster: HostCluster) -> Result<()> {
        let (index, _) = self.position(cluster);
        if index >= self.blocks.len() {
            self.grow_table(cluster.0, 1)?;
        }
        if self.missing_blocks(cluster.0, 1) == 0 {
            return Ok(());
        }
        // The block itself may be counted by another block that exists or comes along with it.
        let place = self.allocate(1)?;
        if self.missing_blocks(cluster.0, 1) == 0 {
            // The block came along with the cluster that was meant for it.
            return self.sub(place, 1).map(drop);
        }
        self.put_block(index, place);
        Ok(())
    }

    /// The lowest run of free clusters that is long enough.
    fn find_free(&mut self, clusters: u64) -> Result<u64> {
        let per_block = self.per_block();
        let mut run = self.hints.start(clusters);
        let mut next = run;
        while next - run < clusters {
            let (index, within) = self.position(HostCluster(next));
            let width = self.width;
            match self.block(index)? {
                Some(bytes) => match width.find(bytes, within, clusters - (next - run)) {
                    Run::Free(free) => next += free,
                    Run::Used(used) => {
                        next += used;
                        run = next;
                    }
                },
                // No block counts these clusters: all of them are free.
                None => next += per_block - within as u64,
            }
        }
        self.hints.searched(clusters, run);
        let end = run.saturating_add(clusters);
        LimitExceeded::check("host clusters", end, OFFSET_MASK >> self.cluster.bits())?;
        Ok(run)
    }

    /// How many blocks a run needs that do not exist.
    fn missing_blocks(&self, first: u64, clusters: u64) -> u64 {
        let (from, _) = self.position(HostCluster(first));
        let (to, _) = self.position(HostCluster(first + clusters - 1));
        let exists = |index: &usize| self.blocks.get(*index).is_some_and(|block| block.offset != 0);
        (from..=to).filter(|index| !exists(index)).count() as u64
    }

    /// Fails if a run that is about to be handed out holds metadata.
    fn refuse_metadata(&self, first: u64, clusters: u64) -> Result<()> {
        match self.protected_in(HostCluster(first), clusters) {
            Some(metadata) => {
                let what = "the refcounts say that a cluster of metadata is free";
                Err(Corruption::new(what, metadata.offset(self.cluster)).into())
            }
            None => Ok(()),
        }
    }

    /// Places the blocks that a run lacks at its beginning; counting them is left to the caller.
    fn put_blocks(&mut self, first: u64, clusters: u64) {
        let (from, _) = self.position(HostCluster(first));
        let (to, _) = self.position(HostCluster(first + clusters - 1));
        let mut place = first;
        for index in from..=to {
            if self.blocks.get(index).is_some_and(|block| block.offset == 0) {
                self.put_block(index, HostCluster(place));
                place += 1;
            }
        }
    }

    /// Enters an empty block into the table; its own refcount is the caller's.
    fn put_block(&mut self, index: usize, place: HostCluster) {
        let offset = place.offset(self.cluster);
        if let Some(block) = self.blocks.get_mut(index) {
            *block = Block {
                offset,
                bytes: Some(vec![0; self.cluster.len()].into_boxed_slice()),
                dirty: 0..self.cluster.len(),
                entry_dirty: true,
                in_flight: false,
            };
            self.loaded += 1;
            self.changed.insert(index);
        }
        self.guard.add(place, 1);
    }

    /// Moves the table to where it has entries for `clusters` clusters from `first` on, itself and its blocks.
    fn grow_table(&mut self, first: u64, clusters: u64) -> Result<()> {
        let per_block = self.per_block();
        let per_cluster = self.cluster.l2_entries();
        let len_before = self.blocks.len();
        let mut entries = (len_before as u64 * 3 / 2).min(limits::MAX_REFCOUNT_TABLE_BYTES / 8);
        loop {
            entries = entries.next_multiple_of(per_cluster);
            let table = entries / per_cluster;
            let used = first.saturating_add(clusters).saturating_add(table);
            // Blocks for the table and the run, and what is lost where runs do not fit.
            let needed = used.div_ceil(per_block) + (table + clusters) / per_block + 4;
            if needed <= entries {
                break;
            }
            entries = needed;
        }
        LimitExceeded::check(
            "refcount table bytes",
            entries * 8,
            limits::MAX_REFCOUNT_TABLE_BYTES,
        )?;
        #[expect(clippy::cast_possible_truncation, reason = "the table has at most 8 MiB")]
        let (len, table) = (entries as usize, (entries / per_cluster) as u32);
        self.blocks.resize_with(len, Block::default);
        let place = match self.allocate(u64::from(table)) {
            Ok(place) => place,
            Err(error) => {
                // Entries beyond the old table's end must not stay: there is no place for them.
                self.blocks.truncate(len_before);
                self.changed.retain(|&index| index < len_before);
                return Err(error);
            }
        };
        self.guard.add(place, u64::from(table));
        let old = (self.table.offset, u64::from(self.table.clusters));
        self.table.retired.push(old);
        self.table.offset = place.offset(self.cluster);
        self.table.clusters = table;
        self.table.moved = true;
        Ok(())
    }
}

/// What [`Width::find`] found at a place of a block.
pub(super) enum Run {
    /// So many free clusters, at least one.
    Free(u64),
    /// So many clusters in use, at least one.
    Used(u64),
}

impl super::Width {
    /// How many counts from `from` on are 0, at most `most`, or are not 0.
    fn find(self, block: &[u8], from: usize, most: u64) -> Run {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a block holds at most 2^24 counts"
        )]
        let len = ((block.len() as u64 * 8) >> self.order()) as usize;
        let wanted = usize::try_from(most).unwrap_or(usize::MAX);
        let free = (from..len)
            .take(wanted)
            .take_while(|&index| self.get(block, index) == 0)
            .count() as u64;
        if free > 0 {
            return Run::Free(free);
        }
        Run::Used(
            (from..len)
                .take_while(|&index| self.get(block, index) != 0)
                .count() as u64,
        )
    }
}
