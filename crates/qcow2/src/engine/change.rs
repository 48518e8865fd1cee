//! What comes before every change: is the image one that may be written to.

use std::sync::atomic::Ordering;

use super::Engine;
use super::state::State;
use crate::error::{Error, Result, Unsupported, Usage};
use crate::format;

impl Engine {
    /// Checks that a range may be changed, and clears what the first change of an image makes untrue.
    pub(super) fn begin_change(&self, offset: u64, len: u64) -> Result<()> {
        if self.read_only {
            return Err(Usage::ReadOnly.into());
        }
        if self.corrupt.load(Ordering::Acquire) {
            return Err(Unsupported::MarkedCorrupt.into());
        }
        self.check_range(offset, len)?;
        if !self.changed.load(Ordering::Acquire) {
            self.clear_autoclear()?;
            self.changed.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Clears the features that a writer who does not keep them up must clear, bitmaps above all, durably.
    fn clear_autoclear(&self) -> Result<()> {
        let mut state = self.lock();
        if state.header.autoclear != 0 {
            tracing::warn!("bitmaps and other data that this program does not keep up become invalid");
            let mut header = state.header.clone();
            header.autoclear = 0;
            header.write_feature_fields(self.medium.as_ref())?;
            crate::storage::Storage::sync(self.medium.as_ref())?;
            state.header.autoclear = 0;
        }
        Ok(())
    }

    /// Marks the image corrupt if that is what an error says: from then on it may only be read.
    pub(super) fn note_corruption(&self, state: &mut State, error: &Error) {
        if !matches!(error, Error::Corrupt(_)) || self.corrupt.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::error!(%error, "the image is corrupt and is only read from now on");
        if self.read_only || state.header.version < 3 {
            return;
        }
        state.header.incompatible |= format::INCOMPATIBLE_CORRUPT;
        if let Err(error) = state.header.write_feature_fields(self.medium.as_ref()) {
            tracing::warn!(%error, "the image could not be marked corrupt");
        }
    }

    /// Flushes if so much metadata waits to be written that more would take too much memory.
    pub(super) fn relieve(&self) -> Result<()> {
        if self.lock().is_strained() {
            self.flush()?;
        }
        Ok(())
    }
}
