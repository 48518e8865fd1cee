//! What differs between two states of one image: internal snapshots, or one and the active disk.
//!
//! Where both L1 tables name the same L2 table, nothing differs below it, and where both L2 tables have the same
//! entry, the cluster is the same. Only what is left is read and compared byte by byte.

use std::ops::Range;

use serde::Serialize;

use crate::compare::{Buffers, part_at, settled};
use crate::map::View;
use crate::metadata::read_l1;
use crate::{Chain, ClusterSize, Corruption, L1Entry, Metadata, Result, Unsupported, snapshots};

/// Ranges are multiples of this: a disk's sector.
const SECTOR_BYTES: usize = 512;
/// Bytes of each state that are compared at once.
const STEP_BYTES: u64 = 1 << 20;

/// One state of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiffSide {
    /// The disk as it is.
    Active,
    /// The internal snapshot of this id or name.
    Snapshot(String),
}

/// How much differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiffReport {
    /// Bytes in the ranges that differ.
    pub differing_bytes: u64,
    /// Bytes that were read of each side, because the tables left open whether they differ.
    pub compared_bytes: u64,
}

/// Visits the ranges of the disk in which two states of the chain's top image differ, in order, in whole sectors.
///
/// Beyond the end of its disk a state holds zeros.
///
/// # Errors
/// Fails if the top is no qcow2 image or a snapshot does not exist, if a layer cannot be read, if a table leads
/// nowhere, and if the visitor does.
pub fn diff(
    chain: &Chain,
    before: &DiffSide,
    after: &DiffSide,
    visit: &mut dyn FnMut(Range<u64>) -> Result<()>,
) -> Result<DiffReport> {
    let not_qcow2 = || Unsupported::Feature {
        feature: "a difference of states of a raw image",
    };
    let top = chain.layers.first().ok_or_else(not_qcow2)?;
    if top.header.is_none() {
        return Err(not_qcow2().into());
    }
    let metadata = Metadata::open(top.storage.clone())?;
    let (before_l1, before_bytes) = state(&metadata, before)?;
    let (after_l1, after_bytes) = state(&metadata, after)?;
    let end = before_bytes.max(after_bytes);
    let cluster = metadata.cluster_size();
    let mut differ = Differ {
        before: View::with_l1(chain, before_l1.clone(), before_bytes)?,
        after: View::with_l1(chain, after_l1.clone(), after_bytes)?,
        end,
        buffers: Buffers::default(),
        open: 0..0,
        report: DiffReport::default(),
    };
    // Where one disk ends before the other, equal tables do not mean equal content.
    let both = before_bytes.min(after_bytes);
    let mut offset = 0;
    while offset < end {
        let stop = next_table(offset, cluster).min(end);
        if !(same_table(offset, cluster, &before_l1, &after_l1) && stop <= both) {
            differ.range(offset..stop, visit)?;
        }
        offset = stop;
    }
    differ.close(visit)?;
    Ok(differ.report)
}

/// The L1 table of a state and the size of its disk.
fn state(metadata: &Metadata, side: &DiffSide) -> Result<(Vec<L1Entry>, u64)> {
    let DiffSide::Snapshot(wanted) = side else {
        return Ok((metadata.l1.clone(), metadata.header.virtual_size_bytes));
    };
    let snapshot = snapshots::find(metadata, wanted)?;
    let storage = metadata.storage().as_ref();
    let l1 = read_l1(
        storage,
        metadata.cluster_size(),
        snapshot.l1_offset,
        snapshot.l1_entries,
    )?;
    let stated = snapshot.virtual_size_bytes();
    let len_bytes = stated.unwrap_or(metadata.header.virtual_size_bytes);
    if metadata.cluster_size().l1_entries_for(len_bytes) > l1.len() as u64 {
        let what = "the l1 table of a snapshot is too short for its disk";
        return Err(Corruption::new(what, snapshot.l1_offset).into());
    }
    Ok((l1, len_bytes))
}

/// Where the range of the next L2 table begins.
fn next_table(offset: u64, cluster: ClusterSize) -> u64 {
    cluster
        .l2_coverage_bytes()
        .saturating_mul(cluster.l1_index(offset) + 1)
}

/// Whether both states have the same L2 table for `offset`, or none.
fn same_table(offset: u64, cluster: ClusterSize, before: &[L1Entry], after: &[L1Entry]) -> bool {
    let index = usize::try_from(cluster.l1_index(offset)).unwrap_or(usize::MAX);
    let table = |l1: &[L1Entry]| l1.get(index).map_or(0, |entry| entry.host_offset());
    table(before) == table(after)
}

/// A comparison under way.
struct Differ {
    before: View,
    after: View,
    end: u64,
    buffers: Buffers,
    /// The range that differs and may go on.
    open: Range<u64>,
    report: DiffReport,
}

impl Differ {
    /// Compares one range.
    fn range(&mut self, range: Range<u64>, visit: &mut dyn FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            let left = part_at(&mut self.before, offset, self.end)?;
            let right = part_at(&mut self.after, offset, self.end)?;
            let mut len = left
                .extent
                .length
                .min(right.extent.length)
                .min(range.end - offset);
            if !settled(&self.before, left, &self.after, right) {
                len = len.min(STEP_BYTES);
                self.buffers.read(&self.before, left, &self.after, right, len)?;
                self.report.compared_bytes += len;
                self.sectors(offset, visit)?;
            }
            offset += len;
        }
        Ok(())
    }

    /// Compares what has been read sector by sector.
    fn sectors(&mut self, offset: u64, visit: &mut dyn FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        let buffers = std::mem::take(&mut self.buffers);
        let sectors = buffers
            .left
            .chunks(SECTOR_BYTES)
            .zip(buffers.right.chunks(SECTOR_BYTES));
        let mut start = offset;
        for (left, right) in sectors {
            let end = start + left.len() as u64;
            if left != right {
                self.report.differing_bytes += end - start;
                if self.open.end != start {
                    self.close(visit)?;
                    self.open.start = start;
                }
                self.open.end = end;
            }
            start = end;
        }
        self.buffers = buffers;
        Ok(())
    }

    /// Visits the range that was still open.
    fn close(&mut self, visit: &mut dyn FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        let range = std::mem::replace(&mut self.open, 0..0);
        if range.is_empty() { Ok(()) } else { visit(range) }
    }
}
