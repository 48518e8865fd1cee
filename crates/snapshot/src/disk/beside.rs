//! Keeping the disks at the same time as memory; whichever fails ends the other.

use std::error::Error as _;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::save::{DisksAtPoint, KeptDisk};
use super::{DiskError, KnownFingerprints};
use crate::control::SaveControl;
use crate::error::{Error, Result};

/// Says in an I/O error of a disk that nobody wants its content any more.
#[derive(Debug, thiserror::Error)]
#[error("given up")]
struct GivenUp;

/// Who hears how far the disks are, and says whether to go on.
pub(super) struct Watch<'a> {
    control: &'a SaveControl,
    given_up: AtomicBool,
}

impl<'a> Watch<'a> {
    pub(super) fn new(control: &'a SaveControl) -> Self {
        Self {
            control,
            given_up: AtomicBool::new(false),
        }
    }

    /// So many bytes more will be read.
    pub(super) fn expect(&self, bytes: u64) {
        self.control.expect_disk_bytes(bytes);
    }

    /// So many bytes were read; an error says that no more are wanted.
    pub(super) fn proceed(&self, bytes: u64) -> io::Result<()> {
        self.control.add_disk_bytes(bytes);
        if self.given_up.load(Ordering::Relaxed) || self.control.is_cancelled() {
            return Err(io::Error::other(GivenUp));
        }
        Ok(())
    }

    /// The error of a save whose disk was given up, if that is what the disk's error means.
    pub(super) fn given_up(&self, error: &DiskError) -> Option<Error> {
        let source = error.source()?.downcast_ref::<io::Error>()?;
        source.get_ref()?.is::<GivenUp>().then_some(Error::Cancelled)
    }
}

/// Keeps the disks on threads of their own while `memory` is written on this one.
pub(crate) fn keep_beside<T>(
    disks: DisksAtPoint,
    snapshot: &Path,
    known: &KnownFingerprints,
    control: &SaveControl,
    memory: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<KeptDisk>)> {
    let watch = Watch::new(control);
    thread::scope(|scope| {
        let keeping = scope.spawn(|| {
            let kept = disks.keep(snapshot, known, &watch);
            if kept.is_err() {
                control.capture().cancel();
            }
            kept
        });
        let memory = memory();
        watch.given_up.store(memory.is_err(), Ordering::Relaxed);
        let disks = keeping
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (memory, disks) {
            (Ok(memory), Ok(disks)) => Ok((memory, disks)),
            // What ended the other is the error to tell.
            (Ok(_) | Err(Error::Cancelled), Err(error)) | (Err(error), _) => Err(error),
        }
    })
}
