//! Positioned I/O on one file: everything else in the crate stands on [`Storage`].
//!
//! Every method takes `&self` and may be called from any number of threads; what two calls do to the same bytes
//! at the same time is for the caller to prevent. [`FileStorage`] is a locked file, [`MemoryStorage`] bytes in
//! memory for tests and for images that are taken apart.

mod direct;
mod file;
mod memory;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::io;

pub use file::FileStorage;
pub use memory::MemoryStorage;

/// What a storage is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading; others may read, too.
    ReadOnly,
    /// Reading and writing; others may do neither.
    ReadWrite,
}

/// Whether the host's page cache is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// It is: writes are durable after a flush.
    #[default]
    Writeback,
    /// It is not: the file is opened with `O_DIRECT`.
    None,
}

/// Positioned I/O on one file.
pub trait Storage: Send + Sync + Debug {
    /// Fills `buf` from `offset` on; what lies beyond the end of the file reads as zeros.
    ///
    /// # Errors
    /// The medium's.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`; the file grows where it has to.
    ///
    /// # Errors
    /// The medium's; some of the bytes may have been written.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes everything written durable, and the file's length.
    ///
    /// # Errors
    /// The medium's; it is then unknown what is durable.
    fn sync(&self) -> io::Result<()>;

    /// Returns the length of the file in bytes.
    ///
    /// # Errors
    /// The medium's.
    fn len(&self) -> io::Result<u64>;

    /// Returns whether the file has no bytes.
    ///
    /// # Errors
    /// The medium's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the file or grows it with zeros.
    ///
    /// # Errors
    /// The medium's.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Gives the room of a range back to the medium; the range then reads as zeros or as before.
    ///
    /// It is a hint, and succeeds where the medium cannot do it. The file's length stays.
    ///
    /// # Errors
    /// The medium's, apart from not being able to.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Returns the first offset not before `offset` that may hold data, or nothing if only holes follow.
    ///
    /// A storage that knows nothing of holes says that everything up to its end is data.
    ///
    /// # Errors
    /// The medium's.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.len()?).then_some(offset))
    }

    /// Returns the first offset not before `offset` where a hole begins; the end of the file is one.
    ///
    /// # Errors
    /// The medium's.
    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        Ok(self.len()?.max(offset))
    }
}
