//! Requests for which the medium has no room, and flushes that take their time.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;

use super::*;
use crate::config::OnFull;
use crate::driver::{PATIENCE, WORKING};

const OUT: u32 = VIRTIO_BLK_T_OUT;
const OK: u32 = VIRTIO_BLK_S_OK;

/// Bytes in memory, whose medium may be full and whose flushes may be held up.
#[derive(Default)]
struct Store {
    bytes: Mutex<Vec<u8>>,
    full: AtomicBool,
    flushes: AtomicUsize,
    /// Whether flushes wait.
    held: Mutex<bool>,
    let_go: Condvar,
}

impl Store {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![0; 1 << 20]),
            ..Self::default()
        })
    }

    fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    fn check_room(&self) -> io::Result<()> {
        match self.full.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }

    fn hold_flushes(&self, hold: bool) {
        *self.held.lock().unwrap() = hold;
        self.let_go.notify_all();
    }
}

impl BlockBackend for Store {
    fn len_bytes(&self) -> u64 {
        1 << 20
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&self, buffers: GuestBuffers<'_, '_>, offset: u64) -> io::Result<()> {
        bounce::read(buffers, offset, |piece, offset| {
            let offset = usize::try_from(offset).unwrap();
            piece.copy_from_slice(&self.bytes.lock().unwrap()[offset..offset + piece.len()]);
            Ok(())
        })
    }

    fn write_at(&self, buffers: GuestBuffers<'_, '_>, offset: u64) -> io::Result<()> {
        self.check_room()?;
        bounce::write(buffers, offset, |piece, offset| {
            let offset = usize::try_from(offset).unwrap();
            self.bytes.lock().unwrap()[offset..offset + piece.len()].copy_from_slice(piece);
            Ok(())
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        let held = self.held.lock().unwrap();
        drop(self.let_go.wait_while(held, |held| *held).unwrap());
        self.check_room()
    }

    fn discard(&self, _offset: u64, _len_bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _offset: u64, _len_bytes: u64, _may_unmap: bool) -> io::Result<()> {
        self.check_room()
    }
}

/// A disk on a store, and what it tells.
fn disk(store: &Arc<Store>, on_full: OnFull) -> (Disk, Receiver<DiskEvent>) {
    let config = DiskConfig {
        on_full,
        ..DiskConfig::new("data", "none")
    };
    let disk = Disk::new(&config, Arc::clone(store) as _).unwrap();
    let (sender, events) = channel();
    disk.on_event(move |event| sender.send(event).unwrap());
    (disk, events)
}

/// A device at work on a full medium, with one write that waits for room.
fn waiting(store: &Arc<Store>) -> (Disk, Receiver<DiskEvent>, Driver, Slot, u16) {
    let (disk, events) = disk(store, OnFull::Pause);
    let mut driver = Driver::started(Block::new(disk.clone()), 0);
    let slot = Slot::new(&mut driver);
    driver.store(slot.data, &[7; 512]);
    store.set_full(true);
    let head = slot.submit(&mut driver, OUT, 3, 512);
    driver.kick(0);
    expect_full(&events);
    (disk, events, driver, slot, head)
}

fn expect_full(events: &Receiver<DiskEvent>) {
    let disk = "data".to_owned();
    assert_eq!(events.recv_timeout(PATIENCE).unwrap(), DiskEvent::Full { disk });
}

#[test]
fn by_default_the_guest_hears_that_the_medium_is_full() {
    let store = Store::new();
    let (disk, events) = disk(&store, OnFull::Report);
    let mut driver = Driver::started(Block::new(disk.clone()), 0);
    let slot = Slot::new(&mut driver);
    store.set_full(true);
    assert_eq!(request(&mut driver, &slot, OUT, 0, 512).0, VIRTIO_BLK_S_IOERR);
    assert!(!disk.waits_for_room());
    assert!(events.try_recv().is_err());
}

#[test]
fn a_request_without_room_is_done_once_there_is_some() {
    let store = Store::new();
    let (disk, events, mut driver, slot, head) = waiting(&store);
    assert!(disk.waits_for_room());
    // As its machine does: pause, make room, resume.
    driver.transport.pause().unwrap();
    assert_eq!(slot.status(&driver), 0xee, "not answered");
    store.set_full(false);
    driver.transport.resume();
    disk.retry();
    assert_eq!(driver.used(0).0, head);
    assert_eq!(slot.status(&driver), OK);
    assert_eq!(store.bytes.lock().unwrap()[3 * 512..4 * 512], [7; 512]);
    assert!(!disk.waits_for_room());
    assert!(events.try_recv().is_err(), "told once");
}

#[test]
fn what_still_finds_no_room_is_told_again() {
    let store = Store::new();
    let (disk, events, mut driver, slot, _) = waiting(&store);
    for _ in 0..3 {
        driver.transport.pause().unwrap();
        disk.retry();
        driver.transport.resume();
        expect_full(&events);
    }
    store.set_full(false);
    disk.retry();
    driver.used(0);
    assert_eq!(slot.status(&driver), OK);
}

#[test]
fn requests_that_need_no_room_go_on_and_flushes_wait_like_writes() {
    let store = Store::new();
    let (disk, _events, mut driver, slot, head) = waiting(&store);
    let other = Slot::new(&mut driver);
    let read = other.submit(&mut driver, VIRTIO_BLK_T_IN, 0, 512);
    driver.kick(0);
    assert_eq!(driver.used(0).0, read);
    let flush = other.submit(&mut driver, VIRTIO_BLK_T_FLUSH, 0, 0);
    driver.kick(0);
    driver.transport.pause().unwrap();
    store.set_full(false);
    driver.transport.resume();
    disk.retry();
    let mut done = [driver.used(0).0, driver.used(0).0];
    done.sort_unstable();
    let mut expected = [head, flush];
    expected.sort_unstable();
    assert_eq!(done, expected);
    assert_eq!((slot.status(&driver), other.status(&driver)), (OK, OK));
}

#[test]
fn a_disk_with_a_request_that_waits_for_room_is_in_no_snapshot() {
    let store = Store::new();
    let (disk, _events, mut driver, _slot, _) = waiting(&store);
    driver.transport.pause().unwrap();
    let refused = |result: Result<(), Error>| {
        let error = result.unwrap_err().to_string();
        assert_eq!(
            error,
            "disk data: the medium is full and a request waits for room"
        );
    };
    refused(driver.transport.save().map(|_| ()));
    refused(disk.hold().map(|_| ()));
    store.set_full(false);
    driver.transport.resume();
    disk.retry();
    driver.used(0);
    driver.transport.pause().unwrap();
    driver.transport.save().unwrap();
}

#[test]
fn a_reset_forgets_what_waits_for_room() {
    let store = Store::new();
    let (disk, events, mut driver, _slot, _) = waiting(&store);
    driver.probe(0);
    assert_eq!(driver.status() & !VIRTIO_CONFIG_S_NEEDS_RESET, WORKING);
    assert!(!disk.waits_for_room());
    store.set_full(false);
    disk.retry();
    let slot = Slot::new(&mut driver);
    assert_eq!(request(&mut driver, &slot, OUT, 9, 512).0, OK);
    assert_eq!(store.bytes.lock().unwrap()[3 * 512], 0, "the forgotten write");
    assert!(events.try_recv().is_err());
    driver.transport.pause().unwrap();
    driver.transport.save().unwrap();
}

#[test]
fn a_device_is_dropped_while_a_request_waits_for_room() {
    for pause in [false, true] {
        let store = Store::new();
        let (disk, _events, mut driver, _slot, _) = waiting(&store);
        if pause {
            driver.transport.pause().unwrap();
        }
        drop(driver);
        assert!(!disk.waits_for_room());
        drop(disk);
        assert_eq!(Arc::strong_count(&store), 1, "its threads are gone");
    }
}

#[test]
fn flushes_stop_neither_reads_nor_writes_and_are_answered_together() {
    let store = Store::new();
    let (disk, _events) = disk(&store, OnFull::Report);
    let mut driver = Driver::started(Block::new(disk), 0);
    store.hold_flushes(true);
    let slots: Vec<_> = (0..16).map(|_| Slot::new(&mut driver)).collect();
    for slot in &slots {
        slot.submit(&mut driver, VIRTIO_BLK_T_FLUSH, 0, 0);
        driver.kick(0);
    }
    // More flushes than threads are under way, and still these are done.
    let slot = Slot::new(&mut driver);
    for sector in 0..64 {
        assert_eq!(request(&mut driver, &slot, OUT, sector, 512).0, OK);
    }
    store.hold_flushes(false);
    for _ in &slots {
        driver.used(0);
    }
    assert!(slots.iter().all(|slot| slot.status(&driver) == OK));
    let flushes = store.flushes.load(Ordering::SeqCst);
    assert!(flushes <= 3, "{flushes} flushes for 16 requests");
}
