//! What a disk has to tell the machine's owner.

use std::sync::{Mutex, PoisonError};

/// Something that the machine's owner is to deal with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskEvent {
    /// The medium is full and the disk's policy is to pause: a request is kept until the machine is resumed.
    Full {
        /// The disk's id.
        disk: String,
    },
}

/// Who hears of events.
type Listener = Box<dyn Fn(DiskEvent) + Send + Sync>;

/// The listener of one disk, if there is one.
#[derive(Default)]
pub(super) struct Listeners(Mutex<Option<Listener>>);

impl Listeners {
    pub(super) fn set(&self, listener: Listener) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
    }

    pub(super) fn tell(&self, event: DiskEvent) {
        tracing::warn!(?event, "disk event");
        if let Some(listener) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            listener(event);
        }
    }
}
