//! The registers by offset (virtio 1.2, 4.2.2, table 4.1).

use virtio_bindings::virtio_mmio as mmio;

use super::{MmioTransport, QueueSlot};

/// Offset of QueueNotify.
pub const QUEUE_NOTIFY: u64 = mmio::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// MagicValue: "virt" (virtio 1.2, 4.2.2).
const MAGIC: u32 = 0x7472_6976;
/// Version of the register layout; 1 was the legacy one.
const LAYOUT_VERSION: u32 = 2;
/// VendorID: "VSNP", the subsystem vendor that drivers do not interpret.
const VENDOR: u32 = 0x504e_5356;
/// What the length and the address of a shared memory region read that is not there (virtio 1.2, 4.2.2).
const NO_REGION: u32 = u32::MAX;
/// Offset of the configuration space.
const CONFIG: u64 = mmio::VIRTIO_MMIO_CONFIG as u64;

/// The registers that belong to no queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registers {
    /// Status without the bit that the device itself sets.
    pub(super) status: u32,
    pub(super) device_features_select: u32,
    pub(super) driver_features_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u32,
}

impl Registers {
    pub(super) fn has_feature(&self, bit: u32) -> bool {
        self.driver_features >> bit & 1 == 1
    }
}

impl MmioTransport {
    /// Reads registers at `offset` into all of `data`.
    ///
    /// What is no register, or not read in the way that the register is to be read, reads as zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.device.read_config(offset, data);
        } else if let (Ok(data), Some(offset)) = (<&mut [u8; 4]>::try_from(data), register(offset)) {
            *data = self.read_register(offset).to_le_bytes();
        } else {
            tracing::debug!(device = self.name, offset, "misshapen register read");
        }
    }

    /// Writes registers at `offset`.
    ///
    /// What is no register, or not written in the way or at the time that the register is to be written, is
    /// ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.device.write_config(offset, data);
        } else if let (Ok(data), Some(offset)) = (<[u8; 4]>::try_from(data), register(offset)) {
            self.write_register(offset, u32::from_le_bytes(data));
        } else {
            tracing::debug!(device = self.name, offset, "misshapen register write");
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            mmio::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            mmio::VIRTIO_MMIO_VERSION => LAYOUT_VERSION,
            mmio::VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            mmio::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            mmio::VIRTIO_MMIO_DEVICE_FEATURES => half(self.features(), self.registers.device_features_select),
            mmio::VIRTIO_MMIO_QUEUE_NUM_MAX => self.selected().map_or(0, |slot| u32::from(slot.max_size)),
            mmio::VIRTIO_MMIO_QUEUE_READY => self.selected().map_or(0, |slot| u32::from(slot.state.ready)),
            mmio::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            mmio::VIRTIO_MMIO_STATUS => self.status(),
            mmio::VIRTIO_MMIO_SHM_LEN_LOW
            | mmio::VIRTIO_MMIO_SHM_LEN_HIGH
            | mmio::VIRTIO_MMIO_SHM_BASE_LOW
            | mmio::VIRTIO_MMIO_SHM_BASE_HIGH => NO_REGION,
            mmio::VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.registers.device_features_select = value,
            mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.registers.driver_features_select = value,
            mmio::VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            mmio::VIRTIO_MMIO_QUEUE_SEL => self.registers.queue_select = value,
            mmio::VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            mmio::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            mmio::VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    fn write_queue_register(&mut self, offset: u32, value: u32) {
        if self.driver_ok() {
            // Queues are set up before the driver is ready (virtio 1.2, 3.1.1).
            tracing::debug!(device = self.name, offset, "queue register written too late");
            return;
        }
        if offset == mmio::VIRTIO_MMIO_QUEUE_READY {
            self.write_queue_ready(value);
            return;
        }
        let Some(slot) = self.selected_mut().filter(|slot| !slot.state.ready) else {
            return;
        };
        let state = &mut slot.state;
        match offset {
            mmio::VIRTIO_MMIO_QUEUE_NUM => {
                if let Ok(size) = u16::try_from(value)
                    && size.is_power_of_two()
                    && size <= slot.max_size
                {
                    state.size = size;
                }
            }
            mmio::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut state.descriptor_table, value),
            mmio::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut state.descriptor_table, value),
            mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut state.available_ring, value),
            mmio::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut state.available_ring, value),
            mmio::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut state.used_ring, value),
            mmio::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut state.used_ring, value),
            _ => {}
        }
    }

    /// A queue that cannot be does not become ready, which the driver sees when it reads the register back.
    fn write_queue_ready(&mut self, value: u32) {
        let Ok(index) = usize::try_from(self.registers.queue_select) else {
            return;
        };
        let Some(slot) = self.queues.get_mut(index) else {
            return;
        };
        slot.state.ready = value & 1 == 1;
        if let Err(error) = slot.active_queue(index, &self.memory) {
            tracing::warn!(device = self.name, %error, "queue set up wrongly");
            slot.state.ready = false;
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.features_ok() {
            tracing::debug!(device = self.name, "features written too late");
            return;
        }
        let features = &mut self.registers.driver_features;
        match self.registers.driver_features_select {
            0 => set_low(features, value),
            1 => set_high(features, value),
            // There are no features beyond bit 63, so none is accepted.
            _ => {}
        }
    }

    fn notify(&self, queue: u32) {
        let Some(slot) = usize::try_from(queue)
            .ok()
            .and_then(|queue| self.queues.get(queue))
        else {
            tracing::debug!(device = self.name, queue, "notification of no queue");
            return;
        };
        if let Err(error) = slot.kick.write(1) {
            // The counter is full: a kick is pending anyway.
            tracing::debug!(device = self.name, %error, "kick event");
        }
    }

    fn selected(&self) -> Option<&QueueSlot> {
        self.queues
            .get(usize::try_from(self.registers.queue_select).ok()?)
    }

    fn selected_mut(&mut self) -> Option<&mut QueueSlot> {
        self.queues
            .get_mut(usize::try_from(self.registers.queue_select).ok()?)
    }
}

/// Returns the offset of an aligned register of 32 bits.
fn register(offset: u64) -> Option<u32> {
    u32::try_from(offset)
        .ok()
        .filter(|offset| offset.is_multiple_of(4))
}

/// Returns the half of a 64-bit value that a select register chooses.
fn half(value: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

fn set_low(value: &mut u64, low: u32) {
    *value = *value >> 32 << 32 | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = u64::from(high) << 32 | *value & u64::from(u32::MAX);
}
