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
//! machine, [`elf`] makes a PVH kernel file of it. Starting vCPUs is left to the machine.

use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// What the built-in guest does, apart from the number of vCPUs and the memory it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltinOptions {
    /// Decides the order of writes and every byte of content.
    pub seed: u64,
    /// Bytes of memory that the guest fills and rewrites, rounded down to pages; `None` is three
    /// quarters of what is there. The rest of memory stays zero.
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

/// A built-in guest that cannot be made or placed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuiltinError {
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
/// # Errors
///
/// An option out of range, too many vCPUs, or a memory too small for the working set.
pub fn load(
    _memory: &GuestMemoryMmap,
    _cpus: u32,
    _options: &BuiltinOptions,
) -> Result<GuestAddress, BuiltinError> {
    unimplemented!()
}
