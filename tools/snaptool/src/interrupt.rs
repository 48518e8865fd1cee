//! An interrupt asks the running command to stop, so that it can remove its temporary files.
//!
//! The first SIGINT, SIGTERM or SIGHUP sets a flag that long work looks at; the second one ends the
//! process at once, for the case that the work hangs.

use std::ops::ControlFlow;
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

/// Tells whether to go on.
pub fn check() -> ControlFlow<()> {
    if REQUESTED.load(Ordering::Relaxed) {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}
