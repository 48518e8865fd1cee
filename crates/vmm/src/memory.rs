//! Guest physical memory: its layout, its mappings on the host, its slots in KVM.
//!
//! The range from 3 GiB to 4 GiB is a hole kept for the local APICs, the I/O APIC and memory-mapped
//! devices, as every PC has it; memory beyond 3 GiB continues at 4 GiB. Each range is one mapping and one
//! memory slot, numbered in address order.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

use serde::{Deserialize, Serialize};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::config::{Backing, MachineConfig};
use crate::error::{Error, Result};

/// Bytes of a guest page.
pub(crate) const PAGE_SIZE: u64 = 4096;
/// First address of the hole below 4 GiB.
pub(crate) const HOLE_START: u64 = 3 << 30;
/// First address beyond the hole.
pub(crate) const HOLE_END: u64 = 4 << 30;

/// A contiguous range of guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRange {
    /// First guest physical address, a multiple of the page size.
    pub guest_address: u64,
    /// Length in bytes, a multiple of the page size and not zero.
    pub len_bytes: u64,
}

/// Returns where `memory_bytes` of guest memory lie: below the hole, and the rest from 4 GiB.
#[must_use]
pub fn memory_ranges(memory_bytes: u64) -> Vec<MemoryRange> {
    let low = memory_bytes.min(HOLE_START);
    let mut ranges = vec![MemoryRange {
        guest_address: 0,
        len_bytes: low,
    }];
    if memory_bytes > low {
        ranges.push(MemoryRange {
            guest_address: HOLE_END,
            len_bytes: memory_bytes - low,
        });
    }
    ranges
}

/// Maps fresh, zero guest memory as the configuration asks for it.
///
/// # Errors
/// The configuration is invalid, or the host has not enough address space or memory.
pub fn create_guest_memory(config: &MachineConfig) -> Result<GuestMemoryMmap> {
    config.validate()?;
    create_guest_memory_for(
        &memory_ranges(config.memory_bytes),
        config.backing,
        config.transparent_huge_pages,
    )
}

/// Maps fresh, zero guest memory at the given ranges, which are in address order: the memory of a
/// machine that is to be restored.
///
/// # Errors
/// The ranges overlap or are no multiples of pages, or the host has not enough memory.
pub fn create_guest_memory_for(
    ranges: &[MemoryRange],
    backing: Backing,
    transparent_huge_pages: bool,
) -> Result<GuestMemoryMmap> {
    let _ = (ranges, backing, transparent_huge_pages);
    unimplemented!()
}
