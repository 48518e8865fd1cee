//! Random operations on an image and on an array of bytes that must stay the same.

use std::sync::Arc;

use qcow2::replay::Random;
use qcow2::{
    Access, Backing, CreateOptions, Image, ImageFormat, ImageOptions, Layer, MemoryStorage, Metadata,
    RawImage, Storage, check,
};

/// What lies below an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    Nothing,
    /// A raw disk, shorter than the image.
    Raw,
    /// A qcow2 image with smaller clusters than the default, shorter than the image.
    Qcow2,
}

/// What an image is made with.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub version: u32,
    pub cluster_bits: u32,
    pub refcount_bits: u32,
    pub below: Below,
    /// Whether snapshots are taken and deleted in between.
    pub snapshots: bool,
}

/// A layer below an image.
pub struct Lower {
    pub layer: Option<Arc<dyn Layer>>,
    pub storage: Option<Arc<MemoryStorage>>,
    /// What a new image over it reads as.
    pub shown: Vec<u8>,
}

/// Names of the files below an image, as the image states them.
pub const RAW_NAME: &str = "below.raw";
pub const QCOW2_NAME: &str = "below.qcow2";

impl Options {
    /// A disk of a few tables where clusters are small, of some clusters where they are large, with an odd end.
    pub fn disk_bytes(self) -> usize {
        let cluster = 1usize << self.cluster_bits;
        let clusters = if self.cluster_bits > 16 { 3 } else { 23 };
        (cluster * clusters + 512 * 3).max(150 * 1024 + 512)
    }

    /// The layer below.
    pub fn lower_layer(self) -> Lower {
        let len = self.disk_bytes() * 2 / 3 / 512 * 512;
        let mut bytes: Vec<u8> = (0..len).map(|at| (at / 512 % 251) as u8).collect();
        let hole = len / 4;
        bytes[hole..hole * 2].fill(0);
        let mut shown = bytes.clone();
        shown.resize(self.disk_bytes(), 0);
        match self.below {
            Below::Nothing => Lower {
                layer: None,
                storage: None,
                shown: vec![0; self.disk_bytes()],
            },
            Below::Raw => {
                let storage = Arc::new(MemoryStorage::from_bytes(bytes));
                let layer = RawImage::new(storage.clone(), Access::ReadOnly).unwrap();
                Lower {
                    layer: Some(Arc::new(layer)),
                    storage: Some(storage),
                    shown,
                }
            }
            Below::Qcow2 => {
                let storage = Arc::new(MemoryStorage::new());
                let options = CreateOptions {
                    cluster_bits: 12,
                    ..CreateOptions::new(len as u64)
                };
                qcow2::create(storage.as_ref(), &options).unwrap();
                let image = Image::open(storage.clone(), None, &ImageOptions::default()).unwrap();
                image.write_at(&bytes[..hole], 0).unwrap();
                image.write_at(&bytes[hole * 2..], hole as u64 * 2).unwrap();
                image.close().unwrap();
                let image = Image::open(storage.clone(), None, &ImageOptions::read_only()).unwrap();
                Lower {
                    layer: Some(Arc::new(image)),
                    storage: Some(storage),
                    shown,
                }
            }
        }
    }

    /// Makes an empty image in `storage`.
    pub fn create(self, storage: &dyn Storage) {
        let size = self.disk_bytes() as u64;
        let mut options = match self.below {
            Below::Nothing => CreateOptions::new(size),
            Below::Raw => CreateOptions::overlay(size, Backing::new(RAW_NAME, ImageFormat::Raw)),
            Below::Qcow2 => CreateOptions::overlay(size, Backing::new(QCOW2_NAME, ImageFormat::Qcow2)),
        };
        options.version = self.version;
        options.cluster_bits = self.cluster_bits;
        options.refcount_bits = self.refcount_bits;
        qcow2::create(storage, &options).unwrap();
    }
}

/// An image, what it must read as, and the numbers that choose what happens next.
pub struct Driver {
    pub options: Options,
    pub image: Image,
    pub shadow: Vec<u8>,
    pub below: Option<Arc<dyn Layer>>,
    /// Ids of the snapshots and what they must read as.
    pub snapshots: Vec<(String, Vec<u8>)>,
    pub storage: Arc<dyn Storage>,
    pub random: Random,
    next_name: u32,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Changed,
    Flushed,
    Nothing,
}

impl Driver {
    /// Takes over an image that reads as `shadow`.
    pub fn new(
        options: Options,
        storage: Arc<dyn Storage>,
        below: Option<Arc<dyn Layer>>,
        shadow: Vec<u8>,
        seed: u64,
    ) -> Self {
        let image = Image::open(storage.clone(), below.clone(), &ImageOptions::default()).unwrap();
        Self {
            options,
            image,
            shadow,
            below,
            snapshots: Vec::new(),
            storage,
            random: Random::new(seed),
            next_name: 0,
        }
    }

    /// A range of sectors, mostly small, sometimes of many clusters, sometimes up to the end of the disk.
    fn range(&mut self) -> (usize, usize) {
        let sectors = self.shadow.len() / 512;
        let start = self.random.index(sectors);
        let most = match self.random.below(8) {
            0 => sectors,
            1 | 2 => 2 << (self.options.cluster_bits.max(9) - 9),
            _ => 16,
        };
        let end = (start + 1 + self.random.index(most)).min(sectors);
        (start * 512, end * 512)
    }

    /// Does one random thing to both; the image must read as the array wherever it is looked at.
    pub fn step(&mut self) -> Step {
        let (start, end) = self.range();
        let (offset, len) = (start as u64, (end - start) as u64);
        match self.random.below(if self.options.snapshots { 23 } else { 20 }) {
            0..=8 => {
                let fill = (self.random.bits() as u8).max(1);
                self.shadow[start..end]
                    .iter_mut()
                    .zip(0usize..)
                    .for_each(|(byte, at)| {
                        *byte = fill.wrapping_add((at / 512) as u8).max(1);
                    });
                self.image.write_at(&self.shadow[start..end], offset).unwrap();
            }
            9 | 10 => {
                self.shadow[start..end].fill(0);
                let may_unmap = self.random.one_in(2);
                self.image.write_zeroes(offset, len, may_unmap).unwrap();
            }
            11 | 12 => {
                self.image.discard(offset, len).unwrap();
                self.discard_shadow(start, end);
            }
            13..=15 => {
                let mut read = vec![0xee; end - start];
                self.image.read_at(&mut read, offset).unwrap();
                assert!(
                    read == self.shadow[start..end],
                    "{:?}: reads at {start:#x}",
                    self.options
                );
                return Step::Nothing;
            }
            16 | 17 => {
                self.image.flush().unwrap();
                return Step::Flushed;
            }
            18 => {
                self.image.copy_up(offset, len).unwrap();
            }
            19 => self.reopen(),
            20 | 21 if self.snapshots.len() < 3 => {
                self.next_name += 1;
                let entry = self
                    .image
                    .create_snapshot(&format!("s{}", self.next_name))
                    .unwrap();
                self.snapshots
                    .push((entry.id().into_owned(), self.shadow.clone()));
                return Step::Flushed;
            }
            _ => {
                if !self.snapshots.is_empty() {
                    let (id, _) = self
                        .snapshots
                        .swap_remove(self.random.index(self.snapshots.len()));
                    self.image.delete_snapshot(&id).unwrap();
                    return Step::Flushed;
                }
            }
        }
        Step::Changed
    }

    fn discard_shadow(&mut self, start: usize, end: usize) {
        if self.options.version == 2 && self.below.is_some() {
            return;
        }
        let cluster = 1usize << self.options.cluster_bits;
        let whole_end = if end == self.shadow.len() {
            end
        } else {
            end / cluster * cluster
        };
        let whole_start = start.next_multiple_of(cluster);
        if whole_start < whole_end {
            self.shadow[whole_start..whole_end].fill(0);
        }
    }

    /// Closes the image and opens it again.
    pub fn reopen(&mut self) {
        self.image.settle().unwrap();
        self.image = Image::open(self.storage.clone(), self.below.clone(), &ImageOptions::default()).unwrap();
    }

    /// Compares everything, snapshots included, and lets the check find nothing at all.
    pub fn verify(&mut self) {
        self.image.settle().unwrap();
        assert_reads(&self.image, &self.shadow, &format!("{:?}", self.options));
        for (id, content) in &self.snapshots {
            let view = Image::open_snapshot(
                self.storage.clone(),
                self.below.clone(),
                id,
                &ImageOptions::read_only(),
            );
            assert_reads(
                &view.unwrap(),
                content,
                &format!("{:?}: snapshot {id}", self.options),
            );
        }
        let report = checked(self.storage.clone());
        assert!(report.is_clean(), "{:?}: {report:?}", self.options);
    }
}

/// What the check says of an image.
pub fn checked(storage: Arc<dyn Storage>) -> check::CheckReport {
    let metadata = Metadata::open(storage).unwrap();
    check::check(&metadata, &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap()
}

/// The image reads as `content`, byte for byte.
pub fn assert_reads(image: &Image, content: &[u8], what: &str) {
    let mut read = vec![0xee; content.len()];
    image.read_at(&mut read, 0).unwrap();
    if let Some(at) = read.iter().zip(content).position(|(one, other)| one != other) {
        panic!("{what}: byte {at:#x} is {:#x}, not {:#x}", read[at], content[at]);
    }
}

/// Every version, cluster size, refcount width and layer below, though not every combination of them.
pub fn matrix() -> Vec<Options> {
    let mut sets = Vec::new();
    for (cluster_bits, refcount_bits) in [
        (9, 16),
        (9, 1),
        (10, 64),
        (11, 8),
        (12, 16),
        (12, 2),
        (14, 4),
        (16, 16),
        (16, 32),
        (21, 16),
    ] {
        for below in [Below::Nothing, Below::Raw, Below::Qcow2] {
            let snapshots = refcount_bits > 2;
            sets.push(Options {
                version: 3,
                cluster_bits,
                refcount_bits,
                below,
                snapshots,
            });
            if refcount_bits == 16 {
                sets.push(Options {
                    version: 2,
                    cluster_bits,
                    refcount_bits,
                    below,
                    snapshots,
                });
            }
        }
    }
    sets
}
