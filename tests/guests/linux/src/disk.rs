//! Layout of the counter disk: what must be on it, given what the guest's memory says.
//!
//! Step n writes block `1 + n % RING` with the content of n, waits for the device, writes n into block 0, waits, and
//! only then raises the counter in memory. A disk and a memory of one instant therefore differ by one step at most:
//! memory n, disk n or n + 1.

use std::io::{self, ErrorKind};

use crate::content::Content;

/// Size of every block that is written.
pub const BLOCK_BYTES: usize = 4096;

/// Number of blocks that the steps go round in.
pub const RING: u64 = 255;

/// Bytes that the disk must have.
pub const DISK_BYTES: u64 = (RING + 1) * BLOCK_BYTES as u64;

const MAGIC: u64 = u64::from_le_bytes(*b"vmsnapct");

/// Offset of the block that step `step` writes.
#[must_use]
pub const fn ring_offset(step: u64) -> u64 {
    (1 + step % RING) * BLOCK_BYTES as u64
}

/// Fills a block that stands for `step`: the ring block itself, or block 0 where `place` is 0.
pub fn fill_block(seed: u64, place: u64, step: u64, block: &mut [u8]) {
    Content::new(seed, place, step).fill(block);
    block[..8].copy_from_slice(&MAGIC.to_le_bytes());
    block[8..16].copy_from_slice(&step.to_le_bytes());
}

/// Returns the step of a block that is whole; `None` for one never written.
///
/// # Errors
/// When the block is neither empty nor the whole block of any step.
pub fn step_of(seed: u64, place: u64, block: &[u8]) -> io::Result<Option<u64>> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let word = |at: usize| {
        block
            .get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u64::from_le_bytes)
    };
    let step = word(8).filter(|_| word(0) == Some(MAGIC));
    let whole = step.filter(|step| {
        let mut expected = vec![0; block.len()];
        fill_block(seed, place, *step, &mut expected);
        expected == block
    });
    let torn = || {
        io::Error::new(
            ErrorKind::InvalidData,
            format!("the block of place {place} is torn"),
        )
    };
    whole.map(Some).ok_or_else(torn)
}

/// Checks a disk of one instant and returns the step that it has reached.
///
/// # Errors
/// When it cannot be read, or is of no instant at all: a block is torn, too old or too new.
pub fn check(seed: u64, read_at: impl Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<u64> {
    let mut block = vec![0; BLOCK_BYTES];
    read_at(&mut block, 0)?;
    let Some(reached) = step_of(seed, 0, &block)? else {
        return Ok(0);
    };
    for place in 1..=RING {
        read_at(&mut block, place * BLOCK_BYTES as u64)?;
        let found = step_of(seed, place, &block)?.unwrap_or(0);
        let behind = (reached + RING + 1 - place) % RING;
        let expected = reached.saturating_sub(behind);
        let next = ring_offset(reached + 1) == place * BLOCK_BYTES as u64 && found == reached + 1;
        if !next && found != expected {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("disk at step {reached}: block {place} has step {found}, not {expected}"),
            ));
        }
    }
    Ok(reached)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk after `steps` steps.
    fn disk(steps: u64) -> Vec<u8> {
        let mut disk = vec![0; usize::try_from(DISK_BYTES).expect("a small disk")];
        for step in 1..=steps {
            write(&mut disk, ring_offset(step), 1 + step % RING, step);
            write(&mut disk, 0, 0, step);
        }
        disk
    }

    fn write(disk: &mut [u8], offset: u64, place: u64, step: u64) {
        let at = usize::try_from(offset).expect("a small disk");
        fill_block(9, place, step, &mut disk[at..at + BLOCK_BYTES]);
    }

    fn checked(disk: &[u8]) -> io::Result<u64> {
        check(9, |block, offset| {
            let at = usize::try_from(offset).expect("a small disk");
            block.copy_from_slice(&disk[at..at + block.len()]);
            Ok(())
        })
    }

    #[test]
    fn accepts_a_disk_at_any_step() {
        for steps in [0, 1, 2, 254, 255, 256, 511, 600] {
            assert_eq!(checked(&disk(steps)).expect("a disk of one instant"), steps);
        }
    }

    #[test]
    fn accepts_a_disk_between_two_steps() {
        let mut disk = disk(300);
        write(&mut disk, ring_offset(301), 1 + 301 % RING, 301);
        assert_eq!(checked(&disk).expect("a disk of one instant"), 300);
    }

    #[test]
    fn refuses_a_block_from_the_past() {
        let mut disk = disk(600);
        write(&mut disk, ring_offset(500), 1 + 500 % RING, 500 - RING);
        checked(&disk).expect_err("step 500 was lost");
    }

    #[test]
    fn refuses_a_block_from_the_future() {
        let mut disk = disk(300);
        write(&mut disk, ring_offset(302), 1 + 302 % RING, 302);
        checked(&disk).expect_err("step 302 came before 301");
    }

    #[test]
    fn refuses_a_torn_block() {
        let mut disk = disk(300);
        disk[BLOCK_BYTES + 100] ^= 1;
        checked(&disk).expect_err("a byte is wrong");
    }
}
