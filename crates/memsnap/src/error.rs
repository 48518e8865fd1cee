//! Why a capture or a restore did not succeed. The memory is writable and its writers run in any case.

use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::sink::SinkError;

/// Result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a capture or a restore did not succeed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused something about write protection.
    #[error("write protection")]
    Protection(#[from] uffd::Error),
    /// Guest memory is backed by what cannot be captured while it is written.
    #[error("memory region at {guest_address:#x}: {reason}")]
    Backing {
        /// First guest physical address of the region.
        guest_address: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The layout or the snapshot does not describe this guest memory.
    #[error("memory map differs at {guest_address:#x}")]
    MemoryMap {
        /// First guest physical address where they differ.
        guest_address: u64,
    },
    /// The sink refused a chunk.
    #[error("snapshot output")]
    Sink(#[source] SinkError),
    /// The snapshot being restored could not be read.
    #[error("snapshot input")]
    Source(#[source] snapfile::Error),
    /// Somebody asked for the capture to be abandoned.
    #[error("cancelled")]
    Cancelled,
    /// The guest wrote faster than the sink takes, and the policy is to fail.
    #[error("all {buffer_bytes} bytes of copy buffers are in use")]
    Pressure {
        /// The bound that was reached.
        buffer_bytes: u64,
    },
    /// A writer waited longer than the caller allows.
    #[error("a write at {guest_address:#x} waited longer than {} ms for a copy buffer", .limit.as_millis())]
    Stall {
        /// Guest physical address of the chunk.
        guest_address: u64,
        /// The limit that was exceeded.
        limit: Duration,
    },
    /// Memory was given back to the kernel during the capture, and its content with it.
    #[error("memory at {guest_address:#x} was discarded during the capture")]
    Discarded {
        /// First guest physical address that was discarded.
        guest_address: u64,
    },
    /// A thread of the capture panicked.
    #[error("the {thread} panicked: {message}")]
    Panicked {
        /// Which one.
        thread: &'static str,
        /// What it said.
        message: String,
    },
    /// `freeze` was not called before `drain`, or was called twice.
    #[error("the capture is {found}, not {wanted}")]
    Phase {
        /// Where the capture is.
        found: &'static str,
        /// Where it should have been.
        wanted: &'static str,
    },
    /// A thread or a wake-up descriptor could not be created.
    #[error("capture threads")]
    Threads(#[source] io::Error),
}
