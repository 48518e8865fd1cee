//! Events read from a userfaultfd, a batch at a time.

use std::fmt;

use crate::error::{Error, Result};

/// Why a thread faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The page is not there; resolved by a copy or a zero page.
    Missing,
    /// The page is write-protected; resolved by lifting the protection.
    WriteProtect,
}

/// One event of a userfaultfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for a page.
    Fault {
        /// Host address of the page (the kernel masks the offset within it).
        address: usize,
        /// Why it waits.
        kind: FaultKind,
        /// Whether it was writing.
        write: bool,
    },
    /// Memory was given back with `madvise` or `fallocate`; only with [`crate::Features::EVENT_REMOVE`].
    Remove {
        /// First host address.
        start: usize,
        /// One past the last host address.
        end: usize,
    },
    /// Something else happened to the registered memory that this crate does not follow.
    Other,
}

/// Room for a number of events; kept by the reader so that reading allocates nothing.
pub struct FaultBatch {
    raw: userfaultfd::EventBuffer,
    events: Vec<Event>,
}

impl FaultBatch {
    /// Room for `capacity` events per read.
    pub fn new(capacity: usize) -> Self {
        FaultBatch {
            raw: userfaultfd::EventBuffer::new(capacity),
            events: Vec::with_capacity(capacity),
        }
    }

    pub(crate) fn fill(&mut self, uffd: &userfaultfd::Uffd) -> Result<&[Event]> {
        self.events.clear();
        for event in uffd.read_events(&mut self.raw).map_err(Error::Events)? {
            self.events.push(translate(&event.map_err(Error::Events)?));
        }
        Ok(&self.events)
    }
}

impl fmt::Debug for FaultBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultBatch")
            .field("events", &self.events)
            .finish_non_exhaustive()
    }
}

fn translate(event: &userfaultfd::Event) -> Event {
    match event {
        userfaultfd::Event::Pagefault { kind, rw, addr, .. } => Event::Fault {
            address: *addr as usize,
            kind: match kind {
                userfaultfd::FaultKind::Missing => FaultKind::Missing,
                userfaultfd::FaultKind::WriteProtected => FaultKind::WriteProtect,
            },
            write: *rw == userfaultfd::ReadWrite::Write,
        },
        userfaultfd::Event::Remove { start, end } => Event::Remove {
            start: *start as usize,
            end: *end as usize,
        },
        _ => Event::Other,
    }
}
