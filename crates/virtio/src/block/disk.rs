//! A disk as the machine's owner sees it, beside the device that the guest sees.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::block::{BlockBackend, RawFile};
use crate::config::{DiskConfig, DiskFormat};
use crate::device::DRAIN_TIMEOUT;
use crate::error::{Error, Result};

/// A disk; clones are the same disk.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    config: DiskConfig,
    backend: Box<dyn BlockBackend>,
    /// The file that the bytes are in, for those who copy it as a whole.
    file: File,
    gate: Arc<Gate>,
}

/// Keeps requests from a disk while someone holds it.
pub(super) struct Gate {
    /// Guards both counts.
    counts: Mutex<Counts>,
    /// Signalled when no request is under way any more.
    idle: Condvar,
    /// Written when the last hold ends.
    opened: EventFd,
}

#[derive(Default)]
struct Counts {
    holds: usize,
    under_way: usize,
}

/// Keeps a disk as it is until dropped: requests stay in their queues.
pub struct DiskHold {
    gate: Arc<Gate>,
}

/// A request that the gate let through and that is not complete.
pub(super) struct Pass {
    gate: Arc<Gate>,
}

impl Disk {
    /// Opens the image that `config` names, locked against use by other machines.
    ///
    /// # Errors
    /// The image cannot be opened, is in use, or is not a whole number of sectors.
    pub fn open(config: &DiskConfig) -> Result<Self> {
        match config.format {
            DiskFormat::Raw => {
                let raw = RawFile::open(&config.file, config.readonly)?;
                let file = raw.file().try_clone().map_err(Error::io("dup"))?;
                Self::new(config, Box::new(raw), file)
            }
        }
    }

    /// Makes a disk of a store of bytes, which are in `file`.
    ///
    /// # Errors
    /// The system gives no more event descriptors.
    pub fn new(config: &DiskConfig, backend: Box<dyn BlockBackend>, file: File) -> Result<Self> {
        let gate = Gate {
            counts: Mutex::default(),
            idle: Condvar::new(),
            opened: EventFd::new(EFD_NONBLOCK).map_err(Error::io("eventfd"))?,
        };
        let inner = Inner {
            config: config.clone(),
            backend,
            file,
            gate: Arc::new(gate),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Returns the disk's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.inner.config.id
    }

    /// Returns the configuration that the disk was opened by.
    #[must_use]
    pub fn config(&self) -> &DiskConfig {
        &self.inner.config
    }

    /// Returns what keeps the disk's bytes.
    #[must_use]
    pub fn backend(&self) -> &dyn BlockBackend {
        &*self.inner.backend
    }

    /// Returns the disk's size as the guest sees it, in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.inner.backend.len_bytes()
    }

    /// Returns another descriptor of the image file, which may have no name any more. Position and lock are
    /// shared with the disk's own.
    ///
    /// # Errors
    /// The system gives no more descriptors.
    pub fn file(&self) -> io::Result<File> {
        self.inner.file.try_clone()
    }

    /// Keeps the disk as it is until the result is dropped; at once if the machine is paused, otherwise when
    /// the requests under way have completed. Several may hold a disk.
    ///
    /// # Errors
    /// Requests under way did not complete in time; the disk is not held.
    pub fn hold(&self) -> Result<DiskHold> {
        let gate = Arc::clone(&self.inner.gate);
        let mut counts = gate.lock();
        counts.holds += 1;
        let (counts, _) = gate
            .idle
            .wait_timeout_while(counts, DRAIN_TIMEOUT, |counts| counts.under_way > 0)
            .unwrap_or_else(PoisonError::into_inner);
        let idle = counts.under_way == 0;
        drop(counts);
        // Ends the hold again if the requests did not complete.
        let hold = DiskHold { gate };
        if idle {
            Ok(hold)
        } else {
            Err(Error::Drain { after: DRAIN_TIMEOUT })
        }
    }

    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.inner.gate
    }
}

impl Gate {
    /// Returns the event that is written when the disk is held no more.
    pub(super) fn opened(&self) -> &EventFd {
        &self.opened
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// Lets a request through, unless the disk is held.
    pub(super) fn new(gate: &Arc<Gate>) -> Option<Self> {
        let mut counts = gate.lock();
        if counts.holds > 0 {
            return None;
        }
        counts.under_way += 1;
        Some(Self {
            gate: Arc::clone(gate),
        })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut counts = self.gate.lock();
        counts.under_way -= 1;
        if counts.under_way == 0 {
            self.gate.idle.notify_all();
        }
    }
}

impl Drop for DiskHold {
    fn drop(&mut self) {
        let mut counts = self.gate.lock();
        counts.holds -= 1;
        if counts.holds == 0
            && let Err(error) = self.gate.opened.write(1)
        {
            // The counter is full: the device is to look anyway.
            tracing::debug!(%error, "disk event");
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for DiskHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskHold").finish_non_exhaustive()
    }
}
