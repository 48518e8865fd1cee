//! `snaptool disk diff`: which ranges differ between internal snapshots, or one and the active disk.

use std::ops::Range;

use anyhow::Context;
use qcow2::diff::DiffSide;
use serde_json::json;

use super::image::{self, Sharing};
use super::range;
use crate::Outcome;
use crate::cli::disk::DiffArgs;
use crate::interrupt;
use crate::output::{Output, size};

/// Runs the command.
pub fn run(args: &DiffArgs) -> anyhow::Result<Outcome> {
    let path = &args.image.path;
    let format = image::format(path, args.image.format)?;
    let chain = image::open_chain(path, format, Sharing::forced(args.force_share))?;
    let before = DiffSide::Snapshot(args.before.clone());
    let after = args.after.clone().map_or(DiffSide::Active, DiffSide::Snapshot);
    let mut ranges = Vec::new();
    let mut count = 0u64;
    let limit = if args.limit == 0 || args.json {
        usize::MAX
    } else {
        args.limit
    };
    let report = qcow2::diff::diff(&chain, &before, &after, &mut |range: Range<u64>| {
        if interrupt::check().is_err() {
            return Err(qcow2::Error::Cancelled);
        }
        count += 1;
        if ranges.len() < limit {
            ranges.push(range);
        }
        Ok(())
    })
    .with_context(|| path.display().to_string())?;
    let mut output = Output::new();
    if args.json {
        let ranges: Vec<_> = ranges
            .iter()
            .map(|range| json!({ "offset": range.start, "len_bytes": range.end - range.start }))
            .collect();
        output.json(&json!({
            "file": path.display().to_string(),
            "before": args.before,
            "after": args.after,
            "same": count == 0,
            "differing_bytes": report.differing_bytes,
            "compared_bytes": report.compared_bytes,
            "ranges": ranges,
        }))?;
    } else {
        for found in &ranges {
            let len_bytes = found.end - found.start;
            output.fact(
                &range(found.start, len_bytes),
                format_args!("{} differs", size(len_bytes)),
            )?;
        }
        if count > ranges.len() as u64 {
            output.line(format_args!("and {} more ranges", count - ranges.len() as u64))?;
        }
        output.fact(
            "differing",
            format_args!("{} in {count} ranges", size(report.differing_bytes)),
        )?;
    }
    output.finish()?;
    Ok(if count == 0 { Outcome::Good } else { Outcome::No })
}
