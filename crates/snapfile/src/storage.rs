//! Where the bytes are: positioned reads and the atomic commit of a new file.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::error::Result;

/// Positioned reads of a snapshot file, from any thread.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` from `offset` on, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Returns the length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Returns whether there are no bytes at all.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let bytes = start.checked_add(buf.len()).and_then(|end| self.get(start..end));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(Vec::len(self) as u64)
    }
}

/// A snapshot file in the making: it has its final name only after [`SnapshotFile::commit`].
#[derive(Debug)]
pub struct SnapshotFile {}

impl SnapshotFile {
    /// Creates a temporary file, mode 0600, in the directory of `path`.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let _ = path;
        unimplemented!()
    }

    /// Makes the file durable and gives it its final name.
    pub fn commit(self) -> Result<()> {
        unimplemented!()
    }
}

impl io::Write for SnapshotFile {
    fn write(&mut self, _buf: &[u8]) -> io::Result<usize> {
        unimplemented!()
    }

    fn flush(&mut self) -> io::Result<()> {
        unimplemented!()
    }
}
