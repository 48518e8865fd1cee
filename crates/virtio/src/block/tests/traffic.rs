//! Random requests that are always under way, and what the disk must hold by them.
//!
//! The disk is divided among the slots, whose boundaries are no cluster's: what two requests do at the same time may
//! meet in a cluster but never in a sector, so that the content is known when no request is under way.

use std::collections::BTreeMap;

use super::*;

/// Slots, each with a part of the disk.
const PARTS: u64 = 8;
/// A request that may unmap.
const UNMAP: u32 = 1;

/// Random numbers, the same for the same seed (xorshift64*).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns a number below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % end
    }
}

/// What a request under way does to the disk.
#[derive(Clone, Debug)]
enum Effect {
    Write { at: usize, data: Vec<u8> },
    Read { at: usize, len: usize },
    Zero { at: usize, len: usize },
    Discard { at: usize, len: usize },
    Flush,
}

/// What a disk must hold.
#[derive(Clone)]
pub(super) struct Shadow {
    content: Vec<u8>,
    /// Sectors that may hold zeros instead, until they are looked at.
    discarded: Vec<bool>,
}

impl Shadow {
    pub(super) fn new(content: Vec<u8>) -> Self {
        Self {
            discarded: vec![false; content.len() / 512],
            content,
        }
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        self.content[at..at + data.len()].copy_from_slice(data);
        self.discarded[at / 512..(at + data.len()) / 512].fill(false);
    }

    fn discard(&mut self, at: usize, len: usize) {
        self.discarded[at / 512..(at + len) / 512].fill(true);
    }

    /// Compares what was read at `at`, and learns what became of discarded sectors.
    pub(super) fn compare(&mut self, at: usize, data: &[u8]) {
        for (sector, found) in (at / 512..).zip(data.chunks(512)) {
            let expected = &mut self.content[sector * 512..(sector + 1) * 512];
            if std::mem::take(&mut self.discarded[sector]) && found == [0; 512] {
                expected.fill(0);
            }
            assert!(
                found == expected,
                "sector {sector}: {:x?} for {:x?}",
                &found[..4],
                &expected[..4]
            );
        }
    }

    /// Compares with all of a disk.
    pub(super) fn compare_disk(&mut self, disk: &Disk) {
        let mut driver = Driver::started(Block::new(disk.clone()), 0);
        let slot = Slot::new(&mut driver);
        for at in (0..self.content.len()).step_by(DATA_BYTES as usize) {
            let len = DATA_BYTES.min(u32::try_from(self.content.len() - at).unwrap());
            let read = request(&mut driver, &slot, VIRTIO_BLK_T_IN, at as u64 / SECTOR_BYTES, len);
            assert_eq!(read.0, VIRTIO_BLK_S_OK);
            self.compare(at, &driver.load(slot.data, len as usize));
        }
    }
}

/// Requests to one disk.
pub(super) struct Traffic {
    random: Random,
    slots: Vec<Slot>,
    /// Requests with the device: head to slot and effect.
    under_way: BTreeMap<u16, (usize, Effect)>,
    /// What the disk holds by the requests that were answered.
    pub(super) shadow: Shadow,
    pub(super) answered: u64,
}

impl Traffic {
    /// Begins on a disk that holds this, at rest.
    pub(super) fn new(driver: &mut Driver, seed: u64, shadow: Shadow) -> Self {
        Self {
            random: Random::new(seed),
            slots: (0..PARTS).map(|_| Slot::new(driver)).collect(),
            under_way: BTreeMap::new(),
            shadow,
            answered: 0,
        }
    }

    /// Makes a request of every slot that has none under way.
    pub(super) fn pour(&mut self, driver: &mut Driver) {
        for number in 0..self.slots.len() {
            if !self.under_way.values().any(|&(busy, _)| busy == number) {
                let effect = self.choose(number as u64);
                let head = self.submit(driver, number, &effect);
                self.under_way.insert(head, (number, effect));
                driver.kick(0);
            }
        }
    }

    fn choose(&mut self, part: u64) -> Effect {
        let sectors = self.shadow.content.len() as u64 / SECTOR_BYTES;
        // Boundaries three sectors off any cluster's.
        let bound = |part: u64| {
            if part == 0 {
                0
            } else {
                (sectors * part / PARTS + 3).min(sectors)
            }
        };
        let (first, end) = (
            bound(part),
            if part + 1 == PARTS {
                sectors
            } else {
                bound(part + 1)
            },
        );
        let long = self.random.below(4) == 0;
        let kind = self.random.below(10);
        // Ranges without data may be longer than a buffer.
        let most = if long && kind < 3 {
            300
        } else {
            u64::from(DATA_BYTES) / SECTOR_BYTES
        };
        let len = 1 + self.random.below(most.min(end - first));
        let sector = first + self.random.below(end - first - len + 1);
        let at = usize::try_from(sector * SECTOR_BYTES).unwrap();
        let len = usize::try_from(len * SECTOR_BYTES).unwrap();
        match kind {
            0 => Effect::Discard { at, len },
            1 | 2 => Effect::Zero { at, len },
            3 => Effect::Flush,
            4 | 5 => Effect::Read { at, len },
            _ => {
                let seed = self.random.below(1 << 32);
                let data = (0..len as u64).map(|i| (seed + i / 512 * 7 + i).to_le_bytes()[0] | 1);
                Effect::Write {
                    at,
                    data: data.collect(),
                }
            }
        }
    }

    fn submit(&mut self, driver: &mut Driver, number: usize, effect: &Effect) -> u16 {
        let slot = &self.slots[number];
        let sector = |at: &usize| *at as u64 / SECTOR_BYTES;
        let sectors = |len: &usize| u32::try_from(len / 512).unwrap();
        let status = (slot.status, 1);
        let header = (slot.header, 16);
        match effect {
            Effect::Write { at, data } => {
                driver.store(slot.data, data);
                slot.prepare(driver, VIRTIO_BLK_T_OUT, sector(at));
                let mut readable = vec![header];
                readable.extend(cut(slot.data, data.len(), &mut self.random));
                driver.add(0, &readable, &[status])
            }
            Effect::Read { at, len } => {
                slot.prepare(driver, VIRTIO_BLK_T_IN, sector(at));
                let mut writable = cut(slot.data, *len, &mut self.random);
                writable.push(status);
                driver.add(0, &[header], &writable)
            }
            Effect::Zero { at, len } => {
                let unmap = if self.random.below(2) == 0 { UNMAP } else { 0 };
                driver.store(slot.data, &range(sector(at), sectors(len), unmap));
                slot.submit(driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16)
            }
            Effect::Discard { at, len } => {
                driver.store(slot.data, &range(sector(at), sectors(len), 0));
                slot.submit(driver, VIRTIO_BLK_T_DISCARD, 0, 16)
            }
            Effect::Flush => slot.submit(driver, VIRTIO_BLK_T_FLUSH, 0, 0),
        }
    }

    /// Takes note of an answer.
    fn answered(&mut self, driver: &Driver, head: u16) {
        let (number, effect) = self
            .under_way
            .remove(&head)
            .expect("a request that was under way");
        let slot = &self.slots[number];
        assert_eq!(slot.status(driver), VIRTIO_BLK_S_OK, "{effect:?}");
        self.answered += 1;
        match effect {
            Effect::Write { at, data } => self.shadow.write(at, &data),
            Effect::Read { at, len } => self.shadow.compare(at, &driver.load(slot.data, len)),
            Effect::Zero { at, len } => self.shadow.write(at, &vec![0; len]),
            Effect::Discard { at, len } => self.shadow.discard(at, len),
            Effect::Flush => {}
        }
    }

    /// Waits for an answer.
    pub(super) fn wait(&mut self, driver: &mut Driver) {
        let (head, _) = driver.used(0);
        self.answered(driver, head);
    }

    /// Takes note of the answers that are there.
    pub(super) fn collect(&mut self, driver: &mut Driver) {
        while let Some((head, _)) = driver.try_used(0) {
            self.answered(driver, head);
        }
    }

    /// Goes on until so many more requests are answered.
    pub(super) fn run(&mut self, driver: &mut Driver, requests: u64) {
        let end = self.answered + requests;
        while self.answered < end {
            self.pour(driver);
            self.wait(driver);
        }
    }

    /// Waits until no request is under way.
    pub(super) fn finish(&mut self, driver: &mut Driver) {
        while !self.under_way.is_empty() {
            self.wait(driver);
        }
        assert_eq!(driver.try_used(0), None, "no request is done twice");
    }
}

/// Cuts a buffer into pieces at random.
fn cut(mut address: u64, len: usize, random: &mut Random) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = u32::try_from(len).unwrap();
    while rest > 0 {
        let here = match random.below(3) {
            0 => rest,
            _ => 1 + u32::try_from(random.below(rest.into())).unwrap(),
        };
        pieces.push((address, here));
        address += u64::from(here);
        rest -= here;
    }
    // A ring has room for the pieces of all slots.
    if pieces.len() > 16 {
        let start = pieces[0].0;
        return vec![(start, u32::try_from(len).unwrap())];
    }
    pieces
}
