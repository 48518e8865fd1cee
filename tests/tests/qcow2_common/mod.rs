//! What the tests of disk images share: QEMU's tools, other engines, patterns and random operations.
//!
//! The idea behind all of them: a raw file, the *shadow*, receives every operation that the image receives, and
//! QEMU's tools are asked whether the image holds the same bytes and is sound.
#![allow(dead_code, reason = "every test uses a part of it")]

pub mod ours;
pub mod pair;
pub mod peers;
pub mod qemu;
pub mod random;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use random::Shadow;
use tempfile::TempDir;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
/// A cluster as QEMU makes it unless told otherwise.
pub const CLUSTER: u64 = 64 * KIB;

/// A directory of a test, removed with everything in it.
pub struct Scratch(TempDir);

impl Scratch {
    pub fn new() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// The path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// The bytes that belong to a seed at an offset; `tests/peers` computes the same ones.
pub fn pattern(seed: u64, offset: u64, len: u64) -> Vec<u8> {
    let byte = |at: u64| {
        let word = (at / 8)
            .wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (word ^ (word >> 31)).to_le_bytes()[usize::try_from(at % 8).expect("less than 8")]
    };
    (offset..offset + len).map(byte).collect()
}

/// Reads big-endian numbers of an image, for tests that look at its bytes.
pub fn be64(bytes: &[u8], offset: u64) -> u64 {
    let at = usize::try_from(offset).expect("an offset of a small file");
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The same for 32 bits.
pub fn be32(bytes: &[u8], offset: u64) -> u32 {
    let at = usize::try_from(offset).expect("an offset of a small file");
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// An image of QEMU's with its shadow of zeros.
pub fn image_of(scratch: &Scratch, options: &str, len_bytes: u64) -> (PathBuf, Shadow) {
    let image = scratch.path("disk.qcow2");
    qemu::create(&image, options, len_bytes);
    (image, Shadow::create(&scratch.path("shadow.raw"), len_bytes))
}

/// Insists that QEMU and we find the image sound, and QEMU as its shadow.
#[track_caller]
pub fn judge(image: &Path, shadow: &Shadow) {
    qemu::assert_clean(image);
    qemu::assert_same(image, &shadow.path);
    ours::assert_clean(image);
}

/// Overwrites bytes of an image.
pub fn patch(image: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(image).expect("the image");
    file.write_all_at(bytes, offset).expect("a patch");
}

/// Offset in the file of the L2 entry that maps a guest offset.
pub fn l2_entry_offset(image: &Path, guest: u64) -> u64 {
    let bytes = fs::read(image).expect("the image");
    let per_table = CLUSTER / 8;
    let l1 = be64(&bytes, 40) + guest / CLUSTER / per_table * 8;
    (be64(&bytes, l1) & 0x00ff_ffff_ffff_fe00) + guest / CLUSTER % per_table * 8
}
