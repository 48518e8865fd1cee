//! The image's file, which is given up when a sync fails.
//!
//! After a failed fdatasync nobody knows which pages reached the medium, and the kernel reports the failure once:
//! a second sync that succeeds says nothing of them. So everything but reading is refused from then on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::storage::Storage;

/// A storage that refuses writes and syncs once a sync has failed.
#[derive(Debug)]
pub(crate) struct Medium {
    inner: Arc<dyn Storage>,
    sync_failed: AtomicBool,
}

impl Medium {
    pub(crate) fn new(inner: Arc<dyn Storage>) -> Self {
        Self {
            inner,
            sync_failed: AtomicBool::new(false),
        }
    }

    /// Returns the storage itself.
    pub(crate) fn inner(&self) -> &Arc<dyn Storage> {
        &self.inner
    }

    fn check(&self) -> io::Result<()> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(io::Error::other(
                "a flush has failed before; what is durable is unknown",
            ));
        }
        Ok(())
    }
}

impl Storage for Medium {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check()?;
        self.inner.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.check()?;
        self.inner
            .sync()
            .inspect_err(|_| self.sync_failed.store(true, Ordering::Release))
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.inner.set_len(len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check()?;
        self.inner.punch_hole(offset, len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.inner.next_data(offset)
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        self.inner.next_hole(offset)
    }
}
