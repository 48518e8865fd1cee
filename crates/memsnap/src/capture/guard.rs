//! The write protection of all guest memory: which kernel path, and the registrations that undo it.

use std::sync::Arc;

use uffd::{Features, Mode, Registration, Uffd};

use crate::error::{Error, Result};
use crate::geometry::{Geometry, Mapping, Span};
use crate::options::KernelPath;

/// Owns the userfaultfd and the registration of every region.
#[derive(Debug)]
pub(crate) struct Guard {
    uffd: Arc<Uffd>,
    registrations: Vec<Registration<Mapping>>,
    path: KernelPath,
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
        Ok(self.registrations[span.region].write_protect(span.bytes.clone())?)
    }

    /// Lifts protection and wakes who waits; for threads that do not read events.
    pub(crate) fn lift(&self, span: &Span) -> Result<()> {
        Ok(self.registrations[span.region].unprotect(span.bytes.clone(), true)?)
    }

    /// As `lift`, for the thread that reads events: `false` asks it to do so first.
    pub(crate) fn try_lift(&self, span: &Span) -> Result<bool> {
        Ok(self.registrations[span.region].try_unprotect(span.bytes.clone())?)
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
