//! An address space of device registers: port I/O or memory-mapped.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::Device;
use crate::run_state::StopReason;

/// A device that vCPU threads and the machine share.
pub(crate) type SharedDevice = Arc<Mutex<dyn Device>>;

/// Ranges of addresses, each leading to a device.
#[derive(Clone, Default)]
pub(crate) struct Bus {
    /// By first address: length and device. Ranges do not overlap.
    ranges: BTreeMap<u64, (u64, SharedDevice)>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.ranges.iter().map(|(base, (len, _))| (base, len)))
            .finish()
    }
}

impl Bus {
    /// Puts a device at `base`, for `len` addresses.
    ///
    /// # Panics
    /// The range overlaps another: the machine's own address map is wrong.
    pub(crate) fn insert(&mut self, base: u64, len: u64, device: SharedDevice) {
        let before = self.ranges.range(..base + len).next_back();
        let free = before.is_none_or(|(&start, &(len, _))| start + len <= base);
        assert!(free && len > 0, "device at {base:#x} overlaps another");
        self.ranges.insert(base, (len, device));
    }

    /// Reads all of `data` at `address`; where there is no device, the bits float to one.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((offset, device)) => {
                device
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// Writes `data` at `address`; tells if that ends the machine. Where there is no device, nothing happens.
    pub(crate) fn write(&self, address: u64, data: &[u8]) -> Option<StopReason> {
        let (offset, device) = self.find(address)?;
        device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, data)
    }

    fn find(&self, address: u64) -> Option<(u64, &SharedDevice)> {
        let (&base, (len, device)) = self.ranges.range(..=address).next_back()?;
        let offset = address - base;
        (offset < *len).then_some((offset, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DebugExit;

    fn bus() -> Bus {
        let mut bus = Bus::default();
        bus.insert(0x100, 4, Arc::new(Mutex::new(DebugExit::default())));
        bus.insert(0x104, 4, Arc::new(Mutex::new(DebugExit::default())));
        bus
    }

    #[test]
    fn accesses_reach_the_device_of_their_range_only() {
        let bus = bus();
        assert!(bus.write(0x103, &[1]).is_some());
        assert!(bus.write(0x107, &[1]).is_some());
        for address in [0, 0xff, 0x108, u64::MAX] {
            assert_eq!(bus.write(address, &[1]), None, "{address:#x}");
            let mut data = [0; 2];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 2]);
        }
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn overlapping_devices_are_our_own_mistake() {
        bus().insert(0xfe, 4, Arc::new(Mutex::new(DebugExit::default())));
    }
}
