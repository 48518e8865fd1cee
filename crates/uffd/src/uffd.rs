//! The descriptor: opened so that it takes faults from kernel code, with exactly the features asked for.

#![expect(
    unsafe_code,
    reason = "hands the descriptor's ownership to the userfaultfd crate"
)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};

use crate::error::{Error, Result};
use crate::event::{Event, FaultBatch};
use crate::features::Features;
use crate::sys;

/// A userfaultfd of this process: non-blocking, close-on-exec, for faults of user and kernel code.
///
/// Reads, registrations and protection changes may come from several threads at once.
#[derive(Debug)]
pub struct Uffd {
    inner: userfaultfd::Uffd,
    features: Features,
    supported: Features,
}

impl Uffd {
    /// Asks the running kernel for all the features that its userfaultfd supports.
    ///
    /// # Errors
    /// [`Error::Open`] where no userfaultfd can be had.
    pub fn supported_features() -> Result<Features> {
        let probe = sys::open_userfaultfd().map_err(Error::Open)?;
        sys::uffdio_api(probe.as_fd(), 0)
            .map(Features::from_bits)
            .map_err(Error::Open)
    }

    /// Opens a userfaultfd and enables `features`.
    ///
    /// # Errors
    /// [`Error::MissingFeatures`] names what the kernel lacks; [`Error::Open`] where no userfaultfd
    /// that takes kernel faults can be had.
    pub fn open(features: Features) -> Result<Uffd> {
        let supported = Self::supported_features()?;
        if !supported.contains(features) {
            return Err(Error::MissingFeatures {
                missing: features.without(supported),
            });
        }
        let fd = sys::open_userfaultfd().map_err(Error::Open)?;
        sys::uffdio_api(fd.as_fd(), features.bits()).map_err(Error::Open)?;
        // SAFETY: `into_raw_fd` gives up ownership of a valid userfaultfd, which passes to `inner`.
        let inner = unsafe { userfaultfd::Uffd::from_raw_fd(fd.into_raw_fd()) };
        Ok(Uffd {
            inner,
            features,
            supported,
        })
    }

    /// The features that were enabled by [`Uffd::open`].
    pub fn features(&self) -> Features {
        self.features
    }

    /// The features that the kernel supports, enabled here or not.
    pub fn supported(&self) -> Features {
        self.supported
    }

    /// Reads the events that wait, as many as the batch holds, without blocking.
    ///
    /// The result is empty when nothing waits. Wait for more with `poll(2)` on [`AsFd::as_fd`].
    ///
    /// # Errors
    /// [`Error::Events`] where the descriptor cannot be read or says something unknown.
    pub fn read_events<'a>(&self, batch: &'a mut FaultBatch) -> Result<&'a [Event]> {
        batch.fill(&self.inner)
    }

    pub(crate) fn inner(&self) -> &userfaultfd::Uffd {
        &self.inner
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as `inner`, which `self` owns.
        unsafe { BorrowedFd::borrow_raw(self.inner.as_raw_fd()) }
    }
}
