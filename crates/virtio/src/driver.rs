//! A driver for tests: what Linux does with a virtio-mmio device, on the registers of a transport and on
//! rings in guest memory, without a guest.
//!
//! It waits for the device's interrupt and never looks at a ring without one, and it notifies the device only
//! when the ring says so. So a lost interrupt or a notification wrongly suppressed makes a test fail, after
//! [`PATIENCE`], rather than pass by luck.

mod ring;

use std::time::Duration;

use ciborium::Value;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as mmio;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::device::VirtioDevice;
use crate::event::{clear, descriptor};
use crate::transport::MmioTransport;

pub(crate) use ring::Ring;

/// How long to wait for what must happen; slow machines are slow, not wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Guest memory of a test: two regions with a hole between them.
pub(crate) const MEMORY: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), 8 << 20), (GuestAddress(16 << 20), 8 << 20)];
/// Features of the rings that Linux takes.
pub(crate) const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Status of a device that works.
pub(crate) const WORKING: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK;

/// A range of guest memory.
pub(crate) type Piece = (u64, u32);

/// A driver and the device that it drives.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) transport: MmioTransport,
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) rings: Vec<Ring>,
    pub(crate) features: u64,
    /// Guest memory below is in use.
    top: u64,
}

/// Makes guest memory.
pub(crate) fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&MEMORY).unwrap()
}

impl Driver {
    /// Puts a device behind a transport and does nothing with it yet.
    pub(crate) fn new(device: impl VirtioDevice + 'static, memory: &GuestMemoryMmap) -> Self {
        let transport = MmioTransport::new("test".to_owned(), Box::new(device), memory.clone()).unwrap();
        Self {
            transport,
            memory: memory.clone(),
            rings: Vec::new(),
            features: 0,
            top: 0x1_0000,
        }
    }

    /// Puts a device behind a transport and sets it to work with all the features that it offers but `without`.
    pub(crate) fn started(device: impl VirtioDevice + 'static, without: u64) -> Self {
        let mut driver = Self::new(device, &memory());
        driver.probe(without);
        driver
    }

    /// Sets the device to work as Linux's `virtio_mmio` does.
    pub(crate) fn probe(&mut self, without: u64) {
        assert_eq!(
            self.read(mmio::VIRTIO_MMIO_MAGIC_VALUE),
            u32::from_le_bytes(*b"virt")
        );
        assert_eq!(self.read(mmio::VIRTIO_MMIO_VERSION), 2);
        self.write(mmio::VIRTIO_MMIO_STATUS, 0);
        self.add_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.add_status(VIRTIO_CONFIG_S_DRIVER);
        self.features = self.offered() & !without;
        self.write_features(self.features);
        self.add_status(VIRTIO_CONFIG_S_FEATURES_OK);
        assert_ne!(
            self.read(mmio::VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK,
            0,
            "features"
        );
        self.rings.clear();
        for queue in 0..self.transport.queue_count() {
            self.set_up_queue(queue);
        }
        self.add_status(VIRTIO_CONFIG_S_DRIVER_OK);
    }

    /// Returns the feature bits that the device offers.
    pub(crate) fn offered(&mut self) -> u64 {
        let mut features = 0;
        for select in [1, 0] {
            self.write(mmio::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            features = features << 32 | u64::from(self.read(mmio::VIRTIO_MMIO_DEVICE_FEATURES));
        }
        features
    }

    pub(crate) fn write_features(&mut self, features: u64) {
        for select in [1, 0] {
            self.write(mmio::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            let half = features >> (32 * select) & u64::from(u32::MAX);
            self.write(mmio::VIRTIO_MMIO_DRIVER_FEATURES, u32::try_from(half).unwrap());
        }
    }

    /// Makes a ring of the largest size for the next queue and gives it to the device.
    pub(crate) fn set_up_queue(&mut self, queue: usize) {
        self.write(mmio::VIRTIO_MMIO_QUEUE_SEL, u32::try_from(queue).unwrap());
        assert_eq!(self.read(mmio::VIRTIO_MMIO_QUEUE_READY), 0);
        let size = u16::try_from(self.read(mmio::VIRTIO_MMIO_QUEUE_NUM_MAX)).unwrap();
        assert_ne!(size, 0, "no queue {queue}");
        let ring = self.place_ring(size);
        self.write_ring(&ring);
        self.write(mmio::VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(self.read(mmio::VIRTIO_MMIO_QUEUE_READY), 1, "queue {queue}");
        self.rings.push(ring);
    }

    /// Makes a ring in guest memory.
    pub(crate) fn place_ring(&mut self, size: u16) -> Ring {
        let table = self.allocate(Ring::len_bytes(size));
        let event_idx = self.features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
        Ring::new(size, table, event_idx, &self.memory)
    }

    /// Writes the selected queue's registers but the last.
    pub(crate) fn write_ring(&mut self, ring: &Ring) {
        self.write(mmio::VIRTIO_MMIO_QUEUE_NUM, u32::from(ring.size));
        for (low, address) in [
            (mmio::VIRTIO_MMIO_QUEUE_DESC_LOW, ring.descriptors),
            (mmio::VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring.available),
            (mmio::VIRTIO_MMIO_QUEUE_USED_LOW, ring.used),
        ] {
            self.write(low, u32::try_from(address & u64::from(u32::MAX)).unwrap());
            self.write(low + 4, u32::try_from(address >> 32).unwrap());
        }
    }

    /// Takes guest memory that nothing else uses, of the region with room.
    pub(crate) fn allocate(&mut self, len: u64) -> u64 {
        let mut address = self.top.next_multiple_of(4096);
        let [(_, low), (high, _)] = MEMORY;
        if address < high.0 && address + len > low as u64 {
            address = high.0;
        }
        self.top = address + len;
        address
    }

    pub(crate) fn read(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u32 {
        self.read(mmio::VIRTIO_MMIO_STATUS)
    }

    pub(crate) fn add_status(&mut self, bit: u32) {
        let status = self.status() | bit;
        self.write(mmio::VIRTIO_MMIO_STATUS, status);
    }

    /// Reads the configuration space.
    pub(crate) fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.transport
            .read(u64::from(mmio::VIRTIO_MMIO_CONFIG) + offset, &mut data);
        data
    }

    /// Makes a chain of the pieces available; returns its head. The device hears of it by [`Self::kick`].
    pub(crate) fn add(&mut self, queue: usize, readable: &[Piece], writable: &[Piece]) -> u16 {
        self.rings[queue].add(readable, writable, &self.memory)
    }

    /// As [`Self::add`], with the descriptors in a table of their own.
    pub(crate) fn add_indirect(&mut self, queue: usize, readable: &[Piece], writable: &[Piece]) -> u16 {
        let table = self.allocate(16 * (readable.len() + writable.len()) as u64);
        self.rings[queue].add_indirect(table, readable, writable, &self.memory)
    }

    /// Notifies the device of what was added, if it wants to know.
    pub(crate) fn kick(&mut self, queue: usize) {
        if self.rings[queue].device_wants_kick(&self.memory) {
            self.write(mmio::VIRTIO_MMIO_QUEUE_NOTIFY, u32::try_from(queue).unwrap());
        }
    }

    /// Takes the next used chain, waiting for the interrupt that announces it: head and bytes written.
    ///
    /// Panics if the interrupt does not come.
    pub(crate) fn used(&mut self, queue: usize) -> (u16, u32) {
        loop {
            if let Some(used) = self.rings[queue].take_used(&self.memory) {
                return used;
            }
            self.interrupt();
        }
    }

    /// Takes the next used chain if there is one, without waiting.
    pub(crate) fn try_used(&mut self, queue: usize) -> Option<(u16, u32)> {
        self.rings[queue].take_used(&self.memory)
    }

    /// Waits for the next interrupt, acknowledges it and returns its cause.
    pub(crate) fn interrupt(&mut self) -> u32 {
        assert!(
            self.interrupt_within(PATIENCE),
            "no interrupt; status {:#x}",
            self.status()
        );
        let cause = self.read(mmio::VIRTIO_MMIO_INTERRUPT_STATUS);
        self.write(mmio::VIRTIO_MMIO_INTERRUPT_ACK, cause);
        cause
    }

    /// Tells whether the interrupt comes within `patience`; it is then not pending any more.
    pub(crate) fn interrupt_within(&self, patience: Duration) -> bool {
        let event = self.transport.interrupt_event();
        let timeout = Timespec {
            tv_sec: patience.as_secs().try_into().unwrap(),
            tv_nsec: 0,
        };
        let mut descriptors = [PollFd::from_borrowed_fd(descriptor(event), PollFlags::IN)];
        let ready = poll(&mut descriptors, Some(&timeout)).unwrap() > 0;
        clear(event);
        ready
    }

    /// Waits until the device says that it needs a reset.
    pub(crate) fn wait_needs_reset(&mut self) {
        use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
        while self.status() & VIRTIO_CONFIG_S_NEEDS_RESET == 0 {
            self.interrupt();
        }
    }

    /// Saves the paused device and its memory and goes on with `device` in a copy of both; still paused.
    pub(crate) fn restored(&self, device: impl VirtioDevice + 'static) -> Self {
        let state = encode(&self.transport.save().unwrap());
        let memory = copy(&self.memory);
        let mut transport = MmioTransport::new("copy".to_owned(), Box::new(device), memory.clone()).unwrap();
        transport
            .restore(self.transport.version(), &decode(&state))
            .unwrap();
        assert_eq!(
            encode(&transport.save().unwrap()),
            state,
            "a restored device saves what it was given"
        );
        Self {
            transport,
            memory,
            rings: self.rings.clone(),
            features: self.features,
            top: self.top,
        }
    }

    pub(crate) fn store(&self, address: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(address)).unwrap();
    }

    pub(crate) fn load(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }
}

/// Copies guest memory.
pub(crate) fn copy(from: &GuestMemoryMmap) -> GuestMemoryMmap {
    let to = memory();
    let mut page = [0; 4096];
    for region in from.iter() {
        for offset in (0..region.len()).step_by(page.len()) {
            let address = GuestAddress(region.start_addr().0 + offset);
            from.read_slice(&mut page, address).unwrap();
            to.write_slice(&page, address).unwrap();
        }
    }
    to
}

/// Encodes a state as it stands in a file.
pub(crate) fn encode(state: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(state, &mut bytes).unwrap();
    bytes
}

/// Decodes a state.
pub(crate) fn decode(bytes: &[u8]) -> Value {
    ciborium::from_reader(bytes).unwrap()
}

/// Returns a map's field.
pub(crate) fn field<'a>(state: &'a mut Value, name: &str) -> &'a mut Value {
    let fields = state.as_map_mut().unwrap();
    &mut fields
        .iter_mut()
        .find(|(key, _)| key.as_text() == Some(name))
        .unwrap()
        .1
}
