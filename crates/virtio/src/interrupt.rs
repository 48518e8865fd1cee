//! The way from a device to its driver: status bits and an event that becomes an interrupt.
//!
//! A bit is set before the event is written, and the driver acknowledges a bit before it looks at what the
//! bit stands for, so nothing is lost whichever thread signals. The event is an edge: KVM's irqfd injects
//! one interrupt for each write, coalesced while one is pending.
#![warn(clippy::indexing_slicing, clippy::unwrap_used)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A device's interrupt; clones are the same interrupt.
#[derive(Clone, Debug)]
pub struct Interrupt {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// InterruptStatus (virtio 1.2, 4.2.2): why the driver is interrupted, until it acknowledges.
    status: AtomicU32,
    /// ConfigGeneration: changes with the configuration space.
    generation: AtomicU32,
    /// DEVICE_NEEDS_RESET: the device met an error that it cannot recover from.
    needs_reset: AtomicBool,
    event: EventFd,
}

impl Interrupt {
    /// Creates an interrupt with nothing pending.
    ///
    /// # Errors
    /// The system gives no more event descriptors.
    pub fn new() -> io::Result<Self> {
        let inner = Inner {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK)?,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Tells the driver that a queue has used buffers. MMIO has one interrupt for all queues, so the number
    /// matters only to logs.
    pub fn signal_queue(&self, queue: usize) {
        tracing::trace!(queue, "used buffers");
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the configuration space has changed.
    pub fn signal_config(&self) {
        self.inner.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Tells the driver that the device works no more until it is reset (virtio 1.2, 2.1.2).
    pub fn signal_needs_reset(&self) {
        self.inner.needs_reset.store(true, Ordering::Release);
        self.signal_config();
    }

    /// Tells whether the device works no more until it is reset.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.inner.needs_reset.load(Ordering::Acquire)
    }

    /// Returns the event to be registered as KVM's irqfd.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.inner.event
    }

    pub(crate) fn status(&self) -> u32 {
        self.inner.status.load(Ordering::Acquire)
    }

    pub(crate) fn acknowledge(&self, bits: u32) {
        self.inner.status.fetch_and(!bits, Ordering::AcqRel);
    }

    pub(crate) fn generation(&self) -> u32 {
        self.inner.generation.load(Ordering::Acquire)
    }

    /// Sets everything but the event; nothing is raised.
    pub(crate) fn set(&self, status: u32, generation: u32, needs_reset: bool) {
        self.inner.status.store(status, Ordering::Release);
        self.inner.generation.store(generation, Ordering::Release);
        self.inner.needs_reset.store(needs_reset, Ordering::Release);
    }

    /// Raises what is pending, and used buffers if `used`, whether they were raised before or not.
    pub(crate) fn raise_again(&self, used: bool) {
        if used {
            self.raise(VIRTIO_MMIO_INT_VRING);
        } else if self.status() != 0 {
            self.raise(0);
        }
    }

    fn raise(&self, bit: u32) {
        self.inner.status.fetch_or(bit, Ordering::AcqRel);
        if let Err(error) = self.inner.event.write(1) {
            // The counter is full: an interrupt is pending anyway.
            tracing::debug!(%error, "interrupt event");
        }
    }
}
