//! Interrupts (Ctrl-C, SIGTERM, SIGHUP) become a flag that every wait looks at.
//!
//! A chore that is interrupted returns an error like any other, so temporary directories and child processes are
//! cleaned up by the same destructors.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Set once by the signal handler's thread, never cleared; guards nothing else.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Starts watching for interrupts.
pub fn watch() -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)).context("cannot watch for interrupts")
}

/// Fails once an interrupt has come.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps for `time` in small steps and fails as soon as an interrupt comes.
pub fn sleep(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(20)));
    }
}
