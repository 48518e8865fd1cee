//! The memory balloon (virtio 1.2, 5.5): memory that the guest does not need goes back to the host.
//!
//! Two ways lead there. The guest puts pages into the balloon until it holds the target, which can be changed
//! while the machine runs; and, where the configuration says so, it reports free pages of its own accord. Either
//! is advice: whatever the guest says is memory becomes zero pages by the [`DiscardRoute`], which sees to it
//! that a capture under way has them first, and whatever is not memory is passed over.
//!
//! Left out: free page hinting. Its hints belong to one run of a migration and are void as soon as the guest
//! uses the page, so they are of no use to a snapshot that protects memory first, and a restored guest would
//! have to be talked out of the run. Reporting gives such pages back before the snapshot reads them. Left out as
//! well: statistics.

mod handler;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ciborium::Value;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::balloon::handler::Handler;
use crate::config::BalloonConfig;
use crate::device::{VirtioDevice, from_value, read_config_bytes, to_value};
use crate::discard::DiscardRoute;
use crate::error::{Error, Result};
use crate::worker::{Work, Worker};

/// The guest may take pages back without asking when it runs out of memory (virtio 1.2, 5.5.3).
const F_DEFLATE_ON_OOM: u32 = 2;
/// The guest reports free pages (virtio 1.2, 5.5.3).
const F_PAGE_REPORTING: u32 = 5;

/// Inflate and deflate queue, and three numbers that the reporting queue may have: the standard gives it 4
/// (virtio 1.2, 5.5.2), but Linux does not count the queues that are not there and uses 2.
const QUEUE_SIZES: [u16; 5] = [128; 5];
/// Bytes of a page of the balloon, whatever the guest's own are (virtio 1.2, 5.5.6).
const PAGE_BYTES: u64 = 4096;
/// Offset of `actual` in the configuration space, the one field that the driver writes (virtio 1.2, 5.5.4).
const ACTUAL: u64 = 4;

/// The memory balloon device.
#[derive(Debug)]
pub struct BalloonDevice {
    balloon: Balloon,
    reporting: bool,
    worker: Worker<Handler>,
}

/// Sets and tells the size of a machine's balloon; clones are of the same balloon.
#[derive(Clone, Debug)]
pub struct Balloon {
    shared: Arc<Shared>,
}

/// What the device, its worker and the handles share.
#[derive(Debug)]
struct Shared {
    /// Pages of the machine's memory.
    memory_pages: u32,
    /// `num_pages`: what the guest is asked to put into the balloon.
    target_pages: AtomicU32,
    /// `actual`: what the guest says is in it.
    actual_pages: AtomicU32,
    /// Written when the target has changed; the worker tells the guest, unless it is paused.
    changed: EventFd,
}

/// The device's own saved state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    target_bytes: u64,
    actual_bytes: u64,
}

impl Balloon {
    /// Asks the guest to give up `bytes` of its memory, rounded down to whole pages of 4 KiB.
    ///
    /// A guest that is paused or has no driver yet learns of it when it runs and has one. It may be slow, and
    /// it may not comply.
    ///
    /// # Errors
    /// [`Error::BalloonTarget`] where the machine has less memory.
    pub fn set_target_bytes(&self, bytes: u64) -> Result<()> {
        let shared = &*self.shared;
        let pages = pages_of(bytes)
            .filter(|pages| *pages <= shared.memory_pages)
            .ok_or(Error::BalloonTarget {
                target_bytes: bytes,
                memory_bytes: bytes_of(shared.memory_pages),
            })?;
        shared.target_pages.store(pages, Ordering::Release);
        shared.announce();
        Ok(())
    }

    /// Returns what the guest is asked to give up.
    #[must_use]
    pub fn target_bytes(&self) -> u64 {
        bytes_of(self.shared.target_pages.load(Ordering::Acquire))
    }

    /// Returns what the guest says it has given up; not to be relied on.
    #[must_use]
    pub fn actual_bytes(&self) -> u64 {
        bytes_of(self.shared.actual_pages.load(Ordering::Acquire))
    }
}

impl Shared {
    /// Has the worker tell the guest to look at the configuration space.
    fn announce(&self) {
        // The one failure is a counter that is full: then the worker has been told.
        let _ = self.changed.write(1);
    }
}

impl BalloonDevice {
    /// Makes the balloon of a machine with `memory_bytes` of memory, which goes back to the host by `route`.
    ///
    /// # Errors
    /// [`Error::BalloonTarget`] where the target is larger than the memory; [`Error::Io`] where the system gives
    /// no more event descriptors.
    pub fn new(config: &BalloonConfig, memory_bytes: u64, route: DiscardRoute) -> Result<Self> {
        let changed = EventFd::new(EFD_NONBLOCK).map_err(Error::io("eventfd"))?;
        let shared = Shared {
            memory_pages: pages_of(memory_bytes).unwrap_or(u32::MAX),
            target_pages: AtomicU32::new(0),
            actual_pages: AtomicU32::new(0),
            changed,
        };
        let balloon = Balloon {
            shared: Arc::new(shared),
        };
        balloon.set_target_bytes(config.target_bytes)?;
        let handler = Handler::new(balloon.clone(), route);
        Ok(Self {
            balloon,
            reporting: config.free_page_reporting,
            worker: Worker::new("balloon", handler),
        })
    }

    /// Returns a handle on the balloon.
    #[must_use]
    pub fn handle(&self) -> Balloon {
        self.balloon.clone()
    }

    /// Returns the configuration space (`struct virtio_balloon_config`; virtio 1.2, 5.5.4) without the fields
    /// of features that are not offered.
    fn config_space(&self) -> [u8; 8] {
        let shared = &*self.balloon.shared;
        let target = shared.target_pages.load(Ordering::Acquire);
        let actual = shared.actual_pages.load(Ordering::Acquire);
        (u64::from(actual) << 32 | u64::from(target)).to_le_bytes()
    }
}

impl VirtioDevice for BalloonDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        1 << F_DEFLATE_ON_OOM | u64::from(self.reporting) << F_PAGE_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config_space(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut space = self.config_space();
        for (place, byte) in (offset..).zip(data) {
            let field = usize::try_from(place).ok().filter(|_| place >= ACTUAL);
            if let Some(to) = field.and_then(|place| space.get_mut(place)) {
                *to = *byte;
            }
        }
        let [_, _, _, _, actual @ ..] = space;
        let actual = u32::from_le_bytes(actual);
        self.balloon.shared.actual_pages.store(actual, Ordering::Release);
    }

    fn worker(&self) -> &dyn Work {
        &self.worker
    }

    fn worker_mut(&mut self) -> &mut dyn Work {
        &mut self.worker
    }

    /// The balloon is empty afterwards, the target stays.
    fn reset(&mut self) -> Result<()> {
        self.worker.reset()?;
        self.balloon.shared.actual_pages.store(0, Ordering::Release);
        Ok(())
    }

    fn save(&self) -> Result<Value> {
        to_value(&State {
            target_bytes: self.balloon.target_bytes(),
            actual_bytes: self.balloon.actual_bytes(),
        })
    }

    /// The guest is told to look at its target again: it may have been set just before the machine was saved.
    fn restore(&mut self, version: u32, state: &Value) -> Result<()> {
        let saved: State = from_value(self.version(), version, state)?;
        let pages = |bytes: u64| {
            let whole = bytes.is_multiple_of(PAGE_BYTES);
            pages_of(bytes).filter(|_| whole).ok_or_else(|| Error::State {
                problem: format!("a balloon of {bytes} bytes"),
            })
        };
        let (actual, target) = (pages(saved.actual_bytes)?, pages(saved.target_bytes)?);
        self.balloon.set_target_bytes(bytes_of(target))?;
        self.balloon.shared.actual_pages.store(actual, Ordering::Release);
        Ok(())
    }
}

/// The whole pages of so many bytes, if they can be counted.
fn pages_of(bytes: u64) -> Option<u32> {
    u32::try_from(bytes / PAGE_BYTES).ok()
}

fn bytes_of(pages: u32) -> u64 {
    u64::from(pages) * PAGE_BYTES
}

#[cfg(test)]
mod tests;
