//! Finds what is wrong with an image: refcounts against references, flags, and tables that lead nowhere.
//!
//! Every reference is counted: of the header, of all L1 tables with their L2 tables and clusters, of the snapshot
//! table, of bitmaps and of the refcount structures. Then the counts are compared with the image's. The figures are
//! those of `qemu-img check`: a refcount that is too high is a leak, everything else that contradicts the
//! specification a corruption. Beyond that, clusters of metadata that something else uses as well are found even where
//! the refcounts agree.
//!
//! An L2 table is read once, however many snapshots share it. Memory follows the file's length, two bytes and a
//! refcount for each cluster, with a limit.

mod bitmaps;
mod finding;
mod on_disk;
mod references;
mod scan;
#[cfg(test)]
mod tests;
mod tree;
mod verdict;

use std::ops::ControlFlow;

use serde::Serialize;

pub use finding::{Finding, FindingKind, Structure};
pub(crate) use on_disk::OnDisk;
pub(crate) use references::References;
pub(crate) use scan::{Parts, Scan};

use crate::{Error, Metadata, Result};

/// Findings that a report lists; the others are only counted.
pub const MAX_FINDINGS: usize = 1000;

/// Told how much is done and how much there is to do; breaking ends the operation with [`Error::Cancelled`].
pub type Progress<'a> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'a;

/// What is wrong with an image, and what it consists of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Contradictions that can lose data.
    pub corruptions: u64,
    /// Clusters whose refcounts are too high: room is lost, data is not.
    pub leaks: u64,
    /// Clusters whose refcounts cannot be told.
    pub check_errors: u64,
    /// The first findings, at most [`MAX_FINDINGS`].
    pub findings: Vec<Finding>,
    /// How many findings there are.
    pub findings_total: u64,
    /// Clusters of the virtual disk.
    pub total_clusters: u64,
    /// Clusters of the virtual disk that the active L1 table maps to a host cluster.
    pub allocated_clusters: u64,
    /// Those of them that are compressed.
    pub compressed_clusters: u64,
    /// Those of them that do not follow the one before in the file; every compressed one counts.
    pub fragmented_clusters: u64,
    /// Where the last cluster in use ends.
    pub image_end_offset: u64,
}

impl CheckReport {
    /// Returns whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0
    }

    /// Adds a finding to the list.
    pub(crate) fn note(&mut self, offset: u64, kind: FindingKind) {
        self.findings_total += 1;
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { offset, kind });
        }
    }

    /// Counts a corruption that is met `times` times, and lists it once.
    pub(crate) fn corrupt(&mut self, times: u64, offset: u64, kind: FindingKind) {
        self.corruptions = self.corruptions.saturating_add(times);
        self.note(offset, kind);
    }
}

/// Checks an image; nothing is written.
///
/// # Errors
/// Fails if reading fails, if the image is so large that its references cannot be counted in memory, and with
/// [`Error::Cancelled`]. What is wrong with the image is no error but a finding.
pub fn check(metadata: &Metadata, progress: &mut Progress<'_>) -> Result<CheckReport> {
    Ok(Scan::run(metadata, progress)?.report)
}

/// Reports progress.
pub(crate) fn tell(progress: &mut Progress<'_>, done: u64, total: u64) -> Result<()> {
    match progress(done, total) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}
