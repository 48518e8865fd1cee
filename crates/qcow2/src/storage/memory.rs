//! Bytes in memory that behave as a file.

use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::storage::Storage;

/// Most bytes that a storage in memory holds; beyond that its medium is full.
const MAX_BYTES: u64 = 4 << 30;

/// A file in memory.
#[derive(Debug, Default)]
pub struct MemoryStorage {
    bytes: RwLock<Vec<u8>>,
}

impl MemoryStorage {
    /// Returns an empty file.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a file with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self {
            bytes: RwLock::new(bytes),
        }
    }

    /// Returns a copy of the bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.read().clone()
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the index of the byte after a range, or says that the medium is full.
fn end_of(offset: u64, len: u64) -> io::Result<usize> {
    offset
        .checked_add(len)
        .filter(|end| *end <= MAX_BYTES)
        .and_then(|end| usize::try_from(end).ok())
        .ok_or_else(|| io::ErrorKind::StorageFull.into())
}

/// Returns how many bytes before `offset` there are, at most all.
fn clamp(bytes: &[u8], offset: u64) -> usize {
    usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()))
}

impl Storage for MemoryStorage {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.read();
        let there = bytes.get(clamp(&bytes, offset)..).unwrap_or_default();
        let some = there.len().min(buf.len());
        let (filled, beyond) = buf.split_at_mut(some);
        filled.copy_from_slice(there.get(..some).unwrap_or_default());
        beyond.fill(0);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let end = end_of(offset, buf.len() as u64)?;
        let mut bytes = self.write();
        if bytes.len() < end && !buf.is_empty() {
            bytes.resize(end, 0);
        }
        if let Some(target) = bytes.get_mut(end - buf.len()..end) {
            target.copy_from_slice(buf);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.read().len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = end_of(len, 0)?;
        self.write().resize(len, 0);
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut bytes = self.write();
        let start = clamp(&bytes, offset);
        let end = clamp(&bytes, offset.saturating_add(len));
        if let Some(hole) = bytes.get_mut(start..end) {
            hole.fill(0);
        }
        Ok(())
    }
}
