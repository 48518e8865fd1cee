//! What requests do that break the rules.

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::*;
use crate::driver::Ring;

const IN: u32 = VIRTIO_BLK_T_IN;
const OUT: u32 = VIRTIO_BLK_T_OUT;
const DISCARD: u32 = VIRTIO_BLK_T_DISCARD;
const ZEROES: u32 = VIRTIO_BLK_T_WRITE_ZEROES;
const IOERR: u32 = VIRTIO_BLK_S_IOERR;
const UNSUPP: u32 = VIRTIO_BLK_S_UNSUPP;

#[test]
fn requests_that_can_be_answered_are_answered() {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    let slot = Slot::new(&mut driver);
    for (name, kind, sector, len, status) in [
        ("unknown", 99, 0, 0, UNSUPP),
        ("past the end", IN, SECTORS, 512, IOERR),
        ("across the end", OUT, SECTORS - 1, 1024, IOERR),
        ("sector overflows", IN, u64::MAX, 512, IOERR),
        ("bytes overflow", IN, 1 << 55, 512, IOERR),
        ("part of a sector", IN, 0, 511, IOERR),
        ("no range", DISCARD, 0, 0, IOERR),
        ("part of a range", DISCARD, 0, 15, IOERR),
        ("too many ranges", DISCARD, 0, 33 * 16, IOERR),
    ] {
        assert_eq!(request(&mut driver, &slot, kind, sector, len).0, status, "{name}");
    }
    assert_eq!(
        request(&mut driver, &slot, IN, 0, 512).0,
        VIRTIO_BLK_S_OK,
        "it works on"
    );
}

#[test]
fn ranges_that_cannot_be_are_refused_before_any_is_touched() {
    let image = Image::new();
    image.file.as_file().write_all_at(&[1; 512], 0).unwrap();
    let mut driver = Driver::started(image.device(), 0);
    let slot = Slot::new(&mut driver);
    for (name, kind, sector, sectors, flags, status) in [
        ("past the end", ZEROES, SECTORS, 1, 0, IOERR),
        ("across the end", ZEROES, SECTORS - 1, 2, 0, IOERR),
        ("overflow", ZEROES, u64::MAX, 1, 0, IOERR),
        ("empty", ZEROES, 0, 0, 0, IOERR),
        ("huge", ZEROES, 0, u32::MAX, 0, IOERR),
        ("unmap in discard", DISCARD, 0, 1, 1, UNSUPP),
        ("unknown flag", ZEROES, 0, 1, 2, UNSUPP),
    ] {
        driver.store(
            slot.data,
            &[range(0, 1, 0), range(sector, sectors, flags)].concat(),
        );
        assert_eq!(request(&mut driver, &slot, kind, 0, 32).0, status, "{name}");
    }
    assert_eq!(image.content(0, 512), [1; 512]);
}

#[test]
fn data_outside_memory_is_an_error_of_the_request() {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    let slot = Slot::new(&mut driver);
    // In the hole between the regions, across its edge, at the end of all addresses.
    for address in [12 << 20, (8 << 20) - 256, u64::MAX - 255, u64::MAX - 511] {
        slot.prepare(&driver, VIRTIO_BLK_T_IN, 0);
        driver.add(0, &[(slot.header, 16)], &[(address, 512), (slot.status, 1)]);
        driver.kick(0);
        assert_eq!(driver.used(0).1, 0);
        assert_eq!(slot.status(&driver), VIRTIO_BLK_S_IOERR, "{address:#x}");
    }
    assert_eq!(
        request(&mut driver, &slot, VIRTIO_BLK_T_IN, 0, 512).0,
        VIRTIO_BLK_S_OK,
        "it works on"
    );
}

#[test]
fn a_medium_that_fails_is_an_error_of_the_request_alone() {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    let slot = Slot::new(&mut driver);
    image.file.as_file().set_len(1024).unwrap();
    assert_eq!(
        request(&mut driver, &slot, VIRTIO_BLK_T_IN, 1, 1024),
        (VIRTIO_BLK_S_IOERR, 0)
    );
    assert_eq!(
        request(&mut driver, &slot, VIRTIO_BLK_T_IN, 0, 1024).0,
        VIRTIO_BLK_S_OK
    );
}

/// Lets `break_it` offer a malformed chain and checks that the device asks for a reset and works after one.
fn needs_reset(name: &str, break_it: impl FnOnce(&mut Driver, &Slot)) {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    let slot = Slot::new(&mut driver);
    slot.prepare(&driver, VIRTIO_BLK_T_IN, 0);
    break_it(&mut driver, &slot);
    driver.kick(0);
    driver.wait_needs_reset();
    // What is broken can be paused, saved and restored, and stays broken.
    driver.transport.pause().unwrap();
    let mut copy = driver.restored(image.device());
    copy.transport.resume();
    copy.wait_needs_reset();
    driver.transport.resume();
    driver.probe(0);
    assert_eq!(
        request(&mut driver, &slot, VIRTIO_BLK_T_IN, 0, 512).0,
        VIRTIO_BLK_S_OK,
        "{name}"
    );
}

const NEXT: u32 = VRING_DESC_F_NEXT;
const WRITE: u32 = VRING_DESC_F_WRITE;
const INDIRECT: u32 = VRING_DESC_F_INDIRECT;
/// An address in the hole between the regions of memory.
const HOLE: u64 = 12 << 20;

/// Address, length, flags, next.
type Descriptor = (u64, u32, u32, u16);

/// Writes the table from its start and makes the chain at its first descriptor available.
fn offer(driver: &mut Driver, descriptors: &[Descriptor]) {
    let table = driver.rings[0].descriptors;
    for (index, &(address, len, flags, next)) in (0..).zip(descriptors) {
        Ring::describe(table, index, (address, len), flags, next, &driver.memory);
    }
    driver.rings[0].offer(0, &driver.memory);
}

#[test]
fn a_request_without_header_or_status_makes_the_device_need_a_reset() {
    needs_reset("status only", |driver, slot| {
        offer(driver, &[(slot.status, 1, WRITE, 0)])
    });
    needs_reset("no status", |driver, slot| {
        offer(driver, &[(slot.header, 16, 0, 0)])
    });
    needs_reset("short header", |driver, slot| {
        offer(driver, &[(slot.header, 15, NEXT, 1), (slot.status, 1, WRITE, 0)]);
    });
    needs_reset("status outside memory", |driver, slot| {
        offer(driver, &[(slot.header, 16, NEXT, 1), (HOLE, 1, WRITE, 0)]);
    });
    needs_reset("header outside memory", |driver, slot| {
        offer(driver, &[(HOLE, 16, NEXT, 1), (slot.status, 1, WRITE, 0)]);
    });
    needs_reset("readable after writable", |driver, slot| {
        offer(
            driver,
            &[(slot.status, 1, WRITE | NEXT, 1), (slot.header, 16, 0, 0)],
        );
    });
}

#[test]
fn a_chain_without_an_end_makes_the_device_need_a_reset() {
    needs_reset("loop", |driver, slot| {
        offer(
            driver,
            &[(slot.header, 16, NEXT, 1), (slot.status, 1, WRITE | NEXT, 1)],
        );
    });
    needs_reset("next outside the table", |driver, slot| {
        offer(
            driver,
            &[(slot.header, 16, NEXT, 1), (slot.status, 1, WRITE | NEXT, 256)],
        );
    });
    needs_reset("longer than 4 GiB", |driver, slot| {
        let data = (0, u32::MAX, WRITE | NEXT, 2);
        offer(
            driver,
            &[(slot.header, 16, NEXT, 1), data, (slot.status, 1, WRITE, 0)],
        );
    });
    needs_reset("endless indirect table", |driver, slot| {
        for index in 0..4 {
            let after = (index + 1) % 4;
            Ring::describe(slot.data, index, (slot.header, 16), NEXT, after, &driver.memory);
        }
        offer(driver, &[(slot.data, 64, INDIRECT, 0)]);
    });
    needs_reset("long indirect table", |driver, slot| {
        let mut pieces = vec![(slot.header, 16)];
        pieces.extend([(slot.data, 1); 2000]);
        driver.add_indirect(0, &pieces, &[(slot.status, 1)]);
    });
}

#[test]
fn an_indirect_table_that_is_none_makes_the_device_need_a_reset() {
    needs_reset("empty", |driver, _| offer(driver, &[(0, 0, INDIRECT, 0)]));
    needs_reset("outside memory", |driver, _| {
        offer(driver, &[(HOLE, 64, INDIRECT, 0)])
    });
    needs_reset("misshapen", |driver, slot| {
        offer(driver, &[(slot.data, 40, INDIRECT, 0)])
    });
    needs_reset("within another", |driver, slot| {
        Ring::describe(slot.data, 0, (slot.data, 64), INDIRECT, 0, &driver.memory);
        offer(driver, &[(slot.data, 64, INDIRECT, 0)]);
    });
}

#[test]
fn an_available_ring_in_disorder_makes_the_device_need_a_reset() {
    needs_reset("head outside the table", |driver, _| {
        driver.rings[0].offer(256, &driver.memory)
    });
    needs_reset("index far ahead", |driver, _| {
        driver.rings[0].set_avail_index(257, &driver.memory);
        // The driver kicks by its own index, which has not moved.
        driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    });
}

/// A driver that offers chains again which it has not got back must not make the device hold ever more.
#[test]
fn requests_under_way_are_never_more_than_the_queue_has_entries() {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    let slot = Slot::new(&mut driver);
    let hold = image.disk.hold().unwrap();
    let head = slot.submit(&mut driver, VIRTIO_BLK_T_IN, 0, 512);
    let memory = driver.memory.clone();
    for _ in 1..256 {
        driver.rings[0].offer(head, &memory);
    }
    // The driver asks for an interrupt with the 256th.
    driver.store(driver.rings[0].available + 4 + 2 * 256, &255u16.to_le_bytes());
    driver.kick(0);
    drop(hold);
    // All 256 are done, though they are one chain: the ring's index tells.
    while driver.load(driver.rings[0].used + 2, 2) != [0, 1] {
        driver.interrupt();
    }
    driver.transport.pause().unwrap();
    let state = driver.transport.save().unwrap();
    let queues: Vec<QueueState> = field_of(&state, "queues").deserialized().unwrap();
    assert_eq!((queues[0].next_avail, queues[0].next_used), (256, 256));
}

fn field_of(state: &Value, name: &str) -> Value {
    crate::driver::field(&mut state.clone(), name).clone()
}
