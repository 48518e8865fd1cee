//! What is typed for the guest, until the guest takes it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::console::BUFFER_BYTES;
use crate::error::{Error, Result};

/// The way to the terminal of a guest; clones lead to the same one.
#[derive(Clone, Debug)]
pub struct ConsoleInput {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bytes: Mutex<VecDeque<u8>>,
    /// Written when there are bytes.
    arrived: EventFd,
}

impl ConsoleInput {
    pub(super) fn new() -> Result<Self> {
        let shared = Shared {
            bytes: Mutex::default(),
            arrived: EventFd::new(EFD_NONBLOCK).map_err(Error::io("eventfd"))?,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Types `bytes`; returns how many of them there was room for, the first ones.
    ///
    /// A guest that does not read them, or has no driver, gets them when it does.
    #[must_use]
    pub fn send(&self, bytes: &[u8]) -> usize {
        let mut waiting = self.lock();
        let room = BUFFER_BYTES.saturating_sub(waiting.len());
        let taken = bytes.len().min(room);
        waiting.extend(bytes.iter().take(taken));
        drop(waiting);
        // The one failure is a counter that is full: then the worker has been told.
        let _ = self.shared.arrived.write(1);
        taken
    }

    /// The event that tells of bytes.
    pub(super) fn arrived(&self) -> &EventFd {
        &self.shared.arrived
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Takes at most `len` bytes, in the order of their arrival.
    pub(super) fn take(&self, len: usize) -> Vec<u8> {
        let mut waiting = self.lock();
        let len = len.min(waiting.len());
        waiting.drain(..len).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.shared.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
