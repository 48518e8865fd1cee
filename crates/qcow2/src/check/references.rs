//! How often each cluster is referenced, and whether it holds metadata.
//!
//! Two bytes for each cluster, in pieces that exist only where something is referenced: a file of holes costs little.
//! Counts that do not fit are kept aside; an image with very many snapshots has some.

use std::collections::HashMap;
use std::ops::Range;

use crate::{ClusterSize, LimitExceeded, Result};

/// Clusters of one piece.
const PIECE: usize = 1024;
/// Bytes that all pieces may take.
const MAX_BYTES: u64 = 1 << 30;
/// The bit that marks metadata.
const METADATA: u16 = 1 << 15;
/// The count that says that the real one is kept aside.
const ASIDE: u16 = METADATA - 1;

/// References by cluster.
#[derive(Debug)]
pub(crate) struct References {
    cluster: ClusterSize,
    file_bytes: u64,
    clusters: u64,
    /// The largest count that the image's refcounts hold.
    max: u64,
    pieces: Vec<Option<Box<[u16; PIECE]>>>,
    aside: HashMap<u64, u64>,
    bytes: u64,
}

/// What was met when a reference was counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Added {
    /// References that the image's refcounts could not hold.
    pub(crate) overflow: u64,
    /// The cluster holds metadata.
    pub(crate) metadata: bool,
}

impl References {
    /// Returns references of nothing, for a file of `file_bytes` and refcounts up to `max`.
    pub(crate) fn new(cluster: ClusterSize, file_bytes: u64, max: u64) -> Result<Self> {
        let clusters = cluster.clusters_for(file_bytes);
        // One more: compressed data may end in the cluster behind one that is in the file in part.
        let pieces = (clusters + 1).div_ceil(PIECE as u64);
        let bytes = pieces.saturating_mul(8);
        LimitExceeded::check("bytes of the counts of references", bytes, MAX_BYTES)?;
        let len = usize::try_from(pieces).unwrap_or(usize::MAX);
        Ok(Self {
            cluster,
            file_bytes,
            clusters,
            max,
            pieces: std::iter::repeat_with(|| None).take(len).collect(),
            aside: HashMap::new(),
            bytes,
        })
    }

    /// Clusters of the file, and the one behind it if that is referenced.
    pub(crate) fn clusters(&self) -> u64 {
        self.clusters
    }

    /// The clusters that `len_bytes` at `offset` touch; nothing if they exceed the file by a whole cluster.
    ///
    /// The last cluster may be in the file in part, and what lies in it is referenced.
    pub(crate) fn inside(&self, offset: u64, len_bytes: u64) -> Option<Range<u64>> {
        let end = offset.checked_add(len_bytes)?;
        if end >= self.file_bytes.saturating_add(self.cluster.bytes()) {
            return None;
        }
        Some(self.cluster.cluster_of(offset).0..self.cluster.clusters_for(end))
    }

    /// How often a cluster is referenced.
    pub(crate) fn get(&self, cluster: u64) -> u64 {
        match self.slot(cluster).map_or(0, |slot| slot & !METADATA) {
            ASIDE => self.aside.get(&cluster).copied().unwrap_or(u64::from(ASIDE)),
            count => u64::from(count),
        }
    }

    /// The next cluster from `cluster` on that may be referenced; the end if there is none.
    pub(crate) fn next_counted(&self, cluster: u64) -> u64 {
        let from = usize::try_from(cluster / PIECE as u64).unwrap_or(usize::MAX);
        let pieces = self.pieces.get(from..).unwrap_or_default();
        match pieces.iter().position(Option::is_some) {
            Some(0) => cluster,
            Some(skipped) => (from + skipped) as u64 * PIECE as u64,
            None => self.clusters,
        }
    }

    /// Counts `times` references of a cluster that [`inside`](Self::inside) gave.
    pub(crate) fn add(&mut self, cluster: u64, times: u64) -> Result<Added> {
        let max = self.max;
        let slot = self.slot_mut(cluster)?;
        let metadata = *slot & METADATA != 0;
        let old = u64::from(*slot & !METADATA);
        let new = old.saturating_add(times);
        if old < u64::from(ASIDE) && new < u64::from(ASIDE) && new <= max {
            #[expect(clippy::cast_possible_truncation, reason = "smaller than a 16-bit constant")]
            let count = new as u16;
            *slot = (*slot & METADATA) | count;
            self.clusters = self.clusters.max(cluster + 1);
            return Ok(Added {
                overflow: 0,
                metadata,
            });
        }
        let old = self.get(cluster);
        let new = old.saturating_add(times).min(max);
        self.set(cluster, new)?;
        let overflow = old.saturating_add(times) - new;
        Ok(Added { overflow, metadata })
    }

    /// Replaces the count of a cluster.
    pub(crate) fn set(&mut self, cluster: u64, count: u64) -> Result<()> {
        self.clusters = self.clusters.max(cluster + 1);
        let small = u16::try_from(count).ok().filter(|count| *count < ASIDE);
        let slot = self.slot_mut(cluster)?;
        *slot = (*slot & METADATA) | small.unwrap_or(ASIDE);
        if small.is_none() {
            self.aside.insert(cluster, count);
        }
        Ok(())
    }

    /// Marks a cluster as metadata and returns whether it was marked before.
    pub(crate) fn mark(&mut self, cluster: u64) -> Result<bool> {
        let slot = self.slot_mut(cluster)?;
        let before = *slot & METADATA != 0;
        *slot |= METADATA;
        Ok(before)
    }

    /// The slot of a cluster, if its piece exists.
    fn slot(&self, cluster: u64) -> Option<u16> {
        let (piece, within) = place(cluster);
        self.pieces.get(piece)?.as_ref()?.get(within).copied()
    }

    /// The slot of a cluster; pieces are added as they are needed, within the limit.
    fn slot_mut(&mut self, cluster: u64) -> Result<&mut u16> {
        let (index, within) = place(cluster);
        if self.pieces.get(index).is_none_or(Option::is_none) {
            self.bytes += 2 * PIECE as u64;
            LimitExceeded::check("bytes of the counts of references", self.bytes, MAX_BYTES)?;
            if index >= self.pieces.len() {
                self.pieces.resize_with(index + 1, || None);
            }
        }
        let limit = LimitExceeded {
            what: "clusters whose references are counted",
            value: cluster,
            limit: self.clusters,
        };
        let piece = self.pieces.get_mut(index).ok_or_else(|| limit.clone())?;
        let slots = piece.get_or_insert_with(|| Box::new([0; PIECE]));
        Ok(slots.get_mut(within).ok_or(limit)?)
    }
}

/// The piece of a cluster, and where it is in it.
fn place(cluster: u64) -> (usize, usize) {
    #[expect(clippy::cast_possible_truncation, reason = "smaller than a piece")]
    let within = (cluster % PIECE as u64) as usize;
    (
        usize::try_from(cluster / PIECE as u64).unwrap_or(usize::MAX),
        within,
    )
}
