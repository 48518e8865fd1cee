//! The kernel's own complaints, and its notice that this machine is a copy.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, Result};
use linux_guest::status::Line;

use super::health::Health;
use super::{entropy, report};

/// Words in the kernel's log that a healthy guest never has.
///
/// "TSCs unsynchronized" is not among them: so says every kernel on several processors of AMD that do not promise a
/// constant time stamp counter, such as QEMU's.
const COMPLAINTS: &[&str] = &[
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "detected stalls",
    "self-detected stall",
    "clocksource: timekeeping watchdog",
    "clocksource: Marking",
    "unstable due to clocksource watchdog",
    "TSC warp between CPUs",
    "clock skew",
    "BUG:",
    "WARNING:",
    "Oops:",
    "general protection fault",
    "I/O error",
    "EXT4-fs error",
    "EXT4-fs warning",
    "page allocation failure",
    "Out of memory:",
];

/// What the kernel says when the generation id has changed.
const FORKED: &str = "reseeded due to virtual machine fork";

/// Reads the log from its beginning, without end.
pub fn watch(health: &Health) -> Result<()> {
    let mut log = File::open("/dev/kmsg").context("the kernel's log")?;
    let mut record = [0; 8192];
    loop {
        let count = match log.read(&mut record) {
            Ok(count) => count,
            // Records were overwritten before they were read; the next read goes on with the oldest.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => continue,
            Err(error) => return Err(error).context("reading the kernel's log"),
        };
        let text = String::from_utf8_lossy(&record[..count]);
        let message = text.split_once(';').map_or(&*text, |(_, message)| message);
        let line = message.lines().next().unwrap_or_default();
        if COMPLAINTS.iter().any(|complaint| line.contains(complaint)) {
            health.error(format!("kernel: {line}"));
        }
        if line.contains(FORKED) {
            health.forks.fetch_add(1, Relaxed);
            report::say(&Line::Forked(entropy::read_in_copy()));
        }
    }
}
