//! A storage whose n-th write or sync fails, as a full or a broken medium does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::storage::Storage;

/// Which call fails, counted from 0. Every later call of the same kind succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The n-th write, with nothing written.
    Write(u64),
    /// The n-th sync.
    Sync(u64),
    /// No call fails: to count them.
    None,
}

/// Passes every call on to another storage but the one that fails.
#[derive(Debug)]
pub struct FailingStorage {
    inner: Arc<dyn Storage>,
    fault: Fault,
    kind: io::ErrorKind,
    // Counters only; they order nothing else.
    writes: AtomicU64,
    syncs: AtomicU64,
}

impl FailingStorage {
    /// Returns a storage over `inner` in which one call fails with an error of `kind`.
    pub fn new(inner: Arc<dyn Storage>, fault: Fault, kind: io::ErrorKind) -> Self {
        Self {
            inner,
            fault,
            kind,
            writes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
        }
    }

    /// The number of writes so far, the failed one included.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// The number of syncs so far, the failed one included.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}

impl Storage for FailingStorage {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let number = self.writes.fetch_add(1, Ordering::Relaxed);
        if self.fault == Fault::Write(number) {
            return Err(self.kind.into());
        }
        self.inner.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        let number = self.syncs.fetch_add(1, Ordering::Relaxed);
        if self.fault == Fault::Sync(number) {
            return Err(self.kind.into());
        }
        self.inner.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.punch_hole(offset, len)
    }
}
