//! Counters on disks: written past the page cache, each tied to one in memory.
//!
//! Before each step the guest reads back what the step before must have left, and what an earlier one did to a slot.
//! So a restored guest finds out at once if its disk is older or newer than its memory.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use linux_guest::disk::{BLOCK_BYTES, Counter, Deed, RING, SLOT_BYTES, SLOTS, place_of, step_at};
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::health::Health;

/// Every so many steps the counter that is flushed at all is flushed.
const STEPS_PER_FLUSH: u64 = 4;

/// Steps after which it is looked at what a step did to a slot.
const STEPS_TO_LOOK: u64 = 3;

/// A pause between steps, so that a slow machine has time for the other loads.
const BREATH: Duration = Duration::from_millis(80);

/// A buffer as direct I/O wants it.
#[repr(C, align(4096))]
struct Aligned([u8; SLOT_BYTES]);

/// A counter on a disk that is open.
struct Open {
    counter: Counter,
    file: File,
    buffer: Box<Aligned>,
}

/// Finds the virtio disk that has `serial`.
pub fn find(serial: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir("/sys/block").context("the kernel's block devices")? {
        let entry = entry?;
        let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if found.trim() == serial {
            return Ok(Some(PathBuf::from("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

/// Counts without end, and flushes.
pub fn count_flushed(disk: &Path, counter: Counter, health: &Health) -> Result<()> {
    let mut disk = Open::new(disk, counter)?;
    for step in disk.adopt()? + 1.. {
        disk.take(step)?;
        health.disk_completed.store(step, Relaxed);
        if step.is_multiple_of(STEPS_PER_FLUSH) {
            disk.file
                .sync_data()
                .with_context(|| format!("flushing step {step}"))?;
            health.disk_flushed.store(step, Relaxed);
        }
        thread::sleep(BREATH);
    }
    Ok(())
}

/// Counts without end, and leaves it to others to flush.
pub fn count_unflushed(disk: &Path, counter: Counter, health: &Health) -> Result<()> {
    let mut disk = Open::new(disk, counter)?;
    for step in disk.adopt()? + 1.. {
        disk.take(step)?;
        health.tail_completed.store(step, Relaxed);
        thread::sleep(BREATH);
    }
    Ok(())
}

impl Open {
    fn new(disk: &Path, counter: Counter) -> Result<Self> {
        let direct = i32::try_from(OFlags::DIRECT.bits()).context("O_DIRECT")?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(direct)
            .open(disk)
            .with_context(|| format!("cannot open {}", disk.display()))?;
        Ok(Self {
            counter,
            file,
            buffer: Box::new(Aligned([0; SLOT_BYTES])),
        })
    }

    /// Returns the step that the disk has reached. A disk that was left by a machine that was killed is made whole
    /// first: it may lack anything that was not flushed.
    fn adopt(&mut self) -> Result<u64> {
        let block = &mut self.buffer.0[..BLOCK_BYTES];
        self.file.read_exact_at(block, self.counter.offset)?;
        let Some(reached) = self.counter.step_of(0, block)? else {
            return Ok(0);
        };
        for place in 1..=RING {
            let step = step_at(place, reached);
            if step > 0 {
                self.write_block(place, step)?;
            }
        }
        for slot in 0..SLOTS {
            self.write_slot(slot, reached)?;
        }
        self.file.sync_data().context("flushing a disk made whole")?;
        Ok(reached)
    }

    /// Takes one step.
    fn take(&mut self, step: u64) -> Result<()> {
        self.expect(0, step - 1)?;
        self.expect(place_of(step - 1), step - 1)?;
        if let Some(deed) = step.checked_sub(STEPS_TO_LOOK).and_then(Deed::of) {
            self.expect_slot(deed.slot(), step - 1)?;
        }
        self.write_block(place_of(step), step)?;
        match Deed::of(step) {
            Some(Deed::Fill { slot }) => self.write_slot(slot, step)?,
            Some(Deed::Wipe { slot }) => self.wipe_slot(slot)?,
            None => {}
        }
        self.write_block(0, step)
    }

    fn write_block(&mut self, place: u64, step: u64) -> Result<()> {
        let block = &mut self.buffer.0[..BLOCK_BYTES];
        self.counter.fill_block(place, step, block);
        self.file
            .write_all_at(block, self.counter.block_offset(place))
            .with_context(|| format!("writing step {step}"))
    }

    fn write_slot(&mut self, slot: u64, step: u64) -> Result<()> {
        self.counter.fill_slot(slot, step, &mut self.buffer.0);
        self.file
            .write_all_at(&self.buffer.0, self.counter.slot_offset(slot))
            .with_context(|| format!("writing slot {slot}"))
    }

    /// Has the device give a slot back: on a block device this is a request to write zeroes that may unmap.
    fn wipe_slot(&mut self, slot: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let offset = self.counter.slot_offset(slot);
        fallocate(&self.file, flags, offset, SLOT_BYTES as u64).with_context(|| format!("wiping slot {slot}"))
    }

    /// Insists that a block of the disk is of `step`.
    fn expect(&mut self, place: u64, step: u64) -> Result<()> {
        let block = &mut self.buffer.0[..BLOCK_BYTES];
        self.file
            .read_exact_at(block, self.counter.block_offset(place))
            .with_context(|| format!("reading step {step} back"))?;
        let found = self.counter.step_of(place, block)?.unwrap_or(0);
        ensure!(
            found == step,
            "memory is at step {step}, block {place} of the disk at {found}"
        );
        Ok(())
    }

    /// Insists that a slot is as `step` has left it.
    fn expect_slot(&mut self, slot: u64, step: u64) -> Result<()> {
        self.file
            .read_exact_at(&mut self.buffer.0, self.counter.slot_offset(slot))
            .with_context(|| format!("reading slot {slot} back"))?;
        let mut expected = vec![0; SLOT_BYTES];
        self.counter.fill_slot(slot, step, &mut expected);
        ensure!(
            self.buffer.0[..] == expected[..],
            "memory is at step {step}, slot {slot} of the disk is not"
        );
        Ok(())
    }
}
