//! Guest memory as vhost wants it: known only when the device is activated, and laid out in a table.

use std::sync::{Arc, Mutex, PoisonError};

use vhost::{VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT};
use vm_memory::{
    Address, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

use crate::error::{Error, Result};

/// The memory that a vhost device translates ring addresses with; empty until the first activation.
#[derive(Clone, Debug, Default)]
pub struct MemorySlot(Arc<Mutex<Arc<GuestMemoryMmap>>>);

impl MemorySlot {
    /// Puts the memory of an activation in.
    pub fn set(&self, memory: &GuestMemoryMmap) {
        // The lock guards one assignment, so a panic cannot have left it half done.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(memory.clone());
    }
}

impl GuestAddressSpace for MemorySlot {
    type M = GuestMemoryMmap;
    type T = Arc<GuestMemoryMmap>;

    fn memory(&self) -> Self::T {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The table of all regions of guest memory for `VHOST_SET_MEM_TABLE`.
pub fn table(memory: &GuestMemoryMmap) -> Vec<VhostUserMemoryRegionInfo> {
    memory
        .iter()
        .map(|region| VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr().expose_provenance() as u64,
            mmap_offset: 0,
            mmap_handle: -1,
        })
        .collect()
}

/// The addresses of a queue, checked: the kernel is given host addresses, and would take a ring that runs over
/// the end of a region for what happens to be mapped behind it.
///
/// # Errors
/// [`Error::Queue`] where a ring is not within one region of guest memory.
pub fn ring_addresses(memory: &GuestMemoryMmap, queue: &Queue, index: usize) -> Result<VringConfigData> {
    let size = u64::from(queue.size());
    // Bytes of each part, with the fields of `VIRTIO_F_EVENT_IDX` (virtio 1.2, 2.7).
    let parts = [
        (queue.desc_table(), 16 * size),
        (queue.avail_ring(), 6 + 2 * size),
        (queue.used_ring(), 6 + 8 * size),
    ];
    if parts
        .iter()
        .any(|(address, len)| !within_a_region(memory, *address, *len))
    {
        return Err(Error::Protocol {
            queue: index,
            problem: "ring outside guest memory",
        });
    }
    Ok(VringConfigData {
        queue_max_size: queue.max_size(),
        queue_size: queue.size(),
        flags: 0,
        desc_table_addr: queue.desc_table(),
        used_ring_addr: queue.used_ring(),
        avail_ring_addr: queue.avail_ring(),
        log_addr: None,
    })
}

fn within_a_region(memory: &GuestMemoryMmap, address: u64, len: u64) -> bool {
    let region = memory.find_region(GuestAddress(address));
    region.is_some_and(|region| {
        let end = address.checked_add(len - 1);
        end.is_some_and(|end| end <= region.last_addr().raw_value())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(desc: u64, avail: u64, used: u64) -> Queue {
        let mut queue = Queue::new(128).unwrap();
        queue.try_set_desc_table_address(GuestAddress(desc)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(avail)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(used)).unwrap();
        queue
    }

    #[test]
    fn a_ring_over_the_border_of_two_adjacent_regions_is_refused() {
        let regions = [(GuestAddress(0), 0x10000), (GuestAddress(0x10000), 0x10000)];
        let memory = GuestMemoryMmap::from_ranges(&regions).unwrap();
        assert!(ring_addresses(&memory, &queue(0x1000, 0x2000, 0x3000), 0).is_ok());
        assert!(ring_addresses(&memory, &queue(0xf800 + 0x10, 0x2000, 0x3000), 0).is_err());
        assert!(ring_addresses(&memory, &queue(0x1000, 0xfffe, 0x3000), 0).is_err());
        assert!(ring_addresses(&memory, &queue(0x1000, 0x2000, 0xfffc), 0).is_err());
        assert!(ring_addresses(&memory, &queue(0x1000, 0x2000, 0x4_0000), 0).is_err());
        assert!(ring_addresses(&memory, &queue(0xffff_ffff_ffff_fff0, 0x2000, 0x3000), 0).is_err());
    }

    #[test]
    fn the_table_has_every_region_at_its_host_address() {
        let regions = [(GuestAddress(0), 0x10000), (GuestAddress(0x100_0000), 0x20000)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
        let table = table(&memory);
        assert_eq!(table.len(), 2);
        assert_eq!(table[1].guest_phys_addr, 0x100_0000);
        assert_eq!(table[1].memory_size, 0x20000);
        let host = memory.get_host_address(GuestAddress(0x100_0000)).unwrap();
        assert_eq!(table[1].userspace_addr, host as u64);
    }
}
