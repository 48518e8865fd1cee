//! The counter disk: written past the page cache, its counter tied to the one in memory.
//!
//! Before each step the guest reads back what the step before must have left. So a restored guest finds out at once
//! if its disk is older or newer than its memory.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use linux_guest::disk::{BLOCK_BYTES, RING, fill_block, ring_offset, step_of};
use rustix::fs::OFlags;

use super::health::Health;

/// Every so many steps the disk is flushed.
const STEPS_PER_FLUSH: u64 = 4;

/// A pause between steps, so that a slow machine has time for the other loads.
const BREATH: Duration = Duration::from_millis(80);

/// A block as direct I/O wants it.
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

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

/// Counts on the disk without end.
pub fn count(disk: &PathBuf, seed: u64, health: &Health) -> Result<()> {
    let direct = i32::try_from(OFlags::DIRECT.bits()).context("O_DIRECT")?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(direct)
        .open(disk)
        .with_context(|| format!("cannot open {}", disk.display()))?;
    let mut block = Box::new(Block([0; BLOCK_BYTES]));
    for step in 1.. {
        expect(&file, &mut block, 0, 0, seed, step - 1)?;
        expect(
            &file,
            &mut block,
            ring_offset(step - 1),
            1 + (step - 1) % RING,
            seed,
            step - 1,
        )?;
        for (place, offset) in [(1 + step % RING, ring_offset(step)), (0, 0)] {
            fill_block(seed, place, step, &mut block.0);
            file.write_all_at(&block.0, offset)
                .with_context(|| format!("writing step {step}"))?;
        }
        health.disk_completed.store(step, Relaxed);
        if step.is_multiple_of(STEPS_PER_FLUSH) {
            file.sync_data()
                .with_context(|| format!("flushing step {step}"))?;
            health.disk_flushed.store(step, Relaxed);
        }
        thread::sleep(BREATH);
    }
    Ok(())
}

/// Insists that a block of the disk is of `step`.
fn expect(file: &File, block: &mut Block, offset: u64, place: u64, seed: u64, step: u64) -> Result<()> {
    file.read_exact_at(&mut block.0, offset)
        .with_context(|| format!("reading step {step} back"))?;
    let found = step_of(seed, place, &block.0)?.unwrap_or(0);
    ensure!(
        found == step,
        "memory is at step {step}, block {place} of the disk at {found}"
    );
    Ok(())
}
