//! Clusters that are never handed out, whatever their refcounts say.
//!
//! A damaged image may count the cluster of its own L1 table as free. Handing that out would overwrite the table, so
//! the places of metadata that are known are kept here and looked up at every allocation.

use std::collections::BTreeMap;

use crate::{ClusterSize, HostCluster};

/// A set of clusters, as disjoint ranges: first cluster to the one after the last.
#[derive(Debug, Default)]
pub(super) struct Guard {
    ranges: BTreeMap<u64, u64>,
}

impl Guard {
    /// Adds a range.
    pub(super) fn add(&mut self, first: HostCluster, clusters: u64) {
        let (mut start, mut end) = (first.0, first.0.saturating_add(clusters));
        if start == end {
            return;
        }
        while let Some((&other, &other_end)) = self.ranges.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            start = start.min(other);
            end = end.max(other_end);
            self.ranges.remove(&other);
        }
        self.ranges.insert(start, end);
    }

    /// Adds the clusters that `len_bytes` at `offset` touch.
    pub(super) fn add_bytes(&mut self, size: ClusterSize, offset: u64, len_bytes: u64) {
        let first = size.cluster_of(offset);
        let end = size.round_up(offset.saturating_add(len_bytes)) >> size.bits();
        self.add(first, end.saturating_sub(first.0));
    }

    /// Removes a range.
    pub(super) fn remove(&mut self, first: HostCluster, clusters: u64) {
        let (start, end) = (first.0, first.0.saturating_add(clusters));
        while let Some((&other, &other_end)) = self.ranges.range(..end).next_back() {
            if other_end <= start {
                break;
            }
            self.ranges.remove(&other);
            if other_end > end {
                self.ranges.insert(end, other_end);
            }
            if other < start {
                self.ranges.insert(other, start);
            }
        }
    }

    /// A guarded cluster of a range, if there is one.
    pub(super) fn any_in(&self, first: HostCluster, clusters: u64) -> Option<HostCluster> {
        let end = first.0.saturating_add(clusters);
        let (&start, &guarded_end) = self.ranges.range(..end).next_back()?;
        (guarded_end > first.0).then(|| HostCluster(start.max(first.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge_and_split() {
        let mut guard = Guard::default();
        guard.add(HostCluster(10), 5);
        guard.add(HostCluster(15), 5);
        guard.add(HostCluster(30), 1);
        assert_eq!(guard.ranges, BTreeMap::from([(10, 20), (30, 31)]));
        guard.remove(HostCluster(12), 3);
        assert_eq!(guard.ranges, BTreeMap::from([(10, 12), (15, 20), (30, 31)]));
        assert_eq!(guard.any_in(HostCluster(12), 3), None);
        assert_eq!(guard.any_in(HostCluster(12), 4), Some(HostCluster(15)));
        assert_eq!(guard.any_in(HostCluster(11), 1), Some(HostCluster(11)));
        guard.remove(HostCluster(0), 100);
        assert!(guard.ranges.is_empty());
    }
}
