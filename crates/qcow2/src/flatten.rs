//! Copies what is still in backing files into an image, which then needs them no more.
//!
//! The guest may run: every piece is copied with its clusters locked, what the guest writes meanwhile is newer and
//! stays. When nothing is left below, the header forgets the backing file in one write. Until then the image is
//! what it was, and a flatten that was cut off begins again where clusters are missing.

use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result, Usage};
use crate::image::Image;
use crate::layer::Layer;

/// Bytes that are looked at between two calls of the progress callback, at least a cluster.
const STEP_BYTES: u64 = 1 << 20;
/// Longest sleep between two calls of the progress callback.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// How an image is flattened.
#[derive(Clone, Copy, Debug, Default)]
pub struct FlattenOptions {
    /// Most bytes to copy in a second.
    pub bytes_per_second: Option<NonZeroU64>,
}

/// How far a flatten is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlattenProgress {
    /// Bytes of the disk that are known to be in the image.
    pub done_bytes: u64,
    /// Bytes of the disk.
    pub total_bytes: u64,
    /// Bytes copied until now.
    pub copied_bytes: u64,
}

/// What a flatten has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlattenReport {
    /// Bytes copied.
    pub copied_bytes: u64,
}

/// Copies everything that `image` has from its backing files and lets it forget them, durably.
///
/// `progress` is called at least every tenth of a second; `Break` ends the work, and what is copied stays copied.
///
/// # Errors
/// [`Error::Cancelled`]; the image has internal snapshots, which may need the backing files; it is read-only; or
/// the medium's.
pub fn flatten(
    image: &Image,
    options: &FlattenOptions,
    progress: &mut dyn FnMut(FlattenProgress) -> ControlFlow<()>,
) -> Result<FlattenReport> {
    if image.is_read_only() {
        return Err(Usage::ReadOnly.into());
    }
    if image.engine().snapshot_count() > 0 {
        return Err(Usage::SnapshotsNeedBacking.into());
    }
    let mut work = Work {
        image,
        rate: options.bytes_per_second,
        begun: Instant::now(),
        state: FlattenProgress {
            done_bytes: 0,
            total_bytes: image.len_bytes(),
            copied_bytes: 0,
        },
        progress,
    };
    if image.backing().is_some() {
        work.copy()?;
        // Most is durable before the guest has to wait for the rest.
        image.flush()?;
        image.drop_backing()?;
    }
    let copied_bytes = work.state.copied_bytes;
    Ok(FlattenReport { copied_bytes })
}

/// A flatten under way.
struct Work<'a> {
    image: &'a Image,
    rate: Option<NonZeroU64>,
    begun: Instant,
    state: FlattenProgress,
    progress: &'a mut dyn FnMut(FlattenProgress) -> ControlFlow<()>,
}

impl Work<'_> {
    fn copy(&mut self) -> Result<()> {
        let cluster = self.image.cluster_size();
        let step = STEP_BYTES.max(cluster.bytes());
        let total = self.state.total_bytes;
        while self.state.done_bytes < total {
            let from = self.state.done_bytes;
            let (data, known) = self.image.holds_data(from, total - from)?;
            let skipped = cluster.round_down(from + known);
            if !data && (skipped > from || from + known >= total) {
                self.state.done_bytes = if from + known >= total { total } else { skipped };
            } else {
                let len = step.min(total - from);
                self.state.copied_bytes += self.image.copy_up(from, len)?;
                self.state.done_bytes = from + len;
            }
            self.report()?;
            self.keep_rate()?;
        }
        Ok(())
    }

    fn report(&mut self) -> Result<()> {
        match (self.progress)(self.state) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }

    /// Sleeps until so much time has passed as the copied bytes may take at the fastest.
    fn keep_rate(&mut self) -> Result<()> {
        let Some(rate) = self.rate else { return Ok(()) };
        let copied = u128::from(self.state.copied_bytes);
        let due = u64::try_from(copied * 1_000_000 / u128::from(rate.get())).unwrap_or(u64::MAX);
        loop {
            let early = Duration::from_micros(due).saturating_sub(self.begun.elapsed());
            if early.is_zero() {
                return Ok(());
            }
            thread::sleep(early.min(LONGEST_SLEEP));
            self.report()?;
        }
    }
}
