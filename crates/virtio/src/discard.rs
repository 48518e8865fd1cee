//! Giving guest memory back to the host.
//!
//! A balloon frees pages that the guest does not need. Whoever must see such pages before they are gone, a
//! capture in progress above all, takes the discards over by installing a route of its own.
#![warn(clippy::indexing_slicing, clippy::unwrap_used)]

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use vm_memory::GuestMemoryMmap;

mod host;

pub use host::HostDiscard;

/// A way to give guest memory back to the host.
pub trait Discard: Send + Sync {
    /// Frees the `len` bytes of guest memory at guest physical address `gpa`, which read as zeros afterwards.
    ///
    /// Only whole pages of the host are freed; what is left of the range at its ends is kept as it is.
    ///
    /// # Errors
    /// The range is not guest memory, or the system refuses; an unknown part has been freed.
    fn discard(&self, memory: &GuestMemoryMmap, gpa: u64, len: u64) -> io::Result<()>;
}

/// The way that discards of a machine take at the moment; clones are the same way.
///
/// At first it is [`HostDiscard`].
#[derive(Clone)]
pub struct DiscardRoute {
    /// Read-locked by each discard under way, so that [`DiscardRoute::install`] returns after the last
    /// discard that took the former way.
    current: Arc<RwLock<Arc<dyn Discard>>>,
}

impl DiscardRoute {
    /// Creates a route to [`HostDiscard`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            current: Arc::new(RwLock::new(Arc::new(HostDiscard))),
        }
    }

    /// Sends discards to `discard` from now on; waits for those under way. Returns the former way.
    pub fn install(&self, discard: Arc<dyn Discard>) -> Arc<dyn Discard> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, discard)
    }

    /// Frees guest memory by the way installed; see [`Discard::discard`].
    ///
    /// # Errors
    /// As [`Discard::discard`].
    pub fn discard(&self, memory: &GuestMemoryMmap, gpa: u64, len: u64) -> io::Result<()> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.discard(memory, gpa, len)
    }
}

impl Default for DiscardRoute {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for DiscardRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscardRoute").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
