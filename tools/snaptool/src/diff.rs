//! `snaptool diff`: which guest memory, sections and registers differ between two snapshots.
//!
//! The answer is "no" (they differ) when the guest state differs, that is, when the root digests
//! are unequal. Sections that tell a file's story (provenance, statistics) are shown as well, but
//! do not make two snapshots different. Disks are part of the state by their fingerprints; which of
//! their ranges differ is looked up in their files, where these can be found.

mod disks;

use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value as Json, json};
use snapfile::Snapshot;
use snapfile::diff::{Diff, DiffOptions, FieldChange, FieldValue, Granularity, SectionDiff, diff};

use crate::Outcome;
use crate::cli::DiffArgs;
use crate::disks::Disk;
use crate::open;
use crate::output::{Output, addresses, percent, printable, section_kind, size};
use crate::progress::Progress;
use crate::vmstate::shorten;
use disks::DiskDiff;

/// Runs the command.
pub fn run(args: &DiffArgs) -> anyhow::Result<Outcome> {
    let before = open::open_with_parents(&args.before, &args.parents)?;
    let after = open::open_with_parents(&args.after, &args.parents)?;
    let found = compare(args, &before, &after)?;
    let disks = if args.no_disks {
        None
    } else {
        let listed = |file: &Path, snapshot| Disk::all(snapshot).with_context(|| file.display().to_string());
        let (first, second) = (listed(&args.before, &before)?, listed(&args.after, &after)?);
        Some(disks::diff((&args.before, &first), (&args.after, &second)))
    };
    let mut output = Output::new();
    if args.json {
        output.json(&to_json(args, &found, disks.as_deref()))?;
    } else {
        print(args, &found, &mut output)?;
        for disk in disks.iter().flatten() {
            disks::print(args, disk, &mut output)?;
        }
    }
    output.finish()?;
    Ok(if found.same_state {
        Outcome::Good
    } else {
        Outcome::No
    })
}

fn compare(args: &DiffArgs, before: &Snapshot, after: &Snapshot) -> anyhow::Result<Diff> {
    let progress = Progress::new("diff");
    let update = |done, total| progress.go_on(done, total);
    let granularity = if args.by_chunk {
        Granularity::Chunk
    } else {
        Granularity::Page
    };
    let options = DiffOptions {
        granularity,
        progress: Some(&update),
        ..DiffOptions::default()
    };
    Ok(diff(before, after, &options)?)
}

fn print(args: &DiffArgs, found: &Diff, output: &mut Output) -> std::io::Result<()> {
    let answer = if found.same_state { "the same" } else { "differs" };
    output.fact("guest state", answer)?;
    for (side, regions) in [
        (&args.before, &found.regions_only_before),
        (&args.after, &found.regions_only_after),
    ] {
        for region in regions {
            let range = snapfile::diff::GuestRange {
                guest_address: region.guest_address,
                len_bytes: region.len_bytes,
            };
            output.fact(
                "region",
                format_args!(
                    "{} ({}) only in {}",
                    addresses(&range),
                    size(region.len_bytes),
                    side.display()
                ),
            )?;
        }
    }
    print_memory(args, found, output)?;
    for section in &found.sections {
        print_section(args, section, output)?;
    }
    Ok(())
}

fn print_memory(args: &DiffArgs, found: &Diff, output: &mut Output) -> std::io::Result<()> {
    let memory = &found.memory;
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    for range in memory.ranges.iter().take(limit) {
        output.fact(
            "memory",
            format_args!("{} ({}) differs", addresses(range), size(range.len_bytes)),
        )?;
    }
    let shown = memory.ranges.len().min(limit) as u64;
    if shown < memory.range_count {
        output.fact(
            "memory",
            format_args!("and {} more ranges", memory.range_count - shown),
        )?;
    }
    let changed = match memory.changed_bytes {
        Some(bytes) if memory.differing_bytes > 0 => format!("; {bytes} single bytes changed"),
        _ => String::new(),
    };
    output.fact(
        "differing memory",
        format_args!(
            "{} of {} ({}) in {} ranges{changed}",
            size(memory.differing_bytes),
            size(memory.compared_bytes),
            percent(memory.differing_bytes, memory.compared_bytes),
            memory.range_count,
        ),
    )
}

fn print_section(args: &DiffArgs, section: &SectionDiff, output: &mut Output) -> std::io::Result<()> {
    let Some((kind, name)) = section.key() else {
        return Ok(());
    };
    let kind = section_kind(kind);
    let title = if name.is_empty() {
        kind.clone()
    } else {
        name.to_owned()
    };
    let (before, after) = match (&section.before, &section.after) {
        (Some(before), Some(after)) => (before, after),
        (Some(_), None) => {
            return output.fact(&title, format_args!("{kind} only in {}", args.before.display()));
        }
        _ => return output.fact(&title, format_args!("{kind} only in {}", args.after.display())),
    };
    if before.version != after.version {
        output.fact(
            &title,
            format_args!("{kind} version {} -> {}", before.version, after.version),
        )?;
    }
    match &section.fields {
        Some(changes) => print_changes(args, &title, changes, output),
        None => output.fact(
            &title,
            format_args!(
                "{kind} differs ({} -> {} bytes)",
                before.len_bytes, after.len_bytes
            ),
        ),
    }
}

fn print_changes(
    args: &DiffArgs,
    title: &str,
    changes: &[FieldChange],
    output: &mut Output,
) -> std::io::Result<()> {
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    if changes.is_empty() {
        return output.fact(title, "the same fields, encoded differently");
    }
    for change in changes.iter().take(limit) {
        output.fact(
            title,
            format_args!("{} {}", printable(&change.path), describe(change)),
        )?;
    }
    match changes.len().checked_sub(limit) {
        Some(more @ 1..) => output.fact(title, format_args!("and {more} more fields")),
        _ => Ok(()),
    }
}

/// `0x1000 -> 0x2000`; of long byte strings only how many bytes differ and where.
fn describe(change: &FieldChange) -> String {
    match (&change.before, &change.after) {
        (Some(FieldValue::Bytes(before)), Some(FieldValue::Bytes(after))) if before.len() == after.len() => {
            let differing = || {
                before
                    .iter()
                    .zip(after)
                    .enumerate()
                    .filter(|(_, (before, after))| before != after)
            };
            match differing().next() {
                Some((first, _)) if before.len() > 16 => {
                    format!(
                        "{} of {} bytes, the first at {first:#x}",
                        differing().count(),
                        before.len()
                    )
                }
                _ => format!(
                    "{} -> {}",
                    FieldValue::Bytes(before.clone()),
                    FieldValue::Bytes(after.clone())
                ),
            }
        }
        (Some(before), Some(after)) => format!("{} -> {}", shorten(before), shorten(after)),
        (Some(before), None) => format!("{} -> nothing", shorten(before)),
        (None, Some(after)) => format!("nothing -> {}", shorten(after)),
        (None, None) => String::new(),
    }
}

/// A section that differs, as `--json` shows it.
#[derive(Serialize)]
struct SectionLine<'a> {
    kind: String,
    name: &'a str,
    /// Whether it belongs to the guest state.
    state: bool,
    /// `before` or `after` if it is in one snapshot only.
    #[serde(skip_serializing_if = "Option::is_none")]
    only: Option<&'static str>,
    /// The fields that differ; absent where the payload cannot be taken apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    fields: Option<Vec<Json>>,
}

fn to_json(args: &DiffArgs, found: &Diff, disks: Option<&[DiskDiff]>) -> Json {
    let sections: Vec<_> = found.sections.iter().filter_map(section_line).collect();
    let mut object = json!({
        "before": args.before.display().to_string(),
        "after": args.after.display().to_string(),
        "same_state": found.same_state,
        "regions_only_before": found.regions_only_before,
        "regions_only_after": found.regions_only_after,
        "memory": found.memory,
        "sections": sections,
    });
    if let (Json::Object(fields), Some(disks)) = (&mut object, disks) {
        fields.insert("disks".to_owned(), json!(disks));
    }
    object
}

fn section_line(section: &SectionDiff) -> Option<SectionLine<'_>> {
    let (kind, name) = section.key()?;
    let only = match (&section.before, &section.after) {
        (Some(_), None) => Some("before"),
        (None, Some(_)) => Some("after"),
        _ => None,
    };
    let change = |change: &FieldChange| {
        let value = |value: &Option<FieldValue>| value.as_ref().map_or(Json::Null, field_json);
        json!({ "path": change.path, "before": value(&change.before), "after": value(&change.after) })
    };
    let fields = section
        .fields
        .as_ref()
        .map(|changes| changes.iter().map(change).collect());
    Some(SectionLine {
        kind: section_kind(kind),
        name,
        state: section.is_state(),
        only,
        fields,
    })
}

/// Integers and truth values as they are, everything else as text.
fn field_json(value: &FieldValue) -> Json {
    match value {
        FieldValue::Integer(number) => match (u64::try_from(*number), i64::try_from(*number)) {
            (Ok(number), _) => Json::from(number),
            (_, Ok(number)) => Json::from(number),
            _ => Json::String(number.to_string()),
        },
        FieldValue::Bool(value) => Json::Bool(*value),
        FieldValue::Text(text) => Json::String(text.clone()),
        other => Json::String(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(before: FieldValue, after: FieldValue) -> FieldChange {
        FieldChange {
            path: "x".to_owned(),
            before: Some(before),
            after: Some(after),
        }
    }

    #[test]
    fn numbers_show_both_values_and_byte_strings_where_they_differ() {
        assert_eq!(
            describe(&change(FieldValue::Integer(0x1000), FieldValue::Integer(0x2000))),
            "0x1000 -> 0x2000"
        );
        let mut page = vec![0; 1024];
        let before = FieldValue::Bytes(page.clone());
        page[0x80] = 1;
        page[0x90] = 1;
        assert_eq!(
            describe(&change(before, FieldValue::Bytes(page))),
            "2 of 1024 bytes, the first at 0x80"
        );
    }
}
