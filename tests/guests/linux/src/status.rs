//! What the guest says of itself on its console, one JSON object per line.

use serde::{Deserialize, Serialize};

/// A line of the guest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "vmsnap", rename_all = "snake_case")]
pub enum Line {
    /// Said every other second.
    Status(Box<Status>),
    /// The kernel has noticed that this machine is a copy.
    Forked(Entropy),
    /// The guest could not begin.
    Failed {
        /// Why.
        error: String,
    },
}

/// All counters since the guest booted; a restored guest goes on from those of the capture point.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// Number of this line.
    pub sequence: u64,
    /// Things found wrong.
    pub errors: u64,
    /// The first of them in words.
    pub messages: Vec<String>,
    /// Processors that the kernel has.
    pub cpus: usize,
    /// CLOCK_REALTIME in milliseconds.
    pub realtime_ms: u64,
    /// CLOCK_MONOTONIC in milliseconds.
    pub monotonic_ms: u64,
    /// CLOCK_BOOTTIME in milliseconds.
    pub boottime_ms: u64,
    /// CLOCK_MONOTONIC at which user space began, in milliseconds.
    pub user_space_ms: u64,
    /// Pages of memory written.
    pub page_writes: u64,
    /// Complete passes of the checker over all pages.
    pub passes: u64,
    /// Step up to which the counter disk is written.
    pub disk_completed: u64,
    /// Step up to which the counter disk is flushed.
    pub disk_flushed: u64,
    /// Step up to which the counter behind the file system is written; it is never flushed by itself.
    pub tail_completed: u64,
    /// Files written, renamed and checked.
    pub file_cycles: u64,
    /// Timers that expired and were neither early nor lost.
    pub timer_ticks: u64,
    /// The longest that a timer was late, in microseconds.
    pub timer_late_us: u64,
    /// Messages exchanged with a second process.
    pub exchanges: u64,
    /// Bytes received by vsock and found right.
    pub stream_bytes: u64,
    /// Connections made to receive them.
    pub stream_connections: u64,
    /// Packets that the network device has sent.
    pub packets: u64,
    /// Lines written to the console device.
    pub console_lines: u64,
    /// Times that the kernel has noticed to be in a copy.
    pub forks: u64,
    /// Fresh random bytes.
    pub entropy: Entropy,
}

/// Random bytes in hexadecimal; empty where the source is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entropy {
    /// From `/dev/urandom`.
    pub urandom: String,
    /// From `/dev/hwrng`.
    pub hwrng: String,
}

impl Line {
    /// Reads a line of the console; `None` for one that is the kernel's.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text.trim()).ok()
    }
}
