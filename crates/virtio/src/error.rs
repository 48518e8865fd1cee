//! The errors of this crate.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::InvalidDevices;

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why a device could not be made, activated, paused, saved or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration breaks a rule.
    #[error("configuration")]
    Config(#[from] InvalidDevices),
    /// An operating system call failed.
    #[error("{operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The host side of a device cannot be had or failed.
    #[error("host side: {problem}")]
    Host {
        /// What failed.
        problem: String,
    },
    /// The driver has set up a queue that cannot be, or its rings contradict themselves.
    #[error("queue {queue}")]
    Queue {
        /// Number of the queue.
        queue: usize,
        /// What is wrong with it.
        #[source]
        source: virtio_queue::Error,
    },
    /// A device has queues of sizes that cannot be.
    #[error("queue {queue} cannot have {size} entries")]
    QueueSize {
        /// Number of the queue.
        queue: usize,
        /// Entries asked for.
        size: u16,
    },
    /// What the driver put into a queue breaks the device's protocol.
    #[error("queue {queue}: {problem}")]
    Protocol {
        /// Number of the queue.
        queue: usize,
        /// The rule that is broken.
        problem: &'static str,
    },
    /// Requests under way did not complete in time; the device works on.
    #[error("requests under way did not complete within {} s", after.as_secs())]
    Drain {
        /// How long was waited.
        after: Duration,
    },
    /// The operation needs a device that is paused.
    #[error("the device is at work")]
    NotPaused,
    /// The operation needs a device that no driver is using.
    #[error("the device is in use by its driver")]
    Active,
    /// The balloon cannot be asked for more than the machine's memory.
    #[error("a balloon of {target_bytes} bytes in a machine of {memory_bytes}")]
    BalloonTarget {
        /// What was asked for.
        target_bytes: u64,
        /// The machine's memory.
        memory_bytes: u64,
    },
    /// The saved state is of a version that the device does not know.
    #[error("state version {saved}, this device reads {known}")]
    Version {
        /// Version saved.
        saved: u32,
        /// Version that the device reads.
        known: u32,
    },
    /// The saved state breaks the schema or contradicts itself.
    #[error("state: {problem}")]
    State {
        /// What is wrong with it.
        problem: String,
    },
    /// A disk image cannot be opened.
    #[error("disk {}", path.display())]
    OpenDisk {
        /// Path of the image.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A disk image is in use by another machine.
    #[error("disk {} is in use by another process", path.display())]
    DiskInUse {
        /// Path of the image.
        path: PathBuf,
    },
    /// A disk image is not usable.
    #[error("disk {}", path.display())]
    Image {
        /// Path of the image.
        path: PathBuf,
        /// Why.
        #[source]
        source: qcow2::Error,
    },
    /// An overlay of a raw disk takes its place: what is written to the disk itself would break the overlay.
    #[error("disk {} is the base of {}: use that one", path.display(), overlay.display())]
    DiskIsBase {
        /// The raw disk.
        path: PathBuf,
        /// The overlay beside it.
        overlay: PathBuf,
    },
    /// A disk is not of a kind that the operation needs.
    #[error("disk {disk}: {problem}")]
    DiskKind {
        /// The disk's id.
        disk: String,
        /// What it would have to be.
        problem: &'static str,
    },
    /// A request waits for room on the medium, so that the disk cannot be brought to rest.
    #[error("disk {disk}: the medium is full and a request waits for room")]
    DiskFull {
        /// The disk's id.
        disk: String,
    },
    /// The size of a disk image is not a whole number of sectors.
    #[error("disk {} of {len_bytes} bytes is not one or more whole sectors of 512 bytes", path.display())]
    DiskSize {
        /// Path of the image.
        path: PathBuf,
        /// Its size.
        len_bytes: u64,
    },
}

impl Error {
    /// Returns a function that makes an [`Error::Io`] of what the system answered.
    pub(crate) fn io(operation: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }
}
