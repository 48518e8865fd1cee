//! What differs between two snapshots: guest memory by address, state by field.
//!
//! The one idea: equal content has equal digests, whatever it is stored as and whatever the chunk
//! sizes of the two files, so equal memory is recognised in the index and never decoded. Only where
//! digests differ are pages compared byte by byte, and that is left out on request. Sections are
//! compared by digest too; CBOR payloads that differ are then compared field by field.
//!
//! Neither file is verified: a file whose index lies is compared as it presents itself.

mod fields;
mod memory;
mod sections;
mod units;

use std::num::NonZero;
use std::ops::ControlFlow;

pub use fields::{Field, FieldValue, FieldsError, MAX_FIELDS_PAYLOAD, fields};
pub use sections::{FieldChange, SectionDiff};

use crate::error::Result;
use crate::memory_map::MemoryRegion;
use crate::reader::Snapshot;

/// How finely differing memory is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// To the page; differing chunks are decoded.
    Page,
    /// To the chunk (of the file with the larger ones); nothing is decoded, parents are not needed.
    Chunk,
}

/// Told how many bytes of guest memory are compared, out of how many; may stop the comparison.
pub type DiffProgress<'a> = &'a (dyn Fn(u64, u64) -> ControlFlow<()> + Sync);

/// How two snapshots are compared.
#[derive(Clone, Copy)]
pub struct DiffOptions<'a> {
    /// How finely differing memory is told apart; to the page by default.
    pub granularity: Granularity,
    /// Most address ranges that are listed; the rest is counted. A million by default.
    pub max_ranges: usize,
    /// Threads that compare; as many as there are processors by default.
    pub threads: NonZero<usize>,
    /// Called now and then, from any of the threads.
    pub progress: Option<DiffProgress<'a>>,
}

impl Default for DiffOptions<'_> {
    fn default() -> Self {
        Self {
            granularity: Granularity::Page,
            max_ranges: 1_000_000,
            threads: std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
            progress: None,
        }
    }
}

impl std::fmt::Debug for DiffOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiffOptions")
            .field("granularity", &self.granularity)
            .field("max_ranges", &self.max_ranges)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// A contiguous range of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct GuestRange {
    /// First guest physical address.
    pub guest_address: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// The differences between two snapshots, "before" and "after".
#[derive(Clone, Debug)]
pub struct Diff {
    /// Whether the root digests are equal: the same guest state.
    pub same_state: bool,
    /// Memory regions that only the first snapshot has.
    pub regions_only_before: Vec<MemoryRegion>,
    /// Memory regions that only the second snapshot has.
    pub regions_only_after: Vec<MemoryRegion>,
    /// The regions that both have.
    pub memory: MemoryDiff,
    /// Sections that differ, those of the guest's state first.
    pub sections: Vec<SectionDiff>,
}

/// What differs in the memory regions that both snapshots have.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MemoryDiff {
    /// Bytes of guest memory that both snapshots have.
    pub compared_bytes: u64,
    /// Bytes of the pages (or chunks) that differ.
    pub differing_bytes: u64,
    /// Single bytes that differ, where pages were compared; `None` at chunk granularity.
    pub changed_bytes: Option<u64>,
    /// Bytes of guest memory that had to be decoded, of each snapshot.
    pub decoded_bytes: u64,
    /// The differing ranges in address order, at most [`DiffOptions::max_ranges`]; neighbours are
    /// joined.
    pub ranges: Vec<GuestRange>,
    /// How many ranges there are, also those not listed.
    pub range_count: u64,
}

/// Compares two snapshots.
///
/// Regions are the same when address and length are equal; others are listed as present in one
/// snapshot only and their content is not looked at.
///
/// # Errors
/// A file that cannot be read or decoded, a parent that is needed and missing, and
/// [`crate::Error::Cancelled`] when the progress callback said so. A difference is not an error.
pub fn diff(before: &Snapshot, after: &Snapshot, options: &DiffOptions<'_>) -> Result<Diff> {
    let same_state = before.root_digest() == after.root_digest();
    let regions_before = before.memory_map().regions();
    let regions_after = after.memory_map().regions();
    let missing_in = |region: &&MemoryRegion, others: &[MemoryRegion]| !others.contains(region);
    Ok(Diff {
        same_state,
        regions_only_before: regions_before
            .iter()
            .filter(|region| missing_in(region, regions_after))
            .copied()
            .collect(),
        regions_only_after: regions_after
            .iter()
            .filter(|region| missing_in(region, regions_before))
            .copied()
            .collect(),
        memory: memory::diff_memory(before, after, same_state, options)?,
        sections: sections::diff_sections(before, after)?,
    })
}
