//! The index: every entry, or the chunks of each region by kind.

use serde::Serialize;
use snapfile::{ChunkCounts, ChunkEntry, ChunkKind, ChunkNumber, ChunkRange, Digest, MemoryRegion, Snapshot};

use crate::output::{Output, addresses, percent, size};

/// Calls `visit` with every chunk of a range in order.
pub fn for_each_entry(
    snapshot: &Snapshot,
    chunks: std::ops::Range<u64>,
    mut visit: impl FnMut(ChunkNumber, ChunkRange, ChunkEntry) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut decoder = snapshot.decoder();
    for number in chunks.map(ChunkNumber) {
        if let Some(range) = snapshot.layout().chunk(number) {
            visit(number, range, decoder.chunk_entry(number)?)?;
        }
    }
    Ok(())
}

/// A line of `--chunks --json`.
#[derive(Serialize)]
struct ChunkLine {
    chunk: u64,
    guest_address: u64,
    len_bytes: u32,
    /// `zero`, `fill`, `data`, `duplicate` or `parent`.
    kind: &'static str,
    /// How data is stored: `raw`, `zstd` or `lz4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    codec: Option<ChunkKind>,
    /// Where data is in the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored_bytes: Option<u32>,
    /// The chunk that a duplicate equals.
    #[serde(skip_serializing_if = "Option::is_none")]
    source_chunk: Option<u64>,
    /// The 8 bytes that a fill repeats, in memory order, as hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pattern: Option<String>,
    /// Absent for zero chunks, whose digest is a constant.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
}

impl ChunkLine {
    fn new(number: ChunkNumber, range: ChunkRange, entry: ChunkEntry) -> Self {
        let data = entry.kind.is_data();
        Self {
            chunk: number.0,
            guest_address: range.guest_address,
            len_bytes: range.len_bytes,
            kind: if data { "data" } else { entry.kind.name() },
            codec: data.then_some(entry.kind),
            offset: data.then_some(entry.location),
            stored_bytes: data.then_some(entry.stored_len),
            source_chunk: (entry.kind == ChunkKind::Duplicate).then_some(entry.location),
            pattern: (entry.kind == ChunkKind::Fill).then(|| format!("{:016x}", entry.location.swap_bytes())),
            digest: (entry.kind != ChunkKind::Zero).then_some(entry.digest),
        }
    }
}

/// Prints the index entry of every chunk, as a table or as one JSON object per line.
pub fn print_entries(output: &mut Output, snapshot: &Snapshot, json: bool) -> anyhow::Result<()> {
    if !json {
        output
            .line("     chunk     guest address  bytes    kind       stored    offset or value     digest")?;
    }
    for_each_entry(
        snapshot,
        0..snapshot.layout().chunk_count(),
        |number, range, entry| {
            if json {
                return Ok(output.json_line(&ChunkLine::new(number, range, entry))?);
            }
            let digest = if entry.kind == ChunkKind::Zero {
                "-".to_owned()
            } else {
                entry.digest.to_string()
            };
            output.line(format_args!(
                "{:>10}  {:#016x}  {:<7}  {:<9}  {:<8}  {:<#18x}  {:.16}",
                number,
                range.guest_address,
                range.len_bytes,
                entry.kind.name(),
                entry.stored_len,
                entry.location,
                digest,
            ))?;
            Ok(())
        },
    )
}

/// The chunks of one region.
#[derive(Serialize)]
pub struct RegionStatistics {
    #[serde(flatten)]
    region: MemoryRegion,
    first_chunk: u64,
    chunk_count: u64,
    chunks: ChunkCounts,
    stored_bytes: u64,
}

/// Counts the chunks of every region by kind.
pub fn region_statistics(snapshot: &Snapshot) -> anyhow::Result<Vec<RegionStatistics>> {
    let regions = snapshot.memory_map().regions().iter().enumerate();
    regions
        .map(|(index, &region)| count_region(snapshot, index, region))
        .collect()
}

fn count_region(snapshot: &Snapshot, index: usize, region: MemoryRegion) -> anyhow::Result<RegionStatistics> {
    let numbers = snapshot.layout().region_chunks(index);
    let mut chunks = ChunkCounts::default();
    let mut stored_bytes = 0;
    for_each_entry(snapshot, numbers.clone(), |_, _, entry| {
        chunks.add(entry.kind, 1);
        stored_bytes += u64::from(entry.stored_len);
        Ok(())
    })?;
    let chunk_count = numbers.end - numbers.start;
    Ok(RegionStatistics {
        region,
        first_chunk: numbers.start,
        chunk_count,
        chunks,
        stored_bytes,
    })
}

/// Prints every region with its chunks by kind.
pub fn print_regions(output: &mut Output, snapshot: &Snapshot) -> anyhow::Result<()> {
    for statistics in region_statistics(snapshot)? {
        let region = statistics.region;
        let range = snapfile::diff::GuestRange {
            guest_address: region.guest_address,
            len_bytes: region.len_bytes,
        };
        let kinds: Vec<String> = ChunkKind::ALL
            .into_iter()
            .map(|kind| (kind, statistics.chunks.of(kind)))
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| format!("{count} {}", kind.name()))
            .collect();
        output.fact(
            &format!("region {}", addresses(&range)),
            format_args!(
                "{}, stored in {} ({}); chunks: {}",
                size(region.len_bytes),
                size(statistics.stored_bytes),
                percent(statistics.stored_bytes, region.len_bytes),
                kinds.join(", "),
            ),
        )?;
    }
    Ok(())
}
