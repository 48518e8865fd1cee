//! Overlays that a machine was left on by a snapshot that did not come about.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};

/// A disk that goes on in an overlay over an image that no snapshot needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOverlay {
    /// The disk.
    pub disk: String,
    /// The frozen image in its chain.
    pub frozen: PathBuf,
}

/// The switches that were made, for the error of a save that fails behind them; clones are the same list.
#[derive(Debug, Clone, Default)]
pub(crate) struct LeftOverlays(Arc<Mutex<Vec<LeftOverlay>>>);

impl LeftOverlays {
    pub(super) fn push(&self, disk: &str, frozen: PathBuf) {
        let disk = disk.to_owned();
        self.lock().push(LeftOverlay { disk, frozen });
    }

    /// Names in an error what was left behind.
    pub(crate) fn tell<T>(&self, result: Result<T>) -> Result<T> {
        let left = std::mem::take(&mut *self.lock());
        match result {
            Err(source) if !left.is_empty() => Err(Error::LeftOverlays {
                left,
                source: Box::new(source),
            }),
            result => result,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<LeftOverlay>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
