//! Puts right what a check finds, as far as nothing has to be guessed.
//!
//! Leaks are freed in place. Refcounts that are too low, and damaged refcount structures, are replaced as a whole: new
//! ones are counted from the references, written to free clusters, and take effect with one write into the header.
//! Then copied flags follow the refcounts. At every moment the file is what it was or what it becomes, so a repair
//! that is cut short can be repeated.
//!
//! Tables that lead nowhere are left as they are: nobody knows what they led to. In an image that has such tables
//! nothing that looks leaked is given away, for it may be what they led to.

mod copied;
mod rebuild;
mod snapshots;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::Serialize;

use crate::check::{CheckReport, Parts, Progress, Scan};
use crate::format::{INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY};
use crate::{HostCluster, Metadata, Refcounts, Result, Storage};

/// What to repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Refcounts that are too high, and copied flags that contradict them afterwards.
    Leaks,
    /// Everything that can be.
    All,
}

/// What a repair found and did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// The image before.
    pub before: CheckReport,
    /// The image now.
    pub after: CheckReport,
    /// Leaks that are gone.
    pub leaks_fixed: u64,
    /// Corruptions that are gone.
    pub corruptions_fixed: u64,
    /// All refcount structures were replaced.
    pub refcounts_rebuilt: bool,
}

/// Checks an image, repairs it and checks it again. The image must be open for writing and used by no one else.
///
/// An image without corruptions is no longer marked dirty or corrupt afterwards.
///
/// # Errors
/// Fails if the image cannot be opened, if reading or writing fails, for instance because the medium is full, and with
/// [`crate::Error::Cancelled`]. What cannot be repaired is no error but in the report.
pub fn repair(storage: Arc<dyn Storage>, what: Repair, progress: &mut Progress<'_>) -> Result<RepairReport> {
    let mut metadata = Metadata::open(Arc::clone(&storage))?;
    let mut scan = Scan::run(&metadata, &mut |done, total| progress(done, total * 2))?;
    let before = std::mem::take(&mut scan.report);
    let parts = scan.into_parts();
    let rebuild = what == Repair::All && (parts.rebuild || before.check_errors > 0);
    let in_place = !parts.rebuild && before.check_errors == 0 && !parts.tree_damaged;
    if rebuild {
        rebuild::rebuild(&mut metadata, parts)?;
        copied::repair(&metadata)?;
    } else {
        if in_place && before.leaks > 0 {
            free_leaks(&mut metadata, &parts)?;
        }
        if before.corruptions > 0 && what == Repair::All || before.corruptions == 0 && before.leaks > 0 {
            copied::repair(&metadata)?;
        }
    }
    if what == Repair::All && (rebuild || in_place) {
        snapshots::complete(&mut metadata)?;
    }
    let mut metadata = Metadata::open(storage)?;
    let after = Scan::run(&metadata, &mut |done, total| progress(total + done, total * 2))?.report;
    if after.corruptions == 0 && after.check_errors == 0 {
        mark_consistent(&mut metadata)?;
    }
    Ok(RepairReport {
        leaks_fixed: before.leaks.saturating_sub(after.leaks),
        corruptions_fixed: before.corruptions.saturating_sub(after.corruptions),
        refcounts_rebuilt: rebuild,
        before,
        after,
    })
}

/// Lowers refcounts to the number of references.
fn free_leaks(metadata: &mut Metadata, parts: &Parts) -> Result<()> {
    let mut refcounts = Refcounts::open(Arc::clone(metadata.storage()), &metadata.header)?;
    for cluster in 0..parts.references.clusters() {
        let references = parts.references.get(cluster);
        if refcounts.get(HostCluster(cluster))? > references {
            refcounts.set(HostCluster(cluster), references)?;
        }
    }
    refcounts.write_dirty(&mut metadata.header)
}

/// Takes away the marks of an image that has to be repaired, once everything else is durable.
fn mark_consistent(metadata: &mut Metadata) -> Result<()> {
    let marks = INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT;
    if metadata.header.incompatible & marks == 0 {
        return Ok(());
    }
    metadata.header.incompatible &= !marks;
    let storage = metadata.storage();
    storage.sync()?;
    metadata.header.write_feature_fields(storage.as_ref())?;
    Ok(storage.sync()?)
}
