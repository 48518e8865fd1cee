//! Copying what backing files hold into the top of a disk, while the guest works.

use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, TryLockError};

use qcow2::Usage;

use super::Disk;
use crate::error::Result;

/// How a disk is flattened.
#[derive(Clone, Debug, Default)]
pub struct FlattenOptions {
    /// Most bytes copied in a second; nothing means as fast as it goes.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Ends the work when it becomes true; what was copied stays.
    pub cancel: Arc<AtomicBool>,
}

/// How far a disk is flattened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlattenProgress {
    /// Bytes of the disk that are dealt with.
    pub done_bytes: u64,
    /// Bytes of the disk.
    pub total_bytes: u64,
    /// Bytes copied until now.
    pub copied_bytes: u64,
}

impl Disk {
    /// Copies what is only in backing files into the top image, which then needs them no more.
    ///
    /// # Errors
    /// The disk is not a writable qcow2 image, it is being flattened already, an overlay was put on top meanwhile,
    /// it was cancelled, or the medium failed; the disk is as before, with more of it in its top image.
    pub fn flatten(&self, options: &FlattenOptions, progress: &mut dyn FnMut(FlattenProgress)) -> Result<()> {
        let _flattening = match self.inner.flattening.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(self.wrong_kind("it is being flattened already")),
            Err(TryLockError::Poisoned(left)) => left.into_inner(),
            Ok(flattening) => flattening,
        };
        let image = self.writable_image()?;
        let rate = qcow2::flatten::FlattenOptions {
            bytes_per_second: options.bytes_per_second,
        };
        let mut step = |state: qcow2::flatten::FlattenProgress| {
            progress(FlattenProgress {
                done_bytes: state.done_bytes,
                total_bytes: state.total_bytes,
                copied_bytes: state.copied_bytes,
            });
            match options.cancel.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        };
        match qcow2::flatten::flatten(&image, &rate, &mut step) {
            Ok(_) => Ok(()),
            Err(qcow2::Error::Usage(Usage::ReadOnly)) => {
                Err(self.wrong_kind("an overlay was put on it while it was flattened"))
            }
            Err(error) => Err(self.failed(error)),
        }
    }
}
