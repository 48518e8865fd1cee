//! Clusters that became free, to be given back to the medium.

use std::ops::Range;

use crate::format::{ClusterSize, HostCluster};
use crate::refcount::Refcounts;
use crate::storage::Storage;

/// Runs that are remembered; the room of those beyond stays with the file, to be used again.
const MAX_RUNS: usize = 1 << 20;

/// Runs of clusters whose refcount became 0, in the order in which they did.
#[derive(Debug, Default)]
pub(super) struct Freed {
    runs: Vec<Range<u64>>,
}

impl Freed {
    pub(super) fn push(&mut self, HostCluster(number): HostCluster) {
        let room = self.runs.len() < MAX_RUNS;
        match self.runs.last_mut() {
            Some(last) if last.end == number => last.end += 1,
            _ if room => self.runs.push(number..number + 1),
            _ => {}
        }
    }

    /// Punches the runs out of the file. To be called when it is durable that nothing refers to them.
    ///
    /// Room that the medium does not take back is no failure, and a run on metadata that a damaged image counts as
    /// data is left alone.
    pub(super) fn punch(&self, storage: &dyn Storage, size: ClusterSize, refcounts: &Refcounts) {
        for run in &self.runs {
            let clusters = run.end - run.start;
            let first = HostCluster(run.start);
            if refcounts.is_protected(first, clusters) {
                continue;
            }
            if let Err(error) = storage.punch_hole(first.offset(size), clusters.saturating_mul(size.bytes()))
            {
                tracing::debug!(%error, first = run.start, clusters, "freed clusters keep their room");
            }
        }
    }
}
