use super::*;

const COUNTER: Counter = Counter { seed: 9, offset: 512 };

/// A disk after `steps` steps.
fn disk(steps: u64) -> Vec<u8> {
    let mut disk = vec![0; at(COUNTER.offset + COUNTER_BYTES)];
    for step in 1..=steps {
        write(&mut disk, place_of(step), step);
        if let Some(deed) = Deed::of(step) {
            write_slot(&mut disk, deed.slot(), step);
        }
        write(&mut disk, 0, step);
    }
    disk
}

fn write(disk: &mut [u8], place: u64, step: u64) {
    let at = at(COUNTER.block_offset(place));
    COUNTER.fill_block(place, step, &mut disk[at..at + BLOCK_BYTES]);
}

fn write_slot(disk: &mut [u8], slot: u64, step: u64) {
    let at = at(COUNTER.slot_offset(slot));
    COUNTER.fill_slot(slot, step, &mut disk[at..at + SLOT_BYTES]);
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("a small disk")
}

fn reader(disk: &[u8]) -> impl Fn(&mut [u8], u64) -> io::Result<()> {
    |bytes, offset| {
        let at = at(offset);
        bytes.copy_from_slice(&disk[at..at + bytes.len()]);
        Ok(())
    }
}

fn checked(disk: &[u8]) -> io::Result<u64> {
    COUNTER.check(reader(disk))
}

#[test]
fn accepts_a_disk_at_any_step() {
    for steps in [0, 1, 2, 4, 12, 20, 254, 255, 256, 511, 600] {
        assert_eq!(checked(&disk(steps)).expect("a disk of one instant"), steps);
    }
}

#[test]
fn accepts_a_disk_between_two_steps() {
    let mut disk = disk(299);
    write(&mut disk, place_of(300), 300);
    write_slot(&mut disk, Deed::of(300).expect("a step with a deed").slot(), 300);
    assert_eq!(checked(&disk).expect("a disk of one instant"), 299);
}

#[test]
fn refuses_a_block_from_the_past() {
    let mut disk = disk(600);
    write(&mut disk, place_of(500), 500 - RING);
    checked(&disk).expect_err("step 500 was lost");
}

#[test]
fn refuses_a_block_from_the_future() {
    let mut disk = disk(300);
    write(&mut disk, place_of(302), 302);
    checked(&disk).expect_err("step 302 came before 301");
}

#[test]
fn refuses_a_torn_block() {
    let mut disk = disk(300);
    disk[at(COUNTER.block_offset(1)) + 100] ^= 1;
    checked(&disk).expect_err("a byte is wrong");
}

#[test]
fn refuses_a_slot_that_came_back() {
    let mut disk = disk(301);
    assert_eq!(Deed::of(300), Some(Deed::Wipe { slot: 2 }));
    write_slot(&mut disk, 2, 292);
    checked(&disk).expect_err("slot 2 was wiped by step 300");
}

#[test]
fn a_killed_disk_may_lack_what_was_not_flushed() {
    let mut disk = disk(310);
    write(&mut disk, place_of(307), 307 - RING);
    let newest = COUNTER.check_after_kill(306, 311, reader(&disk));
    assert_eq!(newest.expect("307 was not flushed"), 310);
    COUNTER
        .check_after_kill(308, 311, reader(&disk))
        .expect_err("307 was flushed");
}

#[test]
fn a_killed_disk_cannot_be_ahead_of_its_machine() {
    COUNTER
        .check_after_kill(300, 309, reader(&disk(310)))
        .expect_err("310 was never begun");
}

#[test]
fn of_a_disk_long_after_its_last_flush_only_the_blocks_can_be_checked() {
    let checked = COUNTER.check_after_kill(300, u64::MAX - 1, reader(&disk(310)));
    assert_eq!(checked.expect("nothing that was flushed is gone"), 310);
}
