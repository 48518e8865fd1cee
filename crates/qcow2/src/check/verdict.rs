//! Compares the references that were found with the refcounts of the image.

use super::on_disk::Counts;
use super::{FindingKind, Scan};
use crate::{HostCluster, Result};

impl Scan<'_> {
    /// Compares every cluster of the file, one refcount block's range after the other.
    pub(super) fn compare_refcounts(&mut self) -> Result<()> {
        let clusters = self.references.clusters();
        let block_bits = self.on_disk.block_bits();
        let mut first = 0;
        let mut end_of_used = 0;
        while first < clusters {
            let end = ((first >> block_bits) + 1)
                .saturating_mul(1 << block_bits)
                .min(clusters);
            let index = usize::try_from(first >> block_bits).unwrap_or(usize::MAX);
            let used = self.compare_range(index, first, end)?;
            end_of_used = end_of_used.max(used);
            first = end;
        }
        self.report.image_end_offset = HostCluster(end_of_used).offset(self.cluster);
        Ok(())
    }

    /// Compares the clusters that one block counts and returns where the last that is in use ends.
    fn compare_range(&mut self, index: usize, first: u64, end: u64) -> Result<u64> {
        let width = self.on_disk.width;
        let mut end_of_used = 0;
        match self.on_disk.block(index)? {
            Counts::Unknown => {
                self.report.check_errors += end - first;
                let at = HostCluster(first).offset(self.cluster);
                self.report.note(at, FindingKind::CountUnknown);
            }
            Counts::Zero => {
                let mut cluster = self.references.next_counted(first);
                while cluster < end {
                    let references = self.references.get(cluster);
                    if references > 0 {
                        end_of_used = cluster + 1;
                        self.mismatch(cluster, 0, references);
                    }
                    cluster = self.references.next_counted(cluster + 1);
                }
            }
            Counts::Block(bytes) => {
                let mut wrong = Vec::new();
                for (within, cluster) in (first..end).enumerate() {
                    let refcount = width.get(bytes, within);
                    let references = self.references.get(cluster);
                    if refcount > 0 || references > 0 {
                        end_of_used = cluster + 1;
                    }
                    if refcount != references {
                        wrong.push((cluster, refcount, references));
                    }
                }
                for (cluster, refcount, references) in wrong {
                    self.mismatch(cluster, refcount, references);
                }
            }
        }
        Ok(end_of_used)
    }

    /// Reports a refcount that is not the number of references.
    fn mismatch(&mut self, cluster: u64, refcount: u64, references: u64) {
        let at = HostCluster(cluster).offset(self.cluster);
        if refcount > references {
            self.report.leaks += 1;
            self.report.note(at, FindingKind::Leak { refcount, references });
        } else {
            self.rebuild = true;
            let kind = FindingKind::CountTooLow { refcount, references };
            self.report.corrupt(1, at, kind);
        }
    }
}
