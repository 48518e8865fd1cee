//! The block device (virtio 1.2, 5.2).
//!
//! A request is taken from the queue by the device's worker, checked there, and carried out by one of a few
//! I/O threads with positioned reads and writes between guest memory and the [`BlockBackend`]; the worker
//! gives it back to the driver. Requests complete in any order. Reads and writes go through the host's page
//! cache or through a buffer: no page of guest memory is pinned, so whatever the host writes into it meets the
//! protection of a capture as the guest's own writes do.
//!
//! A request that breaks the rules but has room for a status is answered with one; a chain that cannot even
//! be answered leaves the driver's ring in disorder, and the device asks for a reset.
#![warn(clippy::indexing_slicing, clippy::unwrap_used)]

mod backend;
mod bounce;
mod device;
mod disk;
mod handler;
mod image;
mod pool;
mod raw;
mod request;

pub use backend::{BlockBackend, GuestBuffers};
pub use device::Block;
pub use disk::{
    Disk, DiskEvent, DiskHold, FlattenOptions, FlattenProgress, FrozenDisk, FrozenFor, InternalSnapshot,
    LayerInfo, PreparedOverlay,
};
pub use raw::RawFile;

/// Unit of a disk's size and of positions in requests, whatever the block size (virtio 1.2, 5.2.4).
pub const SECTOR_BYTES: u64 = 512;

#[cfg(test)]
mod tests;
