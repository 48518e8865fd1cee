//! The saved state of a queue.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

/// A queue's registers and positions, as they are saved.
///
/// The addresses are what the driver wrote, valid or not; they are checked when a device is activated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// Entries that the driver chose.
    pub size: u16,
    /// Whether the driver has set the queue up.
    pub ready: bool,
    /// Whether notifications are suppressed by index (`VIRTIO_F_EVENT_IDX`).
    pub event_idx: bool,
    /// Guest physical address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest physical address of the available ring.
    pub available_ring: u64,
    /// Guest physical address of the used ring.
    pub used_ring: u64,
    /// Position in the available ring that the device takes next, modulo 2^16.
    pub next_avail: u16,
    /// Position in the used ring that the device fills next, modulo 2^16.
    pub next_used: u16,
}

impl QueueState {
    /// Returns the state of `queue`.
    #[must_use]
    pub fn of(queue: &Queue) -> Self {
        Self {
            size: queue.size(),
            ready: queue.ready(),
            event_idx: queue.event_idx_enabled(),
            descriptor_table: queue.desc_table(),
            available_ring: queue.avail_ring(),
            used_ring: queue.used_ring(),
            next_avail: queue.next_avail(),
            next_used: queue.next_used(),
        }
    }

    /// Makes a queue of at most `max_size` entries in this state.
    ///
    /// # Errors
    /// The size is not a power of two up to `max_size`, or an address is not aligned.
    pub fn to_queue(&self, max_size: u16) -> Result<Queue, virtio_queue::Error> {
        let mut queue = <Queue as QueueT>::new(max_size)?;
        queue.try_set_size(self.size)?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptor_table))?;
        queue.try_set_avail_ring_address(GuestAddress(self.available_ring))?;
        queue.try_set_used_ring_address(GuestAddress(self.used_ring))?;
        queue.set_event_idx(self.event_idx);
        queue.set_next_avail(self.next_avail);
        queue.set_next_used(self.next_used);
        queue.set_ready(self.ready);
        Ok(queue)
    }
}
