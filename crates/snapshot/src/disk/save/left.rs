//! Overlays that a machine was left on by a snapshot that did not come about.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::source::FrozenImage;
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
pub(crate) struct LeftOverlays(Arc<Mutex<Left>>);

#[derive(Debug, Default)]
struct Left {
    switched: Vec<LeftOverlay>,
    /// Of them, those that are not durable and that nobody else will see to.
    unsettled: Vec<Box<dyn FrozenImage>>,
}

impl LeftOverlays {
    pub(super) fn push(&self, disk: &str, frozen: PathBuf) {
        let disk = disk.to_owned();
        self.lock().switched.push(LeftOverlay { disk, frozen });
    }

    pub(super) fn settle_later(&self, image: Box<dyn FrozenImage>) {
        self.lock().unsettled.push(image);
    }

    /// Names in an error what was left behind, and makes it durable; called when the guest runs again.
    pub(crate) fn tell<T>(&self, result: Result<T>) -> Result<T> {
        let Left { switched, unsettled } = std::mem::take(&mut *self.lock());
        for image in unsettled {
            // The guest's next flush tries again, and tells the guest if it cannot.
            if let Err(error) = image.settle() {
                tracing::warn!(error, "a frozen image is not durable yet");
            }
        }
        match result {
            Err(source) if !switched.is_empty() => Err(Error::LeftOverlays {
                left: switched,
                source: Box::new(source),
            }),
            result => result,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Left> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
