//! An interrupt asks a command that has temporary files to stop, so that it can remove them.
//!
//! The first SIGINT, SIGTERM or SIGHUP sets a flag that the work looks at; the second one ends the
//! process at once, for the case that the work hangs. Commands without temporary files do not
//! install the handler: they end at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

/// Set once by the handler, read by workers; orders nothing else.
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Exit code of a process that ends by a second interrupt: could not do it.
const ABANDONED: i32 = 2;

/// Installs the handler. Must be called once, before any work.
pub fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::Relaxed) {
            std::process::exit(ABANDONED);
        }
    })
    .context("cannot handle interrupts")
}

/// Fails once an interrupt has come.
pub fn check() -> anyhow::Result<()> {
    anyhow::ensure!(!REQUESTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
