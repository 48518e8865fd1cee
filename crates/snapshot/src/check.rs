//! Holding a snapshot of the built-in guest against what its saved registers say every page must contain.
//!
//! The file is read as any reader would, chunk by chunk with its parents, by as many threads as asked for. What a
//! page must be is the oracle's knowledge; here pages only meet it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde::Serialize;

use snapfile::{ChunkNumber, PAGE_SIZE, Snapshot};
use vmm::builtin::{Oracle, OracleReport, VcpuRegisters};

use crate::error::{Error, Result};
use crate::restore::open;
use crate::sections::read_state;

/// Chunks that a thread takes at a time: enough that taking costs nothing.
const BATCH: u64 = 16;
/// Bytes of a page, as a length in memory.
const PAGE_BYTES: usize = 4096;

const _: () = assert!(PAGE_BYTES as u64 == PAGE_SIZE);

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Pages compared in every byte.
    pub pages_checked: u64,
    /// Pages whose content nobody can know: boot area, and each vCPU's own page.
    pub pages_excluded: u64,
    /// Pages that differ.
    pub mismatch_count: u64,
    /// The first of those, in words.
    pub mismatches: Vec<String>,
    /// Step that each vCPU had reached at the capture point.
    pub steps: Vec<u64>,
}

/// Recomputes every page of a snapshot of the built-in guest and compares; `threads` 0 means one per core.
///
/// # Errors
/// The file cannot be read, or does not show the built-in guest.
pub fn check(path: impl AsRef<Path>, threads: usize) -> Result<CheckReport> {
    let path = path.as_ref();
    let failed = Error::read(path);
    let snapshot = open(path)?;
    let state = read_state(&snapshot)?;
    let registers: Vec<_> = state
        .vcpus
        .iter()
        .map(|vcpu| VcpuRegisters::from(&vcpu.regs))
        .collect();
    let oracle = Oracle::new(&parameter_page(&snapshot).map_err(failed)?, &registers)?;
    let threads = match threads {
        0 => thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let next = AtomicU64::new(0);
    let mut found = OracleReport::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| check_batches(&snapshot, &oracle, &next)))
            .collect();
        for worker in workers {
            match worker.join() {
                Ok(part) => found.merge(part.map_err(failed)?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok::<_, Error>(())
    })?;
    found.mismatches.sort_by_key(|mismatch| mismatch.gpa);
    Ok(CheckReport {
        pages_checked: found.pages_checked,
        pages_excluded: found.pages_excluded,
        mismatch_count: found.mismatch_count,
        mismatches: found.mismatches.iter().map(ToString::to_string).collect(),
        steps: oracle.steps(),
    })
}

/// The page in which the guest's settings stand; zeros if memory ends before it.
fn parameter_page(snapshot: &Snapshot) -> snapfile::Result<[u8; PAGE_BYTES]> {
    let mut page = [0; PAGE_BYTES];
    let layout = snapshot.layout();
    let Some(number) = layout.chunk_at(Oracle::PARAMETER_PAGE) else {
        return Ok(page);
    };
    let Some(range) = layout.chunk(number) else {
        return Ok(page);
    };
    let mut chunk = vec![0; range.len_bytes as usize];
    snapshot.decoder().read_chunk(number, &mut chunk)?;
    let pages = (range.guest_address..)
        .step_by(PAGE_BYTES)
        .zip(chunk.as_chunks().0);
    for (guest_address, bytes) in pages {
        if guest_address == Oracle::PARAMETER_PAGE {
            page = *bytes;
        }
    }
    Ok(page)
}

/// Checks batches of chunks until none is left.
fn check_batches(snapshot: &Snapshot, oracle: &Oracle, next: &AtomicU64) -> snapfile::Result<OracleReport> {
    let layout = snapshot.layout();
    let mut decoder = snapshot.decoder();
    let mut chunk = Vec::new();
    let mut report = OracleReport::default();
    loop {
        let first = next.fetch_add(BATCH, Ordering::Relaxed);
        if first >= layout.chunk_count() {
            return Ok(report);
        }
        for number in (first..first.saturating_add(BATCH)).map(ChunkNumber) {
            let Some(range) = layout.chunk(number) else { break };
            chunk.resize(range.len_bytes as usize, 0);
            decoder.read_chunk(number, &mut chunk)?;
            let pages = (range.guest_address..)
                .step_by(PAGE_BYTES)
                .zip(chunk.as_chunks().0);
            for (guest_address, page) in pages {
                oracle.check_page(guest_address, page, &mut report);
            }
        }
    }
}
