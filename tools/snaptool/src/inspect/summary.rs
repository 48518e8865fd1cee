//! The summary: identity, sizes, chunk counts, and the file's own story.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value as Json, json};
use snapfile::diff::{Field, FieldValue};
use snapfile::{ChunkCounts, ChunkKind, SectionEntry, SectionKind, Snapshot};

use crate::disks::Disk;
use crate::output::{Output, percent, printable, section_kind, size};
use crate::vmstate;

/// Prints the summary, one fact per line.
pub fn print(output: &mut Output, file: &Path, snapshot: &Snapshot) -> anyhow::Result<()> {
    let header = snapshot.header();
    let summary = snapshot.summary();
    output.fact(
        "file",
        format_args!("{} ({})", file.display(), size(summary.file_len)),
    )?;
    output.fact("format", format_args!("{}.{}", header.major, header.minor))?;
    output.fact("created", created(header.created_unix_ns))?;
    output.fact("producer", printable(&header.producer))?;
    output.fact("architecture", header.architecture)?;
    output.fact("root digest", summary.root_digest)?;
    match &header.parent {
        Some(parent) => {
            output.fact(
                "parent",
                format_args!("{} ({})", parent.root_digest, printable(&parent.hint)),
            )?;
        }
        None => output.fact("parent", "none")?,
    }
    let regions = snapshot.memory_map().regions().len();
    let plural = if regions == 1 { "" } else { "s" };
    output.fact(
        "memory",
        format_args!("{} in {regions} region{plural}", size(header.memory_bytes)),
    )?;
    output.fact(
        "chunks",
        format_args!(
            "{} of {}",
            header.chunk_count,
            size(u64::from(header.chunk_size.bytes()))
        ),
    )?;
    print_counts(output, &summary.chunks)?;
    let stored = percent(summary.stored_bytes, header.memory_bytes);
    output.fact(
        "stored",
        format_args!("{} ({stored} of memory)", size(summary.stored_bytes)),
    )?;
    output.fact("sections", snapshot.sections().len())?;
    print_parts(output, snapshot)?;
    print_disks(output, snapshot)?;
    print_stories(output, snapshot, Detail::Headlines)
}

/// Prints what the machine consists of, by the names of the parts of its state.
fn print_parts(output: &mut Output, snapshot: &Snapshot) -> std::io::Result<()> {
    let vcpus = vmstate::parts(snapshot, SectionKind::VmState, "vcpu/").count();
    if vcpus > 0 {
        output.fact("vcpus", vcpus)?;
    }
    let devices: Vec<_> = vmstate::parts(snapshot, SectionKind::VmState, "device/")
        .filter_map(|entry| entry.name.strip_prefix("device/"))
        .map(printable)
        .collect();
    if !devices.is_empty() {
        output.fact("devices", devices.join(", "))?;
    }
    Ok(())
}

/// Prints the guest's disks with their chains: `data, qcow2, 1.0 GiB, overlay`, then a line per layer.
fn print_disks(output: &mut Output, snapshot: &Snapshot) -> std::io::Result<()> {
    let disks = match Disk::all(snapshot) {
        Ok(disks) => disks,
        Err(error) => return output.fact("disks", format_args!("not readable: {error:#}")),
    };
    for disk in disks {
        let id = printable(&disk.id).into_owned();
        let mut facts = format!(
            "{id}, {}, {}, {}",
            printable(&disk.format),
            size(disk.virtual_size_bytes),
            disk.mode
        );
        if disk.readonly {
            facts += ", read-only";
        }
        if let Some(internal) = &disk.internal {
            facts += &format!(
                ", internal snapshot {} ({})",
                printable(&internal.id),
                printable(&internal.name)
            );
        }
        output.fact("disk", facts)?;
        for (depth, layer) in disk.layers.iter().enumerate() {
            let file = printable(
                layer
                    .file
                    .as_deref()
                    .unwrap_or("a file whose name was not recorded"),
            );
            let format = printable(layer.format.as_deref().unwrap_or("unknown format"));
            let length = layer
                .file_bytes
                .map_or(String::new(), |bytes| format!(", {}", size(bytes)));
            output.fact(
                &format!("disk {id} layer {depth}"),
                format_args!("{file}, {format}{length}, fingerprint {}", layer.fingerprint),
            )?;
        }
    }
    Ok(())
}

/// How much of a file's story is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// The fields that are not within another and hold something.
    Headlines,
    /// Every field.
    Everything,
}

impl Detail {
    fn tells(self, field: &Field) -> bool {
        let is_empty = matches!(field.value, FieldValue::EmptyArray | FieldValue::EmptyMap);
        self == Self::Everything || !(is_empty || field.path.contains('.'))
    }
}

/// Prints how the file came to be and what the capture cost.
pub fn print_stories(output: &mut Output, snapshot: &Snapshot, detail: Detail) -> anyhow::Result<()> {
    for kind in [SectionKind::Provenance, SectionKind::Statistics] {
        for entry in vmstate::parts(snapshot, kind, "") {
            print_story(output, snapshot, entry, detail)?;
        }
    }
    Ok(())
}

/// Prints the kinds of chunks that there are.
pub fn print_counts(output: &mut Output, counts: &ChunkCounts) -> std::io::Result<()> {
    for kind in ChunkKind::ALL {
        let count = counts.of(kind);
        if count > 0 {
            output.fact(
                &format!("{} chunks", kind.name()),
                format_args!("{count} ({})", percent(count, counts.total())),
            )?;
        }
    }
    Ok(())
}

/// Prints a section that is not machine state under its name, or if it has none that of its kind.
fn print_story(
    output: &mut Output,
    snapshot: &Snapshot,
    entry: &SectionEntry,
    detail: Detail,
) -> anyhow::Result<()> {
    let payload = snapshot.read_section(entry)?;
    let key = match entry.name.as_str() {
        "" => section_kind(entry.kind),
        name => name.to_owned(),
    };
    match snapfile::diff::fields(&payload) {
        Ok(fields) => {
            for field in fields.iter().filter(|field| detail.tells(field)) {
                // Stories have counts and times, which people read in decimal.
                let value = match &field.value {
                    FieldValue::Integer(number) => number.to_string(),
                    value => vmstate::shorten(value),
                };
                output.fact(&key, format_args!("{}: {value}", printable(&field.path)))?;
            }
        }
        Err(error) => output.fact(&key, format_args!("not readable: {error}"))?,
    }
    Ok(())
}

/// The summary as the members of a JSON object.
pub fn to_json(file: &Path, snapshot: &Snapshot) -> Map<String, Json> {
    let header = snapshot.header();
    let summary = snapshot.summary();
    let object = json!({
        "file": file.display().to_string(),
        "file_bytes": summary.file_len,
        "file_id": summary.file_id,
        "format": {
            "major": header.major,
            "minor": header.minor,
            "incompatible": header.incompatible,
            "read_only_compatible": header.read_only_compatible,
            "compatible": header.compatible,
        },
        "created": created(header.created_unix_ns),
        "created_unix_ns": header.created_unix_ns,
        "producer": header.producer,
        "architecture": header.architecture.to_string(),
        "root_digest": summary.root_digest,
        "parent": header.parent,
        "memory_bytes": header.memory_bytes,
        "memory_map": snapshot.memory_map().regions(),
        "chunk_bytes": header.chunk_size.bytes(),
        "chunk_count": header.chunk_count,
        "chunks": summary.chunks,
        "stored_bytes": summary.stored_bytes,
    });
    let Json::Object(object) = object else {
        return Map::new();
    };
    object
}

/// One entry of the directory.
pub fn section_json(entry: &SectionEntry) -> Json {
    json!({
        "kind": section_kind(entry.kind),
        "name": entry.name,
        "version": entry.version,
        "state": entry.state,
        "len_bytes": entry.len_bytes,
        "stored_bytes": entry.stored_len,
        "offset": entry.offset,
        "digest": entry.digest,
    })
}

fn created(unix_ns: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(unix_ns)).to_string()
}
