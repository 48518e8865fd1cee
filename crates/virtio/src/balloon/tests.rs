use std::io;
use std::sync::Mutex;

use vm_memory::GuestMemoryMmap;

use super::*;
use crate::discard::{Discard, HostDiscard};
use crate::driver::{Driver, MEMORY, decode, encode, field, memory};

const MEMORY_BYTES: u64 = 16 << 20;
const CONFIG_INTERRUPT: u32 = 2;
const PAGE: usize = 4096;

/// A way that notes what is given back, and gives it back.
#[derive(Debug, Default)]
struct Notes(Mutex<Vec<(u64, u64)>>);

impl Discard for Arc<Notes> {
    fn discard(&self, memory: &GuestMemoryMmap, gpa: u64, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().push((gpa, len));
        HostDiscard.discard(memory, gpa, len)
    }
}

impl Notes {
    fn take(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn config(free_page_reporting: bool, target_bytes: u64) -> BalloonConfig {
    BalloonConfig {
        free_page_reporting,
        target_bytes,
    }
}

fn device(config: &BalloonConfig) -> (BalloonDevice, Balloon, Arc<Notes>) {
    let (route, notes) = (DiscardRoute::new(), Arc::new(Notes::default()));
    route.install(Arc::new(Arc::clone(&notes)));
    let device = BalloonDevice::new(config, MEMORY_BYTES, route).unwrap();
    let balloon = device.handle();
    (device, balloon, notes)
}

fn started(config: &BalloonConfig) -> (Driver, Balloon, Arc<Notes>) {
    let (device, balloon, notes) = device(config);
    (Driver::started(device, 0), balloon, notes)
}

/// Writes a list of page numbers to guest memory.
fn list(driver: &mut Driver, pages: &[u64]) -> (u64, u32) {
    let bytes: Vec<u8> = pages
        .iter()
        .flat_map(|page| u32::try_from(*page).unwrap().to_le_bytes())
        .collect();
    let address = driver.allocate(bytes.len() as u64);
    driver.store(address, &bytes);
    (address, u32::try_from(bytes.len()).unwrap())
}

/// Puts pages into the balloon and waits until the device has them.
fn inflate(driver: &mut Driver, pages: &[u64]) {
    let piece = list(driver, pages);
    let head = driver.add(0, &[piece], &[]);
    driver.kick(0);
    assert_eq!(driver.used(0), (head, 0));
}

#[test]
fn inflated_pages_are_given_back_in_few_calls_and_deflated_ones_are_usable() {
    let (mut driver, _, notes) = started(&config(false, 0));
    let start = driver.allocate(8 * PAGE as u64);
    driver.store(start, &[7; 8 * PAGE]);
    let first = start >> 12;
    // As Linux has them, from the top; and one twice.
    inflate(&mut driver, &[first + 5, first + 2, first + 1, first, first + 1]);
    assert_eq!(notes.take(), [(start, 3 * 4096), (start + 5 * 4096, 4096)]);
    for (page, expected) in [0, 0, 0, 7, 7, 0, 7, 7].into_iter().enumerate() {
        let content = driver.load(start + (page * PAGE) as u64, PAGE);
        assert_eq!(content, [expected; PAGE], "page {page}");
    }
    let piece = list(&mut driver, &[first, first + 1]);
    let head = driver.add(1, &[piece], &[]);
    driver.kick(1);
    assert_eq!(driver.used(1), (head, 0));
    driver.store(start, &[9; PAGE]);
    assert_eq!(driver.load(start, PAGE), [9; PAGE]);
    assert!(notes.take().is_empty());
}

#[test]
fn page_numbers_that_are_no_memory_are_passed_over() {
    let (mut driver, _, notes) = started(&config(false, 0));
    let page = driver.allocate(4096) >> 12;
    let hole = MEMORY[0].1 as u64 >> 12;
    let numbers = [hole, page, u64::from(u32::MAX), hole + 1, (24 << 20) >> 12];
    inflate(&mut driver, &numbers);
    assert_eq!(notes.take(), [(page << 12, 4096)]);
    // A list of one and a half pages' numbers, and an empty one.
    let (address, _) = list(&mut driver, &[page, page + 1]);
    for (len, expected) in [(6, vec![(page << 12, 4096)]), (3, Vec::new())] {
        driver.add(0, &[(address, len)], &[]);
        driver.kick(0);
        driver.used(0);
        assert_eq!(notes.take(), expected);
    }
}

#[test]
fn a_list_outside_memory_makes_the_device_need_a_reset() {
    let (mut driver, _, notes) = started(&config(false, 0));
    driver.add(0, &[(12 << 20, 1024)], &[]);
    driver.kick(0);
    driver.wait_needs_reset();
    driver.probe(0);
    let page = driver.allocate(4096) >> 12;
    inflate(&mut driver, &[page]);
    assert_eq!(notes.take(), [(page << 12, 4096)]);
}

#[test]
fn a_list_of_any_length_is_answered_but_only_its_begin_is_read() {
    let (mut driver, _, notes) = started(&config(false, 0));
    let victim = driver.allocate(4096) >> 12;
    let len = 1 << 20;
    let address = driver.allocate(len);
    let numbers = u32::try_from(victim).unwrap().to_le_bytes().repeat(1 << 18);
    driver.store(address, &numbers);
    let pieces = vec![(address, u32::try_from(len).unwrap()); 100];
    driver.add(0, &pieces, &[]);
    driver.kick(0);
    driver.used(0);
    assert_eq!(notes.take(), [(victim << 12, 4096)]);
}

#[test]
fn reported_pages_are_given_back_on_every_queue_that_drivers_take_for_the_reporting_queue() {
    for queue in [2, 4] {
        let (mut driver, _, notes) = started(&config(true, 0));
        let start = driver.allocate(1 << 20);
        driver.store(start, &[7; 1 << 20]);
        let reports = [(start, 64 << 10), (start + (128 << 10), 4096)];
        let head = driver.add(queue, &[], &reports);
        driver.kick(queue);
        assert_eq!(driver.used(queue), (head, 0));
        assert_eq!(notes.take(), reports.map(|(start, len)| (start, u64::from(len))));
        assert_eq!(driver.load(start, 1), [0]);
        assert_eq!(driver.load(start + (64 << 10), 1), [7]);
    }
}

#[test]
fn reports_of_what_is_no_memory_do_no_harm() {
    let (mut driver, _, _) = started(&config(true, 0));
    let start = driver.allocate(2 * PAGE as u64);
    driver.store(start, &[7; 2 * PAGE]);
    let low = MEMORY[0].1 as u64;
    for report in [
        (low, 4096),
        (low - 4096, 8192),
        (u64::MAX - 4095, u32::MAX),
        (start + 1, 4096),
        (start, 0),
    ] {
        let head = driver.add(2, &[], &[report]);
        driver.kick(2);
        assert_eq!(driver.used(2), (head, 0));
    }
    // Parts of pages were reported, but no page.
    assert_eq!(driver.load(start, 2 * PAGE), [7; 2 * PAGE]);
}

#[test]
fn a_driver_that_did_not_ask_for_reporting_loses_nothing_by_it() {
    let (device, _, notes) = device(&config(true, 0));
    let mut driver = Driver::started(device, 1 << F_PAGE_REPORTING);
    let start = driver.allocate(4096);
    driver.add(2, &[], &[(start, 4096)]);
    driver.kick(2);
    driver.used(2);
    assert!(notes.take().is_empty());
    let (device, ..) = self::device(&config(false, 0));
    let offered = Driver::new(device, &memory()).offered();
    assert_eq!(
        offered >> F_PAGE_REPORTING & 1,
        0,
        "reporting is not offered unasked"
    );
}

#[test]
fn a_new_target_interrupts_the_driver_and_what_it_answers_is_told() {
    let (mut driver, balloon, _) = started(&config(false, 1 << 20));
    assert_eq!(driver.config::<4>(0), 256_u32.to_le_bytes());
    balloon.set_target_bytes((4 << 20) + 4095).unwrap();
    while driver.interrupt() & CONFIG_INTERRUPT == 0 || driver.config::<4>(0) != 1024_u32.to_le_bytes() {}
    assert_eq!(balloon.target_bytes(), 4 << 20);
    driver.write(0x104, 1000);
    assert_eq!(balloon.actual_bytes(), 1000 << 12);
    // Neither can the target be written, nor what is not there.
    driver.write(0x100, 1);
    driver.write(0x108, 1);
    assert_eq!(driver.config::<8>(0), [0, 4, 0, 0, 0xE8, 3, 0, 0]);
    driver.transport.write(0x105, &[0xFF]);
    assert_eq!(balloon.actual_bytes(), 0xFFE8 << 12);
    assert_eq!(driver.config::<4>(8), [0; 4]);
}

#[test]
fn a_target_larger_than_memory_is_refused() {
    let (_, balloon, _) = device(&config(false, 0));
    balloon.set_target_bytes(MEMORY_BYTES).unwrap();
    for bytes in [MEMORY_BYTES + 4096, u64::MAX] {
        assert!(matches!(
            balloon.set_target_bytes(bytes),
            Err(Error::BalloonTarget { target_bytes, .. }) if target_bytes == bytes
        ));
    }
    assert_eq!(balloon.target_bytes(), MEMORY_BYTES);
    let too_large = config(false, MEMORY_BYTES + 4096);
    assert!(BalloonDevice::new(&too_large, MEMORY_BYTES, DiscardRoute::new()).is_err());
}

#[test]
fn a_paused_balloon_takes_no_page_and_goes_on_where_it_was() {
    let (mut driver, _, notes) = started(&config(false, 0));
    driver.transport.pause().unwrap();
    let start = driver.allocate(4096);
    let piece = list(&mut driver, &[start >> 12]);
    driver.add(0, &[piece], &[]);
    driver.kick(0);
    driver.transport.save().unwrap();
    assert!(notes.take().is_empty());
    driver.transport.resume();
    driver.used(0);
    assert_eq!(notes.take(), [(start, 4096)]);
}

#[test]
fn a_copy_keeps_target_and_size_and_learns_of_a_target_set_while_it_was_saved() {
    let (mut driver, balloon, _) = started(&config(true, 0));
    driver.write(0x104, 77);
    driver.transport.pause().unwrap();
    balloon.set_target_bytes(5 << 20).unwrap();
    let (device, copied, notes) = device(&config(true, 1 << 20));
    let mut copy = driver.restored(device);
    assert_eq!(
        (copied.target_bytes(), copied.actual_bytes()),
        (5 << 20, 77 << 12)
    );
    copy.transport.resume();
    while copy.interrupt() & CONFIG_INTERRUPT == 0 {}
    assert_eq!(copy.config::<4>(0), 1280_u32.to_le_bytes());
    let page = copy.allocate(4096) >> 12;
    inflate(&mut copy, &[page]);
    assert_eq!(notes.take(), [(page << 12, 4096)]);
}

#[test]
fn a_reset_empties_the_balloon_and_keeps_the_target() {
    let (mut driver, balloon, _) = started(&config(false, 1 << 20));
    driver.write(0x104, 77);
    driver.probe(0);
    assert_eq!((balloon.target_bytes(), balloon.actual_bytes()), (1 << 20, 0));
}

#[test]
fn states_that_cannot_be_are_refused() {
    let (device, ..) = device(&config(false, 4096));
    let saved = encode(&device.save().unwrap());
    for (name, value) in [
        ("target_bytes", MEMORY_BYTES + 4096),
        ("target_bytes", 100),
        ("actual_bytes", 1 << 44),
        ("actual_bytes", 4095),
    ] {
        let mut state = decode(&saved);
        *field(&mut state, name) = value.into();
        let (mut other, balloon, _) = self::device(&config(false, 0));
        assert!(other.restore(1, &state).is_err(), "{name} {value}");
        assert_eq!(balloon.target_bytes(), 0);
    }
    assert!(
        self::device(&config(false, 0))
            .0
            .restore(2, &decode(&saved))
            .is_err()
    );
}
