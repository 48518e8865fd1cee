//! A disk across pauses, saves and restores.

use super::*;
use crate::device::VirtioDevice;
use crate::driver::{decode, encode, field};

/// Requests that pour in, each to a sector of its own.
struct Load {
    slots: Vec<Slot>,
    /// Requests with the device: head to slot and sector.
    under_way: BTreeMap<u16, (usize, u64)>,
    next_sector: u64,
    completed: u64,
}

impl Load {
    fn new(driver: &mut Driver) -> Self {
        let slots = (0..32).map(|_| Slot::new(driver)).collect();
        Self {
            slots,
            under_way: BTreeMap::new(),
            next_sector: 0,
            completed: 0,
        }
    }

    /// Puts every slot to use that is not.
    fn pour(&mut self, driver: &mut Driver) {
        for (number, slot) in self.slots.iter().enumerate() {
            let busy = self.under_way.values().any(|&(busy, _)| busy == number);
            if !busy && self.next_sector < SECTORS {
                driver.store(slot.data, &content(self.next_sector));
                let head = slot.submit(driver, VIRTIO_BLK_T_OUT, self.next_sector, 512);
                self.under_way.insert(head, (number, self.next_sector));
                self.next_sector += 1;
                driver.kick(0);
            }
        }
    }

    fn took(&mut self, driver: &Driver, head: u16) {
        let (slot, _) = self
            .under_way
            .remove(&head)
            .expect("a request that was under way");
        assert_eq!(self.slots[slot].status(driver), VIRTIO_BLK_S_OK);
        self.completed += 1;
    }

    /// Waits for all requests.
    fn finish(&mut self, driver: &mut Driver) {
        while !self.under_way.is_empty() {
            let (head, _) = driver.used(0);
            self.took(driver, head);
        }
        assert_eq!(driver.try_used(0), None, "no request is done twice");
        assert_eq!(self.completed, self.next_sector);
    }
}

fn content(sector: u64) -> [u8; 512] {
    let mut data = [0xc3; 512];
    data[..8].copy_from_slice(&sector.to_le_bytes());
    data
}

fn check(image: &Image, sectors: u64) {
    for sector in 0..sectors {
        assert_eq!(image.content(sector, 512), content(sector), "sector {sector}");
    }
}

#[test]
fn nothing_is_under_way_after_a_pause_and_nothing_is_lost_by_it() {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    let mut load = Load::new(&mut driver);
    for round in 0..40 {
        load.pour(&mut driver);
        driver.transport.pause().unwrap();
        let before = encode(&driver.transport.save().unwrap());
        let used = driver.load(driver.rings[0].used, 4096);
        // Requests go on pouring in while the device is paused; it looks at none.
        while round % 2 == 0
            && let Some((head, _)) = driver.try_used(0)
        {
            load.took(&driver, head);
        }
        load.pour(&mut driver);
        assert_eq!(driver.load(driver.rings[0].used, 4096), used);
        assert_eq!(encode(&driver.transport.save().unwrap()), before);
        driver.transport.resume();
    }
    load.finish(&mut driver);
    check(&image, load.next_sector);
}

#[test]
fn a_restored_device_goes_on_where_the_saved_one_stopped() {
    for without in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
        let image = Image::new();
        let mut driver = Driver::started(image.device(), without);
        let mut load = Load::new(&mut driver);
        for _ in 0..20 {
            load.pour(&mut driver);
            driver.transport.pause().unwrap();
            load.pour(&mut driver);
            // The driver has kicked the saved device alone: the copy must look by itself. Nor has it seen an
            // interrupt of the copy: the copy must raise one for what the saved device completed.
            let mut copy = driver.restored(image.device());
            drop(driver);
            copy.transport.resume();
            driver = copy;
            let (head, _) = driver.used(0);
            load.took(&driver, head);
        }
        load.finish(&mut driver);
        check(&image, load.next_sector);
    }
}

/// The driver decides by the index that the device left in the ring whether to kick it. A saved device may
/// have left one that was passed since, and then no kick would ever come.
#[test]
fn a_restored_device_asks_to_be_kicked_again() {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    let slot = Slot::new(&mut driver);
    request(&mut driver, &slot, VIRTIO_BLK_T_IN, 0, 512);
    driver.transport.pause().unwrap();
    // As if saved between taking a request and asking for the next kick: the index stands where no kick is due.
    let event = driver.rings[0].used + 4 + 8 * 256;
    driver.store(event, &0x8000u16.to_le_bytes());
    let mut copy = driver.restored(image.device());
    copy.transport.resume();
    for _ in 0..3 {
        assert_eq!(
            request(&mut copy, &slot, VIRTIO_BLK_T_IN, 0, 512).0,
            VIRTIO_BLK_S_OK
        );
    }
}

#[test]
fn a_device_without_a_driver_is_restored_without_one() {
    let image = Image::new();
    let driver = Driver::new(image.device(), &crate::driver::memory());
    let mut copy = driver.restored(image.device());
    copy.transport.resume();
    copy.probe(0);
    let slot = Slot::new(&mut copy);
    assert_eq!(
        request(&mut copy, &slot, VIRTIO_BLK_T_IN, 0, 512).0,
        VIRTIO_BLK_S_OK
    );
}

#[test]
fn a_disk_of_another_size_or_access_is_refused() {
    let state = Image::new().device().save().unwrap();
    assert!(Image::new().device().restore(1, &state).is_ok());
    for other in [Image::of(1 << 20, false), Image::of(SECTORS * SECTOR_BYTES, true)] {
        let error = other.device().restore(1, &state).unwrap_err();
        assert!(matches!(error, Error::State { .. }), "{error}");
    }
    let mut unknown = decode(&encode(&state));
    *field(&mut unknown, "len_bytes") = Value::Text("much".to_owned());
    assert!(Image::new().device().restore(1, &unknown).is_err());
}

#[test]
fn the_disk_of_a_reset_device_is_used_again() {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    for paused in [false, true, false] {
        let slot = Slot::new(&mut driver);
        for _ in 0..8 {
            slot.submit(&mut driver, VIRTIO_BLK_T_IN, 0, 4096);
        }
        driver.kick(0);
        if paused {
            driver.transport.pause().unwrap();
        }
        driver.probe(0);
        driver.transport.resume();
        let slot = Slot::new(&mut driver);
        assert_eq!(
            request(&mut driver, &slot, VIRTIO_BLK_T_IN, 0, 512).0,
            VIRTIO_BLK_S_OK
        );
    }
}
