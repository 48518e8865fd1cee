//! `snaptool inspect`: what a snapshot file contains.
//!
//! The summary comes from header, footer and directory alone, whatever the size of the file; only
//! `--map`, `--chunks` and `--picture` read the index, and nothing decodes a chunk. The file is not
//! verified beyond the checksums of what is read.

mod chunks;
mod picture;
mod summary;

use anyhow::Context;
use serde_json::Value as Json;
use snapfile::{SectionKind, Snapshot};

use crate::Outcome;
use crate::cli::InspectArgs;
use crate::disks::Disk;
use crate::open;
use crate::output::{Output, printable, section_kind, size};
use crate::vmstate;

/// Runs the command.
pub fn run(args: &InspectArgs) -> anyhow::Result<Outcome> {
    let snapshot = open::open(&args.file)?;
    let mut output = Output::new();
    if args.chunks {
        chunks::print_entries(&mut output, &snapshot, args.json)?;
    } else if args.json {
        output.json(&describe(args, &snapshot).with_context(|| args.file.display().to_string())?)?;
    } else {
        print(args, &snapshot, &mut output)?;
    }
    output.finish()?;
    Ok(Outcome::Good)
}

fn describe(args: &InspectArgs, snapshot: &Snapshot) -> anyhow::Result<Json> {
    let mut object = summary::to_json(&args.file, snapshot);
    object.insert(
        "sections".to_owned(),
        snapshot.sections().iter().map(summary::section_json).collect(),
    );
    object.insert(
        "disks".to_owned(),
        serde_json::to_value(Disk::all(snapshot).ok())?,
    );
    for (key, kind) in [
        ("provenance", SectionKind::Provenance),
        ("statistics", SectionKind::Statistics),
    ] {
        object.insert(key.to_owned(), vmstate::sections_json(snapshot, kind, "")?);
    }
    if args.map {
        object.insert(
            "map".to_owned(),
            serde_json::to_value(chunks::region_statistics(snapshot)?)?,
        );
    }
    if let Some(prefix) = &args.vmstate {
        object.insert(
            "vmstate".to_owned(),
            vmstate::sections_json(snapshot, SectionKind::VmState, prefix)?,
        );
        object.insert(
            "platform".to_owned(),
            vmstate::sections_json(snapshot, SectionKind::Platform, prefix)?,
        );
    }
    Ok(Json::Object(object))
}

/// Prints what was asked for; the summary if nothing was.
fn print(args: &InspectArgs, snapshot: &Snapshot, output: &mut Output) -> anyhow::Result<()> {
    let asked = args.sections || args.vmstate.is_some() || args.map || args.picture;
    if !asked {
        summary::print(output, &args.file, snapshot)?;
    }
    if args.sections {
        print_sections(output, snapshot)?;
        summary::print_stories(output, snapshot, summary::Detail::Everything)?;
    }
    if args.map {
        chunks::print_regions(output, snapshot)?;
    }
    if args.picture {
        picture::print(output, snapshot)?;
    }
    if let Some(prefix) = &args.vmstate {
        for kind in [SectionKind::VmState, SectionKind::Platform] {
            for entry in vmstate::parts(snapshot, kind, prefix) {
                vmstate::print_fields(output, snapshot, entry)?;
            }
        }
    }
    Ok(())
}

fn print_sections(output: &mut Output, snapshot: &Snapshot) -> anyhow::Result<()> {
    for entry in snapshot.sections() {
        let state = if entry.state { ", state" } else { "" };
        let name = if entry.name.is_empty() {
            "-".into()
        } else {
            printable(&entry.name)
        };
        let facts = format_args!(
            "{name}, version {}, {}, stored in {} at offset {:#x}{state}",
            entry.version,
            size(u64::from(entry.len_bytes)),
            size(u64::from(entry.stored_len)),
            entry.offset,
        );
        output.fact(&section_kind(entry.kind), facts)?;
    }
    Ok(())
}
