//! Keeps requests from a disk while someone holds it, and knows how many of them wait for room on the medium.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::DRAIN_TIMEOUT;
use crate::error::{Error, Result};

/// What stands between a disk's requests and its bytes.
pub(in crate::block) struct Gate {
    /// Guards all counts.
    counts: Mutex<Counts>,
    /// Signalled when every request under way has completed or waits for room.
    idle: Condvar,
    /// Written when the last hold ends, and when requests that wait for room are to be tried again.
    opened: EventFd,
}

#[derive(Default)]
struct Counts {
    holds: usize,
    under_way: usize,
    /// Of those under way, the ones that found no room on the medium.
    waiting: usize,
    /// Whether those are to be tried again.
    retry: bool,
}

/// Keeps a disk as it is until dropped: requests stay in their queues.
pub struct DiskHold {
    gate: Arc<Gate>,
}

/// A request that the gate let through and that is not complete.
pub(in crate::block) struct Pass {
    gate: Arc<Gate>,
    waiting: bool,
}

/// Why a disk cannot be held.
pub(super) enum NotIdle {
    /// Requests did not complete in time.
    Late,
    /// Requests wait for room on the medium.
    Waiting,
}

impl Gate {
    pub(super) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            counts: Mutex::default(),
            idle: Condvar::new(),
            opened: EventFd::new(EFD_NONBLOCK).map_err(Error::io("eventfd"))?,
        }))
    }

    /// Returns the event that is written when the disk is held no more or requests are to be tried again.
    pub(in crate::block) fn opened(&self) -> &EventFd {
        &self.opened
    }

    /// Has the device try the requests again that wait for room.
    pub(super) fn retry(&self) {
        self.lock().retry = true;
        self.wake();
    }

    /// Tells whether the requests that wait for room are to be tried again, and that they are.
    pub(in crate::block) fn take_retry(&self) -> bool {
        std::mem::take(&mut self.lock().retry)
    }

    /// Has the device look at the gate.
    fn wake(&self) {
        if let Err(error) = self.opened.write(1) {
            // The counter is full: the device is to look anyway.
            tracing::debug!(%error, "disk event");
        }
    }

    /// Tells whether a request waits for room on the medium.
    pub(super) fn waits_for_room(&self) -> bool {
        self.lock().waiting > 0
    }

    /// Lets no more requests through, and waits until none is under way.
    pub(super) fn hold(self: &Arc<Self>) -> std::result::Result<DiskHold, NotIdle> {
        let mut counts = self.lock();
        counts.holds += 1;
        let busy = |counts: &mut Counts| counts.under_way > counts.waiting;
        let (counts, _) = self
            .idle
            .wait_timeout_while(counts, DRAIN_TIMEOUT, busy)
            .unwrap_or_else(PoisonError::into_inner);
        let (under_way, waiting) = (counts.under_way, counts.waiting);
        drop(counts);
        // Ends the hold again if the requests did not complete.
        let hold = DiskHold {
            gate: Arc::clone(self),
        };
        match (under_way, waiting) {
            (0, _) => Ok(hold),
            (_, 0) => Err(NotIdle::Late),
            _ => Err(NotIdle::Waiting),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// Lets a request through, unless the disk is held.
    pub(in crate::block) fn new(gate: &Arc<Gate>) -> Option<Self> {
        let mut counts = gate.lock();
        if counts.holds > 0 {
            return None;
        }
        counts.under_way += 1;
        Some(Self {
            gate: Arc::clone(gate),
            waiting: false,
        })
    }

    /// Notes whether the request waits for room on the medium.
    pub(in crate::block) fn set_waiting(&mut self, waiting: bool) {
        let mut counts = self.gate.lock();
        counts.waiting -= usize::from(self.waiting);
        self.waiting = waiting;
        counts.waiting += usize::from(self.waiting);
        if counts.under_way == counts.waiting {
            self.gate.idle.notify_all();
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut counts = self.gate.lock();
        counts.under_way -= 1;
        counts.waiting -= usize::from(self.waiting);
        if counts.under_way == counts.waiting {
            self.gate.idle.notify_all();
        }
    }
}

impl Drop for DiskHold {
    fn drop(&mut self) {
        let mut counts = self.gate.lock();
        counts.holds -= 1;
        if counts.holds == 0 {
            self.gate.wake();
        }
    }
}

impl fmt::Debug for DiskHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskHold").finish_non_exhaustive()
    }
}
