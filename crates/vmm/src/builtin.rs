//! The built-in guest: a tiny program that needs no kernel and no disk, and that is an oracle.
//!
//! Every vCPU owns a part of the *working set* and writes its pages in an order that follows from a
//! seed and a step counter alone. The counter lives in a register, so the registers saved at a point
//! in time tell what every page of guest memory must contain at that instant: [`Oracle`] computes it,
//! and one torn page is one mismatch. The guest checks as well: before each write it compares the
//! stamp in the page with the step that must have written it last, and reports `BAD` on the serial
//! port if they differ, so that a restored guest proves itself.
//!
//! The program is one blob for every setting; settings stand in a *parameter page* that the loader
//! writes and from which the oracle reads them back. [`load`] places the guest in the memory of a
//! machine, [`elf()`] makes a PVH kernel file of it. Starting vCPUs is left to the machine.

mod content;
mod control_area;
mod elf;
mod layout;
mod mailbox;
mod oracle;
mod parameters;
mod payload;
mod sequence;

use std::ops::Range;
use std::thread;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::builtin::content::{Content, ZERO_PAGE};
use crate::builtin::control_area::ControlArea;
use crate::builtin::layout::{CODE, PARAMETERS, TRAMPOLINE};
use crate::builtin::parameters::{Parameters, Room};
use crate::builtin::sequence::Position;

pub use elf::elf;
pub use mailbox::Mailbox;
pub use oracle::{Mismatch, Oracle, OracleError, OracleReport, PageKind, VcpuRegisters};

/// What the built-in guest does, apart from the number of vCPUs and the memory it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltinOptions {
    /// Decides the order of writes and every byte of content.
    pub seed: u64,
    /// Bytes of memory that the guest fills and rewrites, rounded down to whole pages for each vCPU;
    /// `None` is three quarters of what is there. The rest of memory stays zero.
    pub working_set_bytes: Option<u64>,
    /// Eight-byte words written into one page by one step, 1 to 512.
    pub words_per_step: u32,
    /// Share of pages and of writes whose content no codec can compress, 0 to 100 percent; the others
    /// look like text.
    pub incompressible_percent: u8,
    /// How fast each vCPU writes.
    pub rate: WriteRate,
}

/// How fast each vCPU of the built-in guest writes pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteRate {
    /// One page after the other, without rest.
    FlatOut,
    /// Bursts on a timer of 1 kHz, this many pages per second on each vCPU, 1 to 100 million.
    PagesPerSecond(u32),
}

impl Default for BuiltinOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            working_set_bytes: None,
            words_per_step: 8,
            incompressible_percent: 30,
            rate: WriteRate::FlatOut,
        }
    }
}

/// A built-in guest that cannot be made, placed or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuiltinError {
    /// No or too many vCPUs.
    #[error("{cpus} vCPUs: the built-in guest uses 1 to {limit}")]
    Cpus {
        /// vCPUs wanted.
        cpus: u32,
        /// Most that the guest can use.
        limit: u32,
    },
    /// A step writes no words or more than a page.
    #[error("{words} words per step: must be 1 to {limit}")]
    WordsPerStep {
        /// Words wanted.
        words: u32,
        /// Words of a page.
        limit: u32,
    },
    /// A share above the whole.
    #[error("{percent} percent incompressible: must be 0 to 100")]
    Percent {
        /// Share wanted.
        percent: u8,
    },
    /// A write rate out of range.
    #[error("{rate} pages per second: must be 1 to {limit}")]
    Rate {
        /// Rate wanted.
        rate: u32,
        /// Highest rate.
        limit: u32,
    },
    /// The working set does not fit in memory, or leaves a vCPU without a page.
    #[error(
        "a working set of {wanted_bytes} bytes for {cpus} vCPUs, in memory with room for {available_bytes}"
    )]
    WorkingSet {
        /// Bytes wanted.
        wanted_bytes: u64,
        /// Bytes of memory that are left for it.
        available_bytes: u64,
        /// vCPUs that share it.
        cpus: u32,
    },
    /// Guest memory could not be reached.
    #[error("guest memory at {gpa:#x} is not accessible")]
    Memory {
        /// Guest physical address.
        gpa: u64,
        /// The cause.
        #[source]
        source: GuestMemoryError,
    },
}

/// Places the guest in `memory` for `cpus` vCPUs and returns its 32-bit PVH entry point.
///
/// Memory must be zero before. All of it from 1 MiB on belongs to the guest, and one page at 32 KiB.
///
/// # Errors
///
/// An option out of range, too many vCPUs, or a memory too small for the working set.
pub fn load(
    memory: &GuestMemoryMmap,
    cpus: u32,
    options: &BuiltinOptions,
) -> Result<GuestAddress, BuiltinError> {
    let parameters = Parameters::new(options, cpus, Room::of(memory), false)?;
    let area = ControlArea::new(&parameters);
    write(memory, CODE, area.bytes())?;
    write(memory, TRAMPOLINE, area.trampoline_page())?;
    let content = Content {
        parameters: &parameters,
        table: area.table(),
    };
    let pages = parameters.working_set_pages();
    let workers = thread::available_parallelism().map_or(1, usize::from) as u64;
    thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|worker| pages * worker / workers..pages * (worker + 1) / workers)
            .map(|range| scope.spawn(move || fill(memory, content, range)))
            .collect();
        handles
            .into_iter()
            .try_for_each(|handle| handle.join().expect("filling memory does not panic"))
    })?;
    Ok(GuestAddress(CODE))
}

/// Tells whether the built-in guest is in `memory`, and the number of its vCPUs.
///
/// A guest that was booted from [`elf()`] is found as well.
#[must_use]
pub fn detect(memory: &GuestMemoryMmap) -> Option<u32> {
    parameters_in(memory).ok().map(|parameters| parameters.cpus)
}

fn parameters_in(memory: &GuestMemoryMmap) -> Result<Parameters, OracleError> {
    let mut page = ZERO_PAGE;
    memory
        .read_slice(&mut page, GuestAddress(PARAMETERS))
        .map_err(|_| OracleError::NoGuest { gpa: PARAMETERS })?;
    Parameters::decode(&page)
}

/// Fills a range of the working set's pages with their content after round 0.
fn fill(memory: &GuestMemoryMmap, content: Content<'_>, range: Range<u64>) -> Result<(), BuiltinError> {
    let parameters = content.parameters;
    let strides = parameters.strides();
    let pages = parameters.pages_per_cpu;
    let mut page = ZERO_PAGE;
    for cpu in 0..parameters.cpus {
        let after_round_0 = Position::new(&strides, pages, parameters.round_seed(cpu), pages);
        let first = u64::from(cpu) * pages;
        for number in first.max(range.start)..(first + pages).min(range.end) {
            let step = after_round_0.last_step(number - first);
            content.fill(number, &mut page);
            content.write(cpu, step, parameters.words_per_step, &mut page);
            write(memory, parameters.page_address(number), &page)?;
        }
    }
    Ok(())
}

fn write(memory: &GuestMemoryMmap, gpa: u64, bytes: &[u8]) -> Result<(), BuiltinError> {
    memory
        .write_slice(bytes, GuestAddress(gpa))
        .map_err(|source| BuiltinError::Memory { gpa, source })
}
