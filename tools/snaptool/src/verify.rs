//! `snaptool verify`: is the file sound, and if not, what is lost.
//!
//! With `--deep` also: are the files of the guest's disks those of the snapshot, and sound.

mod disks;

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use snapfile::diff::GuestRange;
use snapfile::verify::{Damage, Depth, VerifyOptions, VerifyReport};

use crate::Outcome;
use crate::cli::VerifyArgs;
use crate::open;
use crate::output::{Output, pages, printable, size};
use crate::progress::Progress;
use disks::{CheckedDisk, CheckedLayer, State};

/// Guest ranges of a finding that the text form shows.
const SHOWN_RANGES: usize = 4;

/// Runs the command.
pub fn run(args: &VerifyArgs) -> anyhow::Result<Outcome> {
    let report = verify(args).with_context(|| args.file.display().to_string())?;
    // What a damaged file says of its disks proves nothing.
    let disks = if args.deep && report.is_sound() && args.file != Path::new("-") {
        disks::check(&args.file).with_context(|| args.file.display().to_string())?
    } else {
        Vec::new()
    };
    let is_sound = report.is_sound() && !disks.iter().any(|disk| disk.state.is_damage());
    let mut output = Output::new();
    if args.json {
        output.json(&to_json(args, &report, is_sound, &disks))?;
    } else {
        print(args, &report, &mut output)?;
        print_disks(&disks, &mut output)?;
    }
    output.finish()?;
    Ok(if is_sound { Outcome::Good } else { Outcome::No })
}

fn depth(args: &VerifyArgs) -> Depth {
    match (args.quick, args.deep) {
        (true, _) => Depth::Quick,
        (_, true) => Depth::Deep,
        _ => Depth::Checksums,
    }
}

fn verify(args: &VerifyArgs) -> anyhow::Result<VerifyReport> {
    let progress = Progress::new("verify");
    let update = |done, total| progress.go_on(done, total);
    let mut options = VerifyOptions {
        depth: depth(args),
        max_findings: args.max_findings,
        progress: Some(&update),
        ..VerifyOptions::default()
    };
    if args.file == Path::new("-") {
        anyhow::ensure!(!args.quick, "--quick needs a file: a pipe is read front to back");
        return Ok(snapfile::verify::verify_stream(
            std::io::stdin().lock(),
            &options,
        )?);
    }
    let file = File::open(&args.file)?;
    // A file too damaged to be opened has no parent to follow.
    if args.deep && snapfile::Snapshot::open(&args.file).is_ok() {
        options.parent = open::open_with_parents(&args.file, &args.parents)?
            .parent()
            .cloned();
    }
    Ok(snapfile::verify::verify(&file, &options)?)
}

fn print(args: &VerifyArgs, report: &VerifyReport, output: &mut Output) -> std::io::Result<()> {
    let file = args.file.display().to_string();
    for damage in &report.damage {
        output.fact(&file, describe(damage))?;
    }
    if report.omitted > 0 {
        output.fact(
            &file,
            format_args!("damaged: and {} more findings", report.omitted),
        )?;
    }
    if report.is_sound() {
        let what = match depth(args) {
            Depth::Quick => "structures",
            Depth::Deep => "every checksum and digest",
            _ => "every checksum",
        };
        output.fact(
            &file,
            format_args!("sound: {what} ({} read)", size(report.checked_bytes)),
        )?;
    }
    Ok(())
}

fn print_disks(disks: &[CheckedDisk], output: &mut Output) -> std::io::Result<()> {
    for disk in disks {
        let id = printable(&disk.id);
        if disk.layers.is_empty() {
            output.fact("disk", format_args!("{id}: none of its content was recorded"))?;
        }
        for layer in &disk.layers {
            let file = printable(layer.file.as_deref().unwrap_or("-"));
            output.fact("disk", format_args!("{id}: {file}: {}", describe_layer(layer)))?;
        }
    }
    Ok(())
}

fn describe_layer(layer: &CheckedLayer) -> String {
    let what = match layer.state {
        State::Matches => "sound",
        State::InUse => "as of the snapshot; a machine writes to the image, so its metadata was not checked",
        State::Differs => "damaged: not as of the snapshot",
        State::Corrupt => "damaged: as of the snapshot, with corrupt metadata",
        State::Missing => "not checked: it is not there",
        State::NotRecorded => "not checked: nothing was recorded",
    };
    let mut text = what.to_owned();
    if layer.corruptions > 0 {
        text += &format!(", {} corruptions", layer.corruptions);
    }
    if layer.leaks > 0 {
        text += &format!(", {} leaked clusters, which harm nothing", layer.leaks);
    }
    text
}

/// `damaged: chunk 12 at offset 0x4000: checksum mismatch (spec 8.6); pages 3072-3327 are lost`
fn describe(damage: &Damage) -> String {
    let lost: Vec<String> = guest_ranges(damage)
        .iter()
        .take(SHOWN_RANGES)
        .map(pages)
        .collect();
    let more = damage.guest.0.len().saturating_sub(SHOWN_RANGES);
    let more = if more > 0 {
        format!(" and {more} more ranges")
    } else {
        String::new()
    };
    let lost = match lost.as_slice() {
        [] => String::new(),
        [one] if one.starts_with("page ") => format!("; {one} is lost"),
        all => format!("; {}{more} are lost", all.join(", ")),
    };
    format!(
        "damaged: {} (spec {}){lost}",
        damage.problem,
        damage.problem.clause()
    )
}

fn guest_ranges(damage: &Damage) -> Vec<GuestRange> {
    let range = |range: &std::ops::Range<u64>| GuestRange {
        guest_address: range.start,
        len_bytes: range.end.saturating_sub(range.start),
    };
    damage.guest.0.iter().map(range).collect()
}

/// The report, as `--json` shows it.
#[derive(Serialize)]
struct Report<'a> {
    file: String,
    /// `quick`, `checksums` or `deep`.
    depth: &'static str,
    sound: bool,
    file_bytes: u64,
    checked_bytes: u64,
    frames: u64,
    decoded_chunks: u64,
    damage: Vec<Finding>,
    /// Findings beyond those listed.
    omitted: u64,
    /// The guest's disks, with `--deep`.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    disks: &'a [CheckedDisk],
}

/// One finding.
#[derive(Serialize)]
struct Finding {
    message: String,
    /// Name of the broken rule, stable.
    rule: &'static str,
    clause: &'static str,
    /// Where the structure is in the file.
    offset: Option<u64>,
    /// Guest memory that is lost with it.
    guest: Vec<GuestRange>,
}

fn to_json<'a>(
    args: &VerifyArgs,
    report: &VerifyReport,
    is_sound: bool,
    disks: &'a [CheckedDisk],
) -> Report<'a> {
    let finding = |damage: &Damage| Finding {
        message: damage.problem.to_string(),
        rule: damage.problem.name(),
        clause: damage.problem.clause(),
        offset: damage.problem.offset(),
        guest: guest_ranges(damage),
    };
    Report {
        file: args.file.display().to_string(),
        depth: match depth(args) {
            Depth::Quick => "quick",
            Depth::Deep => "deep",
            _ => "checksums",
        },
        sound: is_sound,
        file_bytes: report.file_bytes,
        checked_bytes: report.checked_bytes,
        frames: report.frames,
        decoded_chunks: report.decoded_chunks,
        damage: report.damage.iter().map(finding).collect(),
        omitted: report.omitted,
        disks,
    }
}
