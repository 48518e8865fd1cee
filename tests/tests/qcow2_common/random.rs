//! Random operations of a guest, the same ones for the same seed, and the raw file that receives them too.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::pattern;

/// Numbers from a seed: xorshift, quick and good enough for choices.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below the bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// What a guest does to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Write { offset: u64, len: u64, seed: u64 },
    Zero { offset: u64, len: u64, may_unmap: bool },
    Discard { offset: u64, len: u64 },
    Read { offset: u64, len: u64 },
    Flush,
}

/// A stream of operations on a disk of some length.
#[derive(Debug)]
pub struct Operations {
    random: Random,
    len_bytes: u64,
    cluster_bytes: u64,
    count: u64,
}

impl Operations {
    pub fn new(seed: u64, len_bytes: u64, cluster_bytes: u64) -> Self {
        Self {
            random: Random::new(seed),
            len_bytes,
            cluster_bytes,
            count: seed << 20,
        }
    }

    /// A range: now small, now of several clusters, now aligned to clusters, near the end more often than by chance.
    fn range(&mut self) -> (u64, u64) {
        let random = &mut self.random;
        let most = match random.below(4) {
            0 => 512,
            1 => 4096,
            2 => self.cluster_bytes,
            _ => 3 * self.cluster_bytes.min(256 * 1024) + 7,
        };
        let mut offset = random.below(self.len_bytes);
        if random.below(8) == 0 {
            offset = self.len_bytes - 1 - random.below(self.cluster_bytes.min(self.len_bytes));
        }
        let mut len = 1 + random.below(most);
        if random.below(3) == 0 {
            offset -= offset % self.cluster_bytes;
            len = len.next_multiple_of(self.cluster_bytes);
        }
        (offset, len.min(self.len_bytes - offset))
    }
}

impl Iterator for Operations {
    type Item = Operation;

    fn next(&mut self) -> Option<Operation> {
        self.count += 1;
        let (offset, len) = self.range();
        Some(match self.random.below(16) {
            0..8 => Operation::Write {
                offset,
                len,
                seed: self.count,
            },
            8..11 => Operation::Zero {
                offset,
                len,
                may_unmap: self.random.below(2) == 0,
            },
            11 => Operation::Discard { offset, len },
            12..15 => Operation::Read { offset, len },
            _ => Operation::Flush,
        })
    }
}

/// The raw file that receives every operation that an image receives.
#[derive(Debug)]
pub struct Shadow {
    pub path: PathBuf,
    file: File,
}

impl Shadow {
    /// Begins a shadow of zeros.
    pub fn create(path: &Path, len_bytes: u64) -> Self {
        let file = File::create(path).expect("the shadow");
        file.set_len(len_bytes).expect("the shadow's length");
        Self::open(path)
    }

    /// Goes on with a raw file that exists.
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .expect("the shadow");
        Self {
            path: path.to_owned(),
            file,
        }
    }

    pub fn write(&self, bytes: &[u8], offset: u64) {
        self.file
            .write_all_at(bytes, offset)
            .expect("a write to the shadow");
    }

    pub fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).expect("a small range")];
        self.file
            .read_exact_at(&mut bytes, offset)
            .expect("a read of the shadow");
        bytes
    }

    pub fn zero(&self, offset: u64, len: u64) {
        self.write(&vec![0; usize::try_from(len).expect("a small range")], offset);
    }

    /// Writes the pattern of a seed.
    pub fn fill(&self, offset: u64, len: u64, seed: u64) {
        self.write(&pattern(seed, offset, len), offset);
    }
}
