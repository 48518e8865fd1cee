//! A virtio device's registers in memory (virtio 1.2, 4.2, register layout version 2).
//!
//! The transport is a state machine that the driver steps by writing the status register; every register it
//! does not step may be written at any time, with any value, and is then ignored or kept as it is until the
//! driver is ready and it is checked. It holds no lock and is entered by one thread at a time, the machine's
//! lock around it being held for an access or a command; its worker threads never come here.
//!
//! The registers of a queue are those that the driver wrote. The ring positions among them are current only
//! where the device is not activated: the device has them while it works, and they are asked for in a save.
#![warn(clippy::indexing_slicing, clippy::unwrap_used)]

mod registers;
mod state;
mod status;

use std::fmt;

use ciborium::Value;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{Activation, VirtioDevice, from_value, to_value};
use crate::error::{Error, Result};
use crate::event::clear;
use crate::interrupt::Interrupt;
use crate::queue::{ActiveQueue, QueueState};

use registers::Registers;

pub use registers::QUEUE_NOTIFY;

/// Version of the saved state's schema.
const STATE_VERSION: u32 = 1;

/// Features of transport and rings, the same for every device.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A device and its registers.
pub struct MmioTransport {
    name: String,
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    interrupt: Interrupt,
    registers: Registers,
    queues: Vec<QueueSlot>,
    /// Whether the device has the queues.
    active: bool,
    /// Whether the device is to do nothing.
    paused: bool,
    /// Whether the driver may have missed an interrupt because the state was restored.
    restored: bool,
}

/// A queue's registers and the event that its notifications write.
#[derive(Debug)]
struct QueueSlot {
    state: QueueState,
    max_size: u16,
    kick: EventFd,
}

impl MmioTransport {
    /// Puts `device` behind registers; `name` is unique in the machine.
    ///
    /// # Errors
    /// The device's queues cannot be, or the system gives no more event descriptors.
    pub fn new(name: String, device: Box<dyn VirtioDevice>, memory: GuestMemoryMmap) -> Result<Self> {
        let queues = device.queue_sizes().iter().enumerate();
        let queues = queues
            .map(|(queue, &size)| QueueSlot::new(queue, size))
            .collect::<Result<_>>()?;
        Ok(Self {
            name,
            device,
            memory,
            interrupt: Interrupt::new().map_err(Error::io("eventfd"))?,
            registers: Registers::default(),
            queues,
            active: false,
            paused: false,
            restored: false,
        })
    }

    /// Returns the device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the version of the state that [`Self::save`] makes.
    #[must_use]
    pub fn version(&self) -> u32 {
        STATE_VERSION
    }

    /// Returns the event that stands for the device's interrupt, an edge, to be registered as KVM's irqfd.
    #[must_use]
    pub fn interrupt_event(&self) -> &EventFd {
        self.interrupt.event()
    }

    /// Returns the number of queues.
    #[must_use]
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Returns the event that stands for a notification of queue number `queue`, to be registered as KVM's
    /// ioeventfd at QueueNotify ([`QUEUE_NOTIFY`]) with the number as data to match.
    ///
    /// # Panics
    /// There is no such queue.
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "the caller's number, not the guest's")]
    pub fn kick_event(&self, queue: usize) -> &EventFd {
        &self.queues[queue].kick
    }

    /// Completes the device's requests under way and starts none until [`Self::resume`].
    ///
    /// # Errors
    /// They did not complete in time; the device works on.
    pub fn pause(&mut self) -> Result<()> {
        if self.active && !self.paused {
            self.device.pause()?;
        }
        self.paused = true;
        Ok(())
    }

    /// Lets the device work again.
    ///
    /// After a restore the driver is interrupted once: the interrupt of a request completed just before the
    /// save may have been on its way then.
    pub fn resume(&mut self) {
        if std::mem::replace(&mut self.paused, false) && self.active {
            self.device.resume();
        }
        if std::mem::replace(&mut self.restored, false) {
            let used = self.active && self.queues.iter().any(|queue| queue.state.ready);
            self.interrupt.raise_again(used);
        }
    }

    /// Returns the state of registers, queues and device as a CBOR map of named fields.
    ///
    /// # Errors
    /// The device is at work, or cannot tell its state.
    pub fn save(&self) -> Result<Value> {
        to_value(&self.state()?)
    }

    /// Takes over a saved state. The device is paused then: [`Self::resume`] sets it to work.
    ///
    /// # Errors
    /// The version is unknown, the state breaks the schema, contradicts itself or asks for what this device
    /// does not have, or the device cannot be activated; the device is then as after a reset.
    pub fn restore(&mut self, version: u32, state: &Value) -> Result<()> {
        self.set_state(&from_value(STATE_VERSION, version, state)?)
    }

    /// Gives the device its queues.
    fn activate(&mut self) -> Result<()> {
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, slot) in self.queues.iter_mut().enumerate() {
            slot.state.event_idx = self.registers.has_feature(VIRTIO_RING_F_EVENT_IDX);
            queues.push(slot.active_queue(index, &self.memory)?);
        }
        self.device.activate(Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: self.interrupt.clone(),
            features: self.registers.driver_features,
            paused: self.paused,
        })?;
        self.active = true;
        Ok(())
    }

    /// Brings everything into the state before a driver came.
    fn reset(&mut self) -> Result<()> {
        self.device.reset()?;
        self.active = false;
        self.restored = false;
        self.registers = Registers::default();
        for slot in &mut self.queues {
            slot.state = QueueState {
                size: slot.max_size,
                ..QueueState::default()
            };
            clear(&slot.kick);
        }
        self.interrupt.set(0, self.interrupt.generation(), false);
        Ok(())
    }

    /// Returns all feature bits that the driver may choose from.
    fn features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("name", &self.name)
            .field("registers", &self.registers)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl QueueSlot {
    fn new(queue: usize, size: u16) -> Result<Self> {
        // Refuses sizes that are no power of two.
        let made = <Queue as QueueT>::new(size).map_err(|source| Error::Queue { queue, source })?;
        let kick = EventFd::new(EFD_NONBLOCK).map_err(Error::io("eventfd"))?;
        let state = QueueState {
            size: made.max_size(),
            ..QueueState::default()
        };
        Ok(Self {
            state,
            max_size: size,
            kick,
        })
    }

    /// Makes the queue that the registers describe, if its rings lie in memory where the driver uses it.
    fn active_queue(&self, queue: usize, memory: &GuestMemoryMmap) -> Result<ActiveQueue> {
        let failed = |source| Error::Queue { queue, source };
        let state = if self.state.ready {
            self.state
        } else {
            // Whatever addresses are in the registers, they are not in use.
            QueueState {
                size: self.max_size,
                event_idx: self.state.event_idx,
                ..QueueState::default()
            }
        };
        let made = state.to_queue(self.max_size).map_err(failed)?;
        if made.ready() && !made.is_valid(memory) {
            return Err(failed(virtio_queue::Error::FindMemoryRegion));
        }
        let kick = self.kick.try_clone().map_err(Error::io("eventfd"))?;
        Ok(ActiveQueue {
            queue: made,
            kick,
            index: queue,
        })
    }
}

#[cfg(test)]
mod tests;
