//! What keeps a disk's bytes.

use std::io;

use vm_memory::VolatileSlice;

use crate::block::SECTOR_BYTES;

/// The guest memory of one request, in the order of the disk's bytes.
pub type GuestBuffers<'a, 'm> = &'a [VolatileSlice<'m>];

/// A store of a disk's bytes, used by several threads at once.
///
/// Positions and lengths are in bytes, multiples of 512, and inside the disk: the device checks that. What
/// one request writes is not ordered against what another one does at the same time.
pub trait BlockBackend: Send + Sync {
    /// Returns the size of the disk, a multiple of 512, the same at all times.
    fn len_bytes(&self) -> u64;

    /// Tells whether the disk can only be read.
    fn is_read_only(&self) -> bool;

    /// Returns the length of the units in which the store keeps the disk: to discard less than one gives no room
    /// back. A multiple of 512.
    fn unit_bytes(&self) -> u64 {
        SECTOR_BYTES
    }

    /// Reads the disk at `offset` into all of `buffers`.
    ///
    /// # Errors
    /// The medium failed; an unknown part of the buffers has been written.
    fn read_at(&self, buffers: GuestBuffers<'_, '_>, offset: u64) -> io::Result<()>;

    /// Writes all of `buffers` to the disk at `offset`.
    ///
    /// # Errors
    /// The medium failed; an unknown part has been written.
    fn write_at(&self, buffers: GuestBuffers<'_, '_>, offset: u64) -> io::Result<()>;

    /// Makes everything durable whose write returned before.
    ///
    /// # Errors
    /// The medium failed.
    fn flush(&self) -> io::Result<()>;

    /// Forgets a range, as a hint that its content is not needed; it then reads as anything.
    ///
    /// # Errors
    /// The medium failed.
    fn discard(&self, offset: u64, len_bytes: u64) -> io::Result<()>;

    /// Makes a range read as zeros; it may be left without room on the medium if `may_unmap`.
    ///
    /// # Errors
    /// The medium failed; an unknown part reads as zeros.
    fn write_zeroes(&self, offset: u64, len_bytes: u64, may_unmap: bool) -> io::Result<()>;
}
