//! Guest memory as a kernel is told of it: the E820 map, whatever structure carries it.

use vm_memory::GuestMemoryMmap;

use crate::layout::{HIGH_RAM_START, LOW_RAM_END, VIRTIO_BASE};
use crate::memory::{HOLE_END, ranges_of};

pub(super) const RAM: u32 = 1;
pub(super) const RESERVED: u32 = 2;

/// A range of guest physical addresses of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) kind: u32,
}

/// Returns the map in address order. The legacy area, where the generation id and the ACPI tables are, is no
/// RAM, and neither is the hole below 4 GiB, whose beginning is not mentioned: Linux complains of a machine
/// without a free range there for PCI devices, though this one has no PCI.
pub(super) fn entries(memory: &GuestMemoryMmap) -> Vec<Entry> {
    let high = HIGH_RAM_START.0;
    let entry = |start, end, kind| Entry { start, end, kind };
    let mut map = vec![entry(0, LOW_RAM_END, RAM), entry(LOW_RAM_END, high, RESERVED)];
    for range in ranges_of(memory) {
        let start = range.guest_address.max(high);
        let end = range.guest_address + range.len_bytes;
        if start < end {
            map.push(entry(start, end, RAM));
        }
    }
    map.push(entry(VIRTIO_BASE.into(), HOLE_END, RESERVED));
    map.sort_by_key(|entry| entry.start);
    map
}

/// End of the RAM below the hole.
pub(super) fn low_ram_end(memory: &GuestMemoryMmap) -> u64 {
    let first = ranges_of(memory).into_iter().next();
    first.map_or(0, |range| range.guest_address + range.len_bytes)
}
