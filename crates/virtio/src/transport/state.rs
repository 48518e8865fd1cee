//! The saved state of a transport and the device behind it.

use ciborium::Value;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::status::DRIVER_BITS;
use super::{MmioTransport, Registers};
use crate::error::{Error, Result};
use crate::queue::QueueState;

/// Everything that is saved, by the names of the registers.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    device_type: u32,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    interrupt_status: u32,
    config_generation: u32,
    queues: Vec<QueueState>,
    device_version: u32,
    device: Value,
}

impl MmioTransport {
    pub(super) fn state(&self) -> Result<State> {
        if self.active && !self.paused {
            return Err(Error::NotPaused);
        }
        let mut queues: Vec<QueueState> = self.queues.iter().map(|slot| slot.state).collect();
        if self.active {
            for (saved, current) in queues.iter_mut().zip(self.device.queue_states()?) {
                if saved.ready {
                    saved.next_avail = current.next_avail;
                    saved.next_used = current.next_used;
                }
            }
        }
        Ok(State {
            device_type: self.device.device_type(),
            status: self.status(),
            device_features_select: self.registers.device_features_select,
            driver_features_select: self.registers.driver_features_select,
            driver_features: self.registers.driver_features,
            queue_select: self.registers.queue_select,
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.generation(),
            queues,
            device_version: self.device.version(),
            device: self.device.save()?,
        })
    }

    pub(super) fn set_state(&mut self, state: &State) -> Result<()> {
        if self.active {
            return Err(Error::Active);
        }
        self.check(state)?;
        self.device.restore(state.device_version, &state.device)?;
        self.registers = Registers {
            status: state.status & !VIRTIO_CONFIG_S_NEEDS_RESET,
            device_features_select: state.device_features_select,
            driver_features_select: state.driver_features_select,
            driver_features: state.driver_features,
            queue_select: state.queue_select,
        };
        for (slot, saved) in self.queues.iter_mut().zip(&state.queues) {
            slot.state = *saved;
        }
        let needs_reset = state.status & VIRTIO_CONFIG_S_NEEDS_RESET != 0;
        self.interrupt
            .set(state.interrupt_status, state.config_generation, needs_reset);
        self.paused = true;
        self.restored = true;
        if self.driver_ok()
            && !needs_reset
            && let Err(error) = self.activate()
        {
            self.reset()?;
            return Err(error);
        }
        Ok(())
    }

    /// Checks a saved state against itself and against what this device is.
    fn check(&self, state: &State) -> Result<()> {
        let fail = |problem: &str| {
            Err(Error::State {
                problem: problem.to_owned(),
            })
        };
        if state.device_type != self.device.device_type() {
            return fail("of another type of device");
        }
        if state.queues.len() != self.queues.len() {
            return fail("of a device with another number of queues");
        }
        if state.status & !(DRIVER_BITS | VIRTIO_CONFIG_S_NEEDS_RESET) != 0 {
            return fail("unknown bits of the status");
        }
        if state.interrupt_status & !(VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG) != 0 {
            return fail("unknown bits of the interrupt status");
        }
        let features_ok = state.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        let driver_ok = state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        if driver_ok && !features_ok {
            return fail("driver ready before features were agreed on");
        }
        if features_ok && state.driver_features & !self.features() != 0 {
            return fail("features in use that this device does not have");
        }
        let event_idx = state.driver_features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
        for (slot, queue) in self.queues.iter().zip(&state.queues) {
            if !queue.size.is_power_of_two() || queue.size > slot.max_size {
                return fail("size of a queue");
            }
            if driver_ok && queue.ready && queue.event_idx != event_idx {
                return fail("a queue contradicts the features");
            }
        }
        Ok(())
    }
}
