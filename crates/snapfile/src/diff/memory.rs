//! Guest memory of two snapshots, compared by digest first and by page where digests differ.
//!
//! Each region that both snapshots have is cut into *units*: the larger of the two chunk sizes, and
//! at least one leaf of the digest tree where the sizes differ. A unit's digest is a chunk's own or
//! is combined from those of several chunks, so it does not depend on how the file is cut. Units
//! whose digests differ are decoded from both files and compared page by page.
//!
//! Threads take slices of units in ascending order; what they find is put together in that order by
//! [`Merger`], so that the result does not depend on the threads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::units::{Side, unit_log2};
use super::{DiffOptions, Granularity, GuestRange, MemoryDiff};
use crate::error::{Error, Result};
use crate::memory_map::{MemoryRegion, PAGE_SIZE};
use crate::reader::Snapshot;

/// Guest memory that a thread takes at a time, in bytes.
const SLICE_BYTES: u64 = 16 * 1024 * 1024;

pub(super) fn diff_memory(
    before: &Snapshot,
    after: &Snapshot,
    same_state: bool,
    options: &DiffOptions<'_>,
) -> Result<MemoryDiff> {
    let unit_log2 = unit_log2(before.chunk_size(), after.chunk_size());
    let slices = slices(before, after, SLICE_BYTES.max(1 << unit_log2));
    let compared_bytes = slices.iter().map(|slice| slice.len_bytes()).sum();
    let page_wise = options.granularity == Granularity::Page;
    let result = MemoryDiff {
        compared_bytes,
        changed_bytes: page_wise.then_some(0),
        ..MemoryDiff::default()
    };
    if same_state {
        return Ok(result);
    }
    let comparison = Comparison {
        before,
        after,
        unit_log2,
        slices,
        next_slice: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        done_bytes: AtomicU64::new(0),
        merger: Mutex::new(Merger {
            result,
            ..Merger::default()
        }),
        options,
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads.get())
            .map(|_| scope.spawn(|| comparison.work()))
            .collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(comparison
        .merger
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .result)
}

/// Part of a region that both snapshots have.
struct Slice {
    /// Index of the region in the memory map of the first and of the second snapshot.
    regions: [usize; 2],
    region: MemoryRegion,
    /// Bytes of the region, from its start.
    bytes: Range<u64>,
}

impl Slice {
    fn len_bytes(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }
}

fn slices(before: &Snapshot, after: &Snapshot, slice_bytes: u64) -> Vec<Slice> {
    let mut slices = Vec::new();
    for (index, &region) in before.memory_map().regions().iter().enumerate() {
        let Some(other) = after
            .memory_map()
            .regions()
            .iter()
            .position(|other| *other == region)
        else {
            continue;
        };
        let mut start = 0;
        while start < region.len_bytes {
            let end = region.len_bytes.min(start + slice_bytes);
            slices.push(Slice {
                regions: [index, other],
                region,
                bytes: start..end,
            });
            start = end;
        }
    }
    slices
}

/// The work shared by all threads.
struct Comparison<'a> {
    before: &'a Snapshot,
    after: &'a Snapshot,
    unit_log2: u8,
    slices: Vec<Slice>,
    /// Index of the slice that the next idle thread takes.
    next_slice: AtomicUsize,
    /// Set by the first thread that fails, so that the others stop early.
    stop: AtomicBool,
    done_bytes: AtomicU64,
    merger: Mutex<Merger>,
    options: &'a DiffOptions<'a>,
}

impl Comparison<'_> {
    fn work(&self) -> Result<()> {
        let mut before = Side::new(self.before, self.unit_log2);
        let mut after = Side::new(self.after, self.unit_log2);
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next_slice.fetch_add(1, Ordering::Relaxed);
            let Some(slice) = self.slices.get(number) else {
                break;
            };
            let outcome = self.compare(slice, &mut before, &mut after).and_then(|found| {
                self.lock_merger().add(number, found, self.options.max_ranges);
                self.report(slice.len_bytes())
            });
            if outcome.is_err() {
                self.stop.store(true, Ordering::Relaxed);
                return outcome;
            }
        }
        Ok(())
    }

    fn report(&self, len_bytes: u64) -> Result<()> {
        let done = self.done_bytes.fetch_add(len_bytes, Ordering::Relaxed) + len_bytes;
        let total = self.lock_merger().result.compared_bytes;
        match self.options.progress {
            Some(progress) if progress(done, total).is_break() => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }

    fn lock_merger(&self) -> std::sync::MutexGuard<'_, Merger> {
        self.merger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compare(&self, slice: &Slice, before: &mut Side<'_>, after: &mut Side<'_>) -> Result<Found> {
        let mut found = Found::default();
        let unit_bytes = 1u64 << self.unit_log2;
        let mut start = slice.bytes.start;
        while start < slice.bytes.end {
            let bytes = start..slice.bytes.end.min(start + unit_bytes);
            start = bytes.end;
            if before.digest(slice.regions[0], bytes.start)? == after.digest(slice.regions[1], bytes.start)? {
                continue;
            }
            let address = slice.region.guest_address + bytes.start;
            match self.options.granularity {
                Granularity::Chunk => found.push(address, bytes.end - bytes.start),
                Granularity::Page => {
                    let plain_before = before.read(slice.regions[0], bytes.clone())?;
                    let plain_after = after.read(slice.regions[1], bytes.clone())?;
                    found.decoded_bytes += bytes.end - bytes.start;
                    found.compare_pages(address, plain_before, plain_after);
                }
            }
        }
        Ok(found)
    }
}

/// What one slice turned up.
#[derive(Default)]
struct Found {
    ranges: Vec<GuestRange>,
    changed_bytes: u64,
    decoded_bytes: u64,
}

impl Found {
    /// Adds a range that lies behind all others.
    fn push(&mut self, guest_address: u64, len_bytes: u64) {
        match self.ranges.last_mut() {
            Some(last) if last.guest_address + last.len_bytes == guest_address => last.len_bytes += len_bytes,
            _ => self.ranges.push(GuestRange {
                guest_address,
                len_bytes,
            }),
        }
    }

    fn compare_pages(&mut self, mut address: u64, before: &[u8], after: &[u8]) {
        let page_bytes = usize::try_from(PAGE_SIZE).unwrap_or(usize::MAX);
        for (before, after) in before.chunks(page_bytes).zip(after.chunks(page_bytes)) {
            if before != after {
                self.push(address, PAGE_SIZE);
                let changed = before.iter().zip(after).filter(|(before, after)| before != after);
                self.changed_bytes += changed.count() as u64;
            }
            address += PAGE_SIZE;
        }
    }
}

/// Puts the findings of the slices together in the order of the slices.
#[derive(Default)]
struct Merger {
    next_slice: usize,
    /// Findings of slices that came before their turn.
    early: BTreeMap<usize, Found>,
    /// End of the last range counted, listed or not.
    last_end: Option<u64>,
    result: MemoryDiff,
}

impl Merger {
    fn add(&mut self, slice: usize, found: Found, max_ranges: usize) {
        self.early.insert(slice, found);
        while let Some(found) = self.early.remove(&self.next_slice) {
            self.next_slice += 1;
            self.append(found, max_ranges);
        }
    }

    fn append(&mut self, found: Found, max_ranges: usize) {
        self.result.decoded_bytes += found.decoded_bytes;
        if let Some(changed_bytes) = &mut self.result.changed_bytes {
            *changed_bytes += found.changed_bytes;
        }
        for range in found.ranges {
            self.result.differing_bytes += range.len_bytes;
            let joins = self.last_end == Some(range.guest_address);
            self.last_end = Some(range.guest_address + range.len_bytes);
            let complete = self.result.ranges.len() as u64 == self.result.range_count;
            if !joins {
                self.result.range_count += 1;
                if self.result.ranges.len() < max_ranges {
                    self.result.ranges.push(range);
                }
            } else if complete && let Some(last) = self.result.ranges.last_mut() {
                last.len_bytes += range.len_bytes;
            }
        }
    }
}
