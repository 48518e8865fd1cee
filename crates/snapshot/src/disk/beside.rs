//! Copying the disks at the same time as memory; whichever fails ends the other.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::save::{CopiedDisk, DiskCopies, DiskHolds};
use crate::control::SaveControl;
use crate::error::{Error, Result};

/// Says in a copy's I/O error that nobody wants the copy any more.
#[derive(Debug, thiserror::Error)]
#[error("given up")]
pub(super) struct GivenUp;

impl GivenUp {
    /// Whether an I/O error is this one.
    pub(super) fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// Copies the disks on threads of their own while `memory` is written on this one.
pub(crate) fn copy_beside<T>(
    disks: DiskCopies,
    holds: DiskHolds,
    control: &SaveControl,
    memory: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<CopiedDisk>)> {
    let given_up = AtomicBool::new(false);
    let proceed = |bytes| {
        control.add_disk_bytes(bytes);
        if given_up.load(Ordering::Relaxed) || control.is_cancelled() {
            return Err(io::Error::other(GivenUp));
        }
        Ok(())
    };
    thread::scope(|scope| {
        let copying = scope.spawn(|| {
            let copied = disks.copy(holds, &proceed);
            if copied.is_err() {
                control.capture().cancel();
            }
            copied
        });
        let memory = memory();
        given_up.store(memory.is_err(), Ordering::Relaxed);
        let disks = copying
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (memory, disks) {
            (Ok(memory), Ok(disks)) => Ok((memory, disks)),
            // What ended the other is the error to tell.
            (Ok(_) | Err(Error::Cancelled), Err(error)) | (Err(error), _) => Err(error),
        }
    })
}
