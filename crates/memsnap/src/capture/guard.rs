//! The write protection of all guest memory: which kernel path, and the registrations that undo it.
//!
//! While the event of a discard waits to be read, the kernel refuses to change any protection. So a discard
//! keeps out, by a lock, those who change it without reading events, and nobody has to try again and again.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use uffd::{Features, Mode, Registration, Uffd};

use crate::error::{Error, Result};
use crate::geometry::{Geometry, Mapping, Span};
use crate::options::KernelPath;
use crate::sync::lock;

/// Owns the userfaultfd and the registration of every region.
#[derive(Debug)]
pub(crate) struct Guard {
    uffd: Arc<Uffd>,
    registrations: Vec<Registration<Mapping>>,
    path: KernelPath,
    /// Held for reading by threads that change protection and do not read events, for writing by a discard.
    calls: RwLock<()>,
    /// Host addresses that are being discarded with the capture's knowledge, as far as the handler has not
    /// read of them yet, in the order of their events.
    announced: Mutex<VecDeque<Range<usize>>>,
}

impl Guard {
    /// Registers all memory; nothing is protected yet.
    pub(crate) fn new(geometry: &Geometry, wanted: KernelPath) -> Result<Self> {
        let supported = Uffd::supported_features()?;
        let path = match wanted {
            KernelPath::Auto if supported.contains(Features::WP_UNPOPULATED) => KernelPath::WpUnpopulated,
            KernelPath::Auto => KernelPath::PopulateFirst,
            forced => forced,
        };
        // Memory given back to the kernel takes its content and its protection along. The event is the
        // only way to learn of it, so it is the tripwire.
        let mut features = Features::PAGEFAULT_FLAG_WP | Features::EVENT_REMOVE;
        if path == KernelPath::WpUnpopulated {
            features = features | Features::WP_UNPOPULATED;
        }
        if supported.contains(Features::WP_HUGETLBFS_SHMEM) {
            features = features | Features::WP_HUGETLBFS_SHMEM;
        }
        let uffd = Arc::new(Uffd::open(features)?);
        let mut registrations = Vec::new();
        for region in geometry.regions() {
            if region.is_hugetlbfs() {
                let reason = "hugetlbfs pages cannot be protected in chunks";
                return Err(Error::Backing {
                    guest_address: region.guest_address,
                    reason,
                });
            }
            registrations.push(Registration::new(
                &uffd,
                region.mapping.clone(),
                Mode::WRITE_PROTECT,
            )?);
        }
        Ok(Guard {
            uffd,
            registrations,
            path,
            calls: RwLock::default(),
            announced: Mutex::default(),
        })
    }

    pub(crate) fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    pub(crate) fn path(&self) -> KernelPath {
        self.path
    }

    /// Makes sure that a protection of `span` will cover all of it.
    ///
    /// Without `WP_UNPOPULATED` the kernel passes over anonymous pages that are not there, so they are
    /// made to be there, as the shared zero page. Memory files need no such care, and would allocate.
    pub(crate) fn prepare(&self, geometry: &Geometry, span: &Span) -> Result<()> {
        if self.path == KernelPath::PopulateFirst && !geometry.region(span.region).file_backed {
            self.registrations[span.region].populate_read(span.bytes.clone())?;
        }
        Ok(())
    }

    pub(crate) fn protect(&self, span: &Span) -> Result<()> {
        let _no_discard = self.no_discard();
        Ok(self.registrations[span.region].write_protect(span.bytes.clone())?)
    }

    /// Lifts protection and wakes who waits; for threads that do not read events.
    pub(crate) fn lift(&self, span: &Span) -> Result<()> {
        let _no_discard = self.no_discard();
        Ok(self.registrations[span.region].unprotect(span.bytes.clone(), true)?)
    }

    /// As `lift`, for the thread that reads events: `false` asks it to do so first.
    pub(crate) fn try_lift(&self, span: &Span) -> Result<bool> {
        Ok(self.registrations[span.region].try_unprotect(span.bytes.clone())?)
    }

    /// Gives pages back to the kernel, content and protection. Returns once the thread that reads events has
    /// read of it, so nobody may keep that thread from reading meanwhile.
    pub(crate) fn discard(&self, geometry: &Geometry, span: &Span) -> io::Result<()> {
        let region = geometry.region(span.region);
        let start = region.host_address(span.bytes.start);
        let addresses = start..start + span.bytes.len();
        let _alone = self.calls.write().unwrap_or_else(PoisonError::into_inner);
        lock(&self.announced).push_back(addresses.clone());
        let outcome = region.mapping.discard(span.bytes.clone());
        if outcome.is_err() {
            // The kernel refused before it reported anything.
            lock(&self.announced).retain(|announced| announced.end != addresses.end);
        }
        outcome
    }

    /// Whether the discard that an event reports was announced; each announcement serves once.
    pub(crate) fn was_announced(&self, start: usize, end: usize) -> bool {
        let mut announced = lock(&self.announced);
        let Some(next) = announced.front_mut() else {
            return false;
        };
        if start != next.start || end > next.end {
            return false;
        }
        // A mapping that the kernel has split is reported in parts.
        next.start = end;
        if next.start == next.end {
            announced.pop_front();
        }
        true
    }

    fn no_discard(&self) -> RwLockReadGuard<'_, ()> {
        self.calls.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives all memory back: writable, nobody waiting, no longer registered. Harmless to repeat.
    pub(crate) fn release(&self) {
        for registration in &self.registrations {
            // A mapping cannot be gone while its registration lives; every other failure leaves nothing
            // to do that closing the descriptor, which follows, does not.
            let _ = registration.unregister();
        }
    }
}
