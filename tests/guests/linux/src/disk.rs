//! Layout of a counter on a disk: what must be there, given what the guest's memory says.
//!
//! Step n writes block `1 + n % RING` with the content of n, waits for the device, writes n into block 0, waits, and
//! only then raises the counter in memory. A disk and a memory of one instant therefore differ by one step at most:
//! memory n, disk n or n + 1. Some steps also fill or wipe one of a few larger slots behind the ring.

use std::io::{self, ErrorKind};

use crate::content::Content;

/// Size of every block that is written.
pub const BLOCK_BYTES: usize = 4096;

/// Number of blocks that the steps go round in.
pub const RING: u64 = 255;

/// Size of a slot that is filled and wiped as a whole; a cluster of most qcow2 images.
pub const SLOT_BYTES: usize = 64 << 10;

/// Number of slots.
pub const SLOTS: u64 = 4;

/// Bytes that a counter takes: its blocks and its slots.
pub const COUNTER_BYTES: u64 = SLOTS_OFFSET + SLOTS * SLOT_BYTES as u64;

/// Bytes at the beginning of the disk for files that belong to the file system; a counter stands behind it.
pub const FILE_SYSTEM_BYTES: u64 = 24 << 20;

const SLOTS_OFFSET: u64 = (RING + 1) * BLOCK_BYTES as u64;

/// Steps from one filled slot to the next; the slot is wiped halfway.
const STEPS_PER_SLOT: u64 = 16;

/// Steps that are about all slots.
const STEPS_PER_ROUND: u64 = STEPS_PER_SLOT * SLOTS;

/// Place of the slots in the rule of content, beyond that of all blocks.
const SLOT_PLACE: u64 = 1 << 32;

const MAGIC: u64 = u64::from_le_bytes(*b"vmsnapct");

/// A counter: what decides its content, and where on its disk it begins.
#[derive(Debug, Clone, Copy)]
pub struct Counter {
    /// Decides the content.
    pub seed: u64,
    /// First byte on the disk.
    pub offset: u64,
}

/// What a step does besides counting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Writes all of a slot.
    Fill {
        /// The slot.
        slot: u64,
    },
    /// Gives a slot back, which then reads as zeros.
    Wipe {
        /// The slot.
        slot: u64,
    },
}

impl Deed {
    /// Returns what a step does besides counting.
    #[must_use]
    pub const fn of(step: u64) -> Option<Self> {
        let slot = step / STEPS_PER_SLOT % SLOTS;
        match step % STEPS_PER_SLOT {
            4 => Some(Self::Fill { slot }),
            12 => Some(Self::Wipe { slot }),
            _ => None,
        }
    }

    /// Returns the slot that it is about.
    #[must_use]
    pub const fn slot(self) -> u64 {
        match self {
            Self::Fill { slot } | Self::Wipe { slot } => slot,
        }
    }
}

impl Counter {
    /// The counter that has a disk to itself.
    #[must_use]
    pub const fn alone(seed: u64) -> Self {
        Self { seed, offset: 0 }
    }

    /// The counter behind the file system.
    #[must_use]
    pub const fn behind_files(seed: u64) -> Self {
        Self {
            seed: crate::content::mix(seed),
            offset: FILE_SYSTEM_BYTES,
        }
    }

    /// Offset of a block: 0 for the one that counts, others for the ring.
    #[must_use]
    pub const fn block_offset(self, place: u64) -> u64 {
        self.offset + place * BLOCK_BYTES as u64
    }

    /// Offset of a slot.
    #[must_use]
    pub const fn slot_offset(self, slot: u64) -> u64 {
        self.offset + SLOTS_OFFSET + slot * SLOT_BYTES as u64
    }

    /// Fills a block that stands for `step`: the ring block itself, or block 0 where `place` is 0.
    pub fn fill_block(self, place: u64, step: u64, block: &mut [u8]) {
        Content::new(self.seed, place, step).fill(block);
        block[..8].copy_from_slice(&MAGIC.to_le_bytes());
        block[8..16].copy_from_slice(&step.to_le_bytes());
    }

    /// Fills `bytes` with what a slot holds after `step`: zeros before it is first filled, and when it was wiped.
    pub fn fill_slot(self, slot: u64, step: u64, bytes: &mut [u8]) {
        let recent = step.saturating_sub(STEPS_PER_ROUND)..=step;
        let last = recent
            .rev()
            .find_map(|step| Some((step, Deed::of(step).filter(|deed| deed.slot() == slot)?)));
        match last {
            Some((step, Deed::Fill { .. })) => Content::new(self.seed, SLOT_PLACE + slot, step).fill(bytes),
            Some((_, Deed::Wipe { .. })) | None => bytes.fill(0),
        }
    }

    /// Returns the step of a block that is whole; `None` for one never written.
    ///
    /// # Errors
    /// When the block is neither empty nor the whole block of any step.
    pub fn step_of(self, place: u64, block: &[u8]) -> io::Result<Option<u64>> {
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
            self.fill_block(place, *step, &mut expected);
            expected == block
        });
        whole
            .map(Some)
            .ok_or_else(|| wrong(format!("the block of place {place} is torn")))
    }

    /// Checks a disk of one instant and returns the step that it has reached.
    ///
    /// # Errors
    /// When it cannot be read, or is of no instant at all: a block or slot is torn, too old or too new.
    pub fn check(self, read_at: impl Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<u64> {
        let mut block = vec![0; BLOCK_BYTES];
        read_at(&mut block, self.offset)?;
        let reached = self.step_of(0, &block)?.unwrap_or(0);
        for place in 1..=RING {
            read_at(&mut block, self.block_offset(place))?;
            let found = self.step_of(place, &block)?.unwrap_or(0);
            let expected = step_at(place, reached);
            let next = place == place_of(reached + 1) && found == reached + 1;
            if !next && found != expected {
                return Err(wrong(format!(
                    "disk at step {reached}: block {place} has step {found}, not {expected}"
                )));
            }
        }
        self.check_slots(reached..=reached + 1, read_at)?;
        Ok(reached)
    }

    /// Checks a disk whose machine was killed, of which all that was flushed at step `flushed` must be there, and
    /// nothing can be of a step after `started`; of what lies between, anything may be. Returns the newest step seen.
    ///
    /// # Errors
    /// When it cannot be read, or something that was flushed is gone, or a block is torn or from the future.
    pub fn check_after_kill(
        self,
        flushed: u64,
        started: u64,
        read_at: impl Fn(&mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<u64> {
        let (mut block, mut newest) = (vec![0; BLOCK_BYTES], 0);
        for place in 0..=RING {
            read_at(&mut block, self.block_offset(place))?;
            let found = self.step_of(place, &block)?.unwrap_or(0);
            let least = if place == 0 {
                flushed
            } else {
                step_at(place, flushed)
            };
            if !(least..=started).contains(&found) {
                return Err(wrong(format!(
                    "step {flushed} was flushed and {started} the last: block {place} has step {found}"
                )));
            }
            newest = newest.max(found);
        }
        self.check_slots(flushed..=started, read_at)?;
        Ok(newest)
    }

    /// Checks every slot that no step after the first of `steps` is about.
    fn check_slots(
        self,
        steps: std::ops::RangeInclusive<u64>,
        read_at: impl Fn(&mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let (mut found, mut expected) = (vec![0; SLOT_BYTES], vec![0; SLOT_BYTES]);
        let first = *steps.start();
        let later = (first + 1..=*steps.end()).take_while(|step| step - first <= STEPS_PER_ROUND);
        let busy: Vec<u64> = later.filter_map(Deed::of).map(Deed::slot).collect();
        for slot in (0..SLOTS).filter(|slot| !busy.contains(slot)) {
            read_at(&mut found, self.slot_offset(slot))?;
            self.fill_slot(slot, first, &mut expected);
            if found != expected {
                return Err(wrong(format!("slot {slot} is not as step {first} left it")));
            }
        }
        Ok(())
    }
}

/// Place in the ring of the block that a step writes.
#[must_use]
pub const fn place_of(step: u64) -> u64 {
    1 + step % RING
}

/// The last step up to `reached` that has written the block at `place` of the ring; 0 if none has.
#[must_use]
pub const fn step_at(place: u64, reached: u64) -> u64 {
    reached.saturating_sub((reached + RING + 1 - place) % RING)
}

fn wrong(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
