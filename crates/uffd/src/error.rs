//! What can go wrong between this process and the kernel's userfaultfd.

use std::io;

use thiserror::Error;

use crate::Features;

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation on a userfaultfd, or on memory registered with one, that did not succeed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither `/dev/userfaultfd` nor the system call gave a descriptor that takes kernel faults.
    #[error(
        "userfaultfd cannot be opened for faults from kernel code \
         (needs access to /dev/userfaultfd, CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1)"
    )]
    Open(#[source] io::Error),
    /// The kernel lacks features that the caller requires.
    #[error("the kernel's userfaultfd lacks {missing}")]
    MissingFeatures {
        /// The required features that are not there.
        missing: Features,
    },
    /// A range is not a whole number of pages, or does not lie inside its registration.
    #[error("range {start:#x}..{end:#x} is not page-aligned or not inside the {len:#x} registered bytes")]
    Range {
        /// First byte, as an offset into the registration.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// Length of the registration.
        len: usize,
    },
    /// An ioctl or another system call failed.
    #[error("{operation} at {address:#x} (+{len:#x})")]
    Call {
        /// Name of the operation as the kernel's documentation has it.
        operation: &'static str,
        /// Host address that it was applied to; zero where there is none.
        address: usize,
        /// Length in bytes that it was applied to.
        len: usize,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// Events could not be read, or were not understood.
    #[error("userfaultfd events")]
    Events(#[source] userfaultfd::Error),
}

impl Error {
    pub(crate) fn call(operation: &'static str, address: usize, len: usize, source: io::Error) -> Self {
        Error::Call {
            operation,
            address,
            len,
            source,
        }
    }
}

/// The error number inside an error of the `userfaultfd` crate, where it has one.
pub(crate) fn to_io(error: userfaultfd::Error) -> io::Error {
    match error {
        userfaultfd::Error::SystemError(errno)
        | userfaultfd::Error::CopyFailed(errno)
        | userfaultfd::Error::ZeropageFailed(errno) => io::Error::from_raw_os_error(errno as i32),
        other => io::Error::other(other),
    }
}
