//! `snaptool disk check` and `repair`: whether the metadata of an image agrees with itself.
//!
//! The exit codes are those of `qemu-img check`.

use std::sync::Arc;

use anyhow::Context;
use qcow2::check::CheckReport;
use qcow2::repair::{Repair, RepairReport};
use qcow2::{Access, ImageFormat, Metadata, Storage};
use serde::Serialize;

use super::image::{self, Sharing};
use super::steps;
use crate::Outcome;
use crate::cli::disk::{CheckArgs, ImageArgs, RepairArgs, RepairWhat};
use crate::output::{Output, percent, printable, size};
use crate::progress::Progress;

/// Clusters that nothing refers to, and nothing worse.
const LEAKS: u8 = 3;
/// Something that may cost data.
const CORRUPT: u8 = 2;
/// The image could not be checked to its end.
const INCOMPLETE: u8 = 1;
/// A format without metadata.
const NOTHING_TO_CHECK: u8 = 63;

/// The answer, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Report<'a> {
    file: String,
    corruptions: u64,
    leaks: u64,
    check_errors: u64,
    findings: Vec<String>,
    /// Findings beyond those listed.
    omitted: u64,
    total_clusters: u64,
    allocated_clusters: u64,
    compressed_clusters: u64,
    fragmented_clusters: u64,
    image_end_offset: u64,
    /// What was done, if anything was.
    #[serde(skip_serializing_if = "Option::is_none")]
    repaired: Option<Repaired<'a>>,
}

/// What a repair found and did; the figures beside it are of the image as it is afterwards.
#[derive(Debug, Serialize)]
struct Repaired<'a> {
    corruptions_before: u64,
    leaks_before: u64,
    corruptions_fixed: u64,
    leaks_fixed: u64,
    refcounts_rebuilt: bool,
    #[serde(skip)]
    before: &'a CheckReport,
}

/// Runs `check`.
pub fn run(args: &CheckArgs) -> anyhow::Result<Outcome> {
    let limit = args.max_findings;
    if let Some(what) = args.repair {
        return repair(&args.image, what, limit, args.json);
    }
    if is_raw(&args.image)? {
        return nothing_to_check(&args.image);
    }
    let metadata = image::open_metadata(&args.image, Access::ReadOnly, Sharing::forced(args.force_share))?;
    let report = check(&metadata).with_context(|| args.image.path.display().to_string())?;
    answer(&args.image, &report, None, limit, args.json)
}

/// Runs `repair`.
pub fn run_repair(args: &RepairArgs) -> anyhow::Result<Outcome> {
    repair(&args.image, args.what, 100, args.json)
}

fn check(metadata: &Metadata) -> anyhow::Result<CheckReport> {
    let progress = Progress::new("check");
    Ok(qcow2::check::check(metadata, &mut steps(&progress))?)
}

fn repair(image: &ImageArgs, what: RepairWhat, limit: usize, json: bool) -> anyhow::Result<Outcome> {
    if is_raw(image)? {
        return nothing_to_check(image);
    }
    let what = match what {
        RepairWhat::Leaks => Repair::Leaks,
        RepairWhat::All => Repair::All,
    };
    let repair = || -> anyhow::Result<RepairReport> {
        let storage: Arc<dyn Storage> = Arc::new(image::open_storage(
            &image.path,
            Access::ReadWrite,
            Sharing::Locked,
        )?);
        let progress = Progress::new("repair");
        Ok(qcow2::repair::repair(storage, what, &mut steps(&progress))?)
    };
    let done = repair().with_context(|| image.path.display().to_string())?;
    answer(image, &done.after, Some(&done), limit, json)
}

fn is_raw(image: &ImageArgs) -> anyhow::Result<bool> {
    Ok(image::format(&image.path, image.format)? == ImageFormat::Raw)
}

fn nothing_to_check(image: &ImageArgs) -> anyhow::Result<Outcome> {
    anstream::eprintln!(
        "snaptool: {}: a raw file has nothing to check",
        image.path.display()
    );
    Ok(Outcome::Code(NOTHING_TO_CHECK))
}

fn answer(
    image: &ImageArgs,
    report: &CheckReport,
    repair: Option<&RepairReport>,
    limit: usize,
    json: bool,
) -> anyhow::Result<Outcome> {
    let listed = report.findings.len().min(limit);
    let found = Report {
        file: image.path.display().to_string(),
        corruptions: report.corruptions,
        leaks: report.leaks,
        check_errors: report.check_errors,
        findings: report
            .findings
            .iter()
            .take(listed)
            .map(ToString::to_string)
            .collect(),
        omitted: report.findings_total.saturating_sub(listed as u64),
        total_clusters: report.total_clusters,
        allocated_clusters: report.allocated_clusters,
        compressed_clusters: report.compressed_clusters,
        fragmented_clusters: report.fragmented_clusters,
        image_end_offset: report.image_end_offset,
        repaired: repair.map(|done| Repaired {
            corruptions_before: done.before.corruptions,
            leaks_before: done.before.leaks,
            corruptions_fixed: done.corruptions_fixed,
            leaks_fixed: done.leaks_fixed,
            refcounts_rebuilt: done.refcounts_rebuilt,
            before: &done.before,
        }),
    };
    let mut output = Output::new();
    if json {
        output.json(&found)?;
    } else {
        print(&found, &mut output)?;
    }
    output.finish()?;
    Ok(match report {
        report if report.check_errors > 0 => Outcome::Code(INCOMPLETE),
        report if report.corruptions > 0 => Outcome::Code(CORRUPT),
        report if report.leaks > 0 => Outcome::Code(LEAKS),
        _ => Outcome::Good,
    })
}

fn print(report: &Report<'_>, output: &mut Output) -> std::io::Result<()> {
    if let Some(repaired) = &report.repaired {
        for finding in &repaired.before.findings {
            output.fact("found", printable(&finding.to_string()))?;
        }
        let rebuilt = if repaired.refcounts_rebuilt {
            ", all refcounts rebuilt"
        } else {
            ""
        };
        output.fact(
            "repaired",
            format_args!(
                "{} of {} corruptions, {} of {} leaks{rebuilt}",
                repaired.corruptions_fixed,
                repaired.corruptions_before,
                repaired.leaks_fixed,
                repaired.leaks_before
            ),
        )?;
    }
    for finding in &report.findings {
        output.fact("finding", printable(finding))?;
    }
    if report.omitted > 0 {
        output.fact("finding", format_args!("and {} more", report.omitted))?;
    }
    let state = match (report.check_errors, report.corruptions, report.leaks) {
        (0, 0, 0) => "clean".to_owned(),
        (0, 0, leaks) => format!("{leaks} clusters are leaked; they waste room and harm nothing"),
        (0, corruptions, leaks) => format!("{corruptions} corruptions, {leaks} leaked clusters"),
        (errors, corruptions, leaks) => {
            format!(
                "{errors} places could not be checked; {corruptions} corruptions, {leaks} leaked clusters"
            )
        }
    };
    output.fact(&report.file, state)?;
    output.fact(
        "clusters",
        format_args!(
            "{} of {} allocated ({}), {} compressed, {} fragmented",
            report.allocated_clusters,
            report.total_clusters,
            percent(report.allocated_clusters, report.total_clusters),
            report.compressed_clusters,
            report.fragmented_clusters
        ),
    )?;
    output.fact("end of image", size(report.image_end_offset))
}
