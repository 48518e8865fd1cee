//! Which ranges of the guest's disks differ between two snapshots.
//!
//! Equal fingerprints are equal content. Otherwise only what one of the two disks has above the layers that they share
//! can differ, and only that is read.

use std::ops::Range;
use std::path::Path;

use qcow2::diff::DiffSide;
use qcow2::{Chain, ImageFormat, Layer};
use serde::Serialize;

use crate::cli::DiffArgs;
use crate::disks::content::Content;
use crate::disks::{Disk, Mode};
use crate::output::{Output, printable, size};
use crate::progress::Progress;

/// Bytes that are read at a time.
const STEP_BYTES: u64 = 1 << 20;
/// Bytes that are compared as one.
const BLOCK_BYTES: usize = 4096;
/// Ranges that are kept one by one.
const MAX_RANGES: usize = 100_000;

/// How two disks of one name compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The same content.
    Same,
    /// Other content.
    Differs,
    /// Only the first snapshot has it.
    OnlyBefore,
    /// Only the second snapshot has it.
    OnlyAfter,
    /// Its content cannot be read.
    NotCompared,
}

/// A range of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DiskRange {
    /// First byte.
    pub offset: u64,
    /// Its length.
    pub len_bytes: u64,
}

/// How a disk differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskDiff {
    /// Name of the disk.
    pub id: String,
    /// What was found.
    pub state: State,
    /// Why the content was not compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes in the ranges.
    pub differing_bytes: u64,
    /// Bytes that were read of each.
    pub compared_bytes: u64,
    /// The ranges that differ, in order.
    pub ranges: Vec<DiskRange>,
    /// How many there are, also those beyond what is listed.
    pub range_count: u64,
}

impl DiskDiff {
    fn new(id: &str, state: State) -> Self {
        Self {
            id: id.to_owned(),
            state,
            reason: None,
            differing_bytes: 0,
            compared_bytes: 0,
            ranges: Vec::new(),
            range_count: 0,
        }
    }

    /// Adds a range, joined with the last one if it goes on there.
    fn add(&mut self, range: Range<u64>) {
        let len_bytes = range.end.saturating_sub(range.start);
        self.state = State::Differs;
        self.differing_bytes += len_bytes;
        match self.ranges.last_mut() {
            Some(last) if last.offset + last.len_bytes == range.start => last.len_bytes += len_bytes,
            _ => {
                self.range_count += 1;
                if self.ranges.len() < MAX_RANGES {
                    self.ranges.push(DiskRange {
                        offset: range.start,
                        len_bytes,
                    });
                }
            }
        }
    }
}

/// Compares the disks of two snapshot files, those of the first in their order, then those that only the second has.
pub fn diff(before: (&Path, &[Disk]), after: (&Path, &[Disk])) -> Vec<DiskDiff> {
    let progress = Progress::new("diff disks");
    let ((before_file, before), (after_file, after)) = (before, after);
    let find = |disks: &[Disk], id: &str| disks.iter().position(|disk| disk.id == id);
    let of_before = before
        .iter()
        .map(|disk| match find(after, &disk.id).and_then(|at| after.get(at)) {
            None => DiskDiff::new(&disk.id, State::OnlyBefore),
            Some(other) if is_same(disk, other) => DiskDiff::new(&disk.id, State::Same),
            Some(other) => {
                let compared = compare((disk, before_file), (other, after_file), &progress);
                compared.unwrap_or_else(|error| DiskDiff {
                    reason: Some(format!("{error:#}")),
                    ..DiskDiff::new(&disk.id, State::NotCompared)
                })
            }
        });
    let of_after = after
        .iter()
        .filter(|disk| find(before, &disk.id).is_none())
        .map(|disk| DiskDiff::new(&disk.id, State::OnlyAfter));
    of_before.chain(of_after).collect()
}

/// Prints how a disk differs.
pub fn print(args: &DiffArgs, disk: &DiskDiff, output: &mut Output) -> std::io::Result<()> {
    let id = printable(&disk.id).into_owned();
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    for range in disk.ranges.iter().take(limit) {
        let last = range.offset.saturating_add(range.len_bytes).saturating_sub(1);
        output.fact(
            &format!("disk {id}"),
            format_args!(
                "{:#x}-{last:#x} ({}) differs",
                range.offset,
                size(range.len_bytes)
            ),
        )?;
    }
    let shown = disk.ranges.len().min(limit) as u64;
    if shown < disk.range_count {
        let more = disk.range_count - shown;
        output.fact(&format!("disk {id}"), format_args!("and {more} more ranges"))?;
    }
    let answer = match disk.state {
        State::Same => "the same".to_owned(),
        State::Differs => format!(
            "{} differ in {} ranges",
            size(disk.differing_bytes),
            disk.range_count
        ),
        State::OnlyBefore => format!("only in {}", args.before.display()),
        State::OnlyAfter => format!("only in {}", args.after.display()),
        State::NotCompared => {
            format!(
                "not compared: {}",
                printable(disk.reason.as_deref().unwrap_or("-"))
            )
        }
    };
    output.fact(&format!("disk {id}"), answer)
}

/// Whether the disk tables alone say that the content is the same.
fn is_same(before: &Disk, after: &Disk) -> bool {
    let prints = |disk: &Disk| {
        disk.layers
            .iter()
            .map(|layer| layer.fingerprint)
            .collect::<Vec<_>>()
    };
    let internal = |disk: &Disk| disk.mode == Mode::Internal;
    !before.layers.is_empty()
        && prints(before) == prints(after)
        && internal(before) == internal(after)
        && before.format == after.format
        && before.virtual_size_bytes == after.virtual_size_bytes
}

fn compare(before: (&Disk, &Path), after: (&Disk, &Path), progress: &Progress) -> anyhow::Result<DiskDiff> {
    let left = Content::open(before.0, before.1)?;
    let right = Content::open(after.0, after.1)?;
    let mut found = DiskDiff::new(&before.0.id, State::Same);
    if left.is_of_same_image(&right)
        && let (Some(first), Some(second)) = (&before.0.internal, &after.0.internal)
    {
        let chain = Chain::open_shared(&left.file, ImageFormat::Qcow2)?;
        let side = |id: &str| DiffSide::Snapshot(id.to_owned());
        let report = qcow2::diff::diff(&chain, &side(&first.id), &side(&second.id), &mut |range| {
            found.add(range);
            Ok(())
        })?;
        found.compared_bytes = report.compared_bytes;
        return Ok(found);
    }
    let (own_left, own_right) = left.above_common(&right);
    let own: Vec<&dyn Layer> = own_left.into_iter().chain(own_right).collect();
    let end = left.top.len_bytes().max(right.top.len_bytes());
    let mut offset = 0;
    while offset < end {
        progress.update(offset, end);
        let (differs, len) = may_differ(&own, (&*left.top, &*right.top), offset, end - offset)?;
        let len = if differs { len.min(STEP_BYTES) } else { len };
        if differs {
            compare_bytes((&*left.top, &*right.top), offset..offset + len, &mut found)?;
        }
        offset += len.max(1);
    }
    Ok(found)
}

/// Whether the two disks may differ from an offset on, and for how long the answer holds.
fn may_differ(
    own: &[&dyn Layer],
    tops: (&dyn Layer, &dyn Layer),
    offset: u64,
    len: u64,
) -> anyhow::Result<(bool, u64)> {
    let (left, left_run) = tops.0.holds_data(offset, len)?;
    let (right, right_run) = tops.1.holds_data(offset, len)?;
    let mut run = len.min(left_run).min(right_run);
    if !left && !right {
        return Ok((false, run));
    }
    let mut is_own = false;
    for layer in own {
        // What lies beyond the end of a layer is zeros, by its own word.
        let end = layer.len_bytes();
        let (allocated, known) = match end.checked_sub(offset) {
            Some(left @ 1..) => layer.is_allocated(offset, run.min(left))?,
            _ => (true, run),
        };
        run = run.min(known);
        is_own |= allocated;
    }
    Ok((is_own, run))
}

/// Compares a range block by block.
fn compare_bytes(
    tops: (&dyn Layer, &dyn Layer),
    range: Range<u64>,
    found: &mut DiskDiff,
) -> anyhow::Result<()> {
    let len = usize::try_from(range.end - range.start)?;
    let (mut left, mut right) = (vec![0; len], vec![0; len]);
    tops.0.read_at(&mut left, range.start)?;
    tops.1.read_at(&mut right, range.start)?;
    found.compared_bytes += len as u64;
    let mut offset = range.start;
    for (left, right) in left.chunks(BLOCK_BYTES).zip(right.chunks(BLOCK_BYTES)) {
        let next = offset + left.len() as u64;
        if left != right {
            found.add(offset..next);
        }
        offset = next;
    }
    Ok(())
}
