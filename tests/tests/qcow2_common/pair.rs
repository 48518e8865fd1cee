//! An image with its shadow, changed by QEMU and by our engine in turn, and judged by both.

use std::path::PathBuf;

use super::ours::{self, Disk};
use super::random::{Operations, Random, Shadow};
use super::{MIB, Scratch, qemu, text};

/// Length of every disk.
pub const SIZE: u64 = 16 * MIB;

/// Operations of our engine in each run.
fn operations() -> usize {
    let asked = std::env::var("VMSNAP_DISK_OPERATIONS").ok();
    asked.and_then(|count| count.parse().ok()).unwrap_or(80)
}

/// An image with its shadow, and the internal snapshots whose content must not change.
pub struct Pair {
    pub scratch: Scratch,
    pub image: PathBuf,
    pub shadow: Shadow,
    pub random: Random,
    pub cluster_bytes: u64,
    pub snapshots: Vec<(String, blake3::Hash)>,
}

impl Pair {
    pub fn new(options: &str, seed: u64) -> Self {
        let scratch = Scratch::new();
        let image = scratch.path("disk.qcow2");
        qemu::create(&image, options, SIZE);
        Self::of(scratch, image, seed)
    }

    /// Takes an image that reads as zeros.
    pub fn of(scratch: Scratch, image: PathBuf, seed: u64) -> Self {
        let shadow = Shadow::create(&scratch.path("shadow.raw"), SIZE);
        let cluster_bytes = Disk::cluster_bytes(&image);
        let random = Random::new(seed);
        Self {
            scratch,
            image,
            shadow,
            random,
            cluster_bytes,
            snapshots: Vec::new(),
        }
    }

    /// Lets QEMU write patterns and zeros in both, so that runs of clusters of every kind are there.
    pub fn fill_by_qemu(&mut self) {
        let version_2 = Disk::version(&self.image) == 2;
        let mut commands = Vec::new();
        for turn in 0..12 {
            let len = (1 + self.random.below(1024)) * 512;
            let offset = self.random.below((SIZE - len) / 512) * 512;
            let byte = u8::try_from(1 + self.random.below(255)).expect("a byte");
            let word = match turn % 4 {
                _ if version_2 => format!("write -P {byte}"),
                3 => "write -z".to_owned(),
                2 => "write -zu".to_owned(),
                _ => format!("write -P {byte}"),
            };
            let byte = if word.contains('z') { 0 } else { byte };
            self.shadow
                .write(&vec![byte; usize::try_from(len).expect("small")], offset);
            commands.push(format!("{word} {offset} {len}"));
        }
        qemu::io(&self.image, commands);
    }

    /// Lets QEMU take a snapshot and notes its content.
    pub fn snapshot_by_qemu(&mut self, name: &str) {
        qemu::img(["snapshot", "-c", name, text(&self.image)]).good();
        self.note(name);
    }

    pub fn note(&mut self, name: &str) {
        let digest = qemu::digest(&self.image, Some(name), &self.scratch.path("snapshot.raw"));
        self.snapshots.push((name.to_owned(), digest));
    }

    /// Lets our engine change both.
    pub fn change_by_us(&mut self) {
        let disk = Disk::open(&self.image);
        let seed = self.random.next() >> 40;
        for operation in Operations::new(seed, SIZE, self.cluster_bytes).take(operations()) {
            ours::apply(&disk, &self.shadow, self.cluster_bytes, operation);
        }
        disk.close();
    }

    /// Insists that QEMU and we find the image sound and as its shadow, and every snapshot as it was.
    #[track_caller]
    pub fn judge(&self, what: &str) {
        let answer = qemu::check(&self.image);
        assert_eq!(answer.code, 0, "{what}: {}{}", answer.stdout, answer.stderr);
        qemu::assert_same(&self.image, &self.shadow.path);
        ours::assert_clean(&self.image);
        assert!(
            Disk::open(&self.image).read(0, SIZE) == self.shadow.read(0, SIZE),
            "{what}: we read other bytes"
        );
        for (name, expected) in &self.snapshots {
            let found = qemu::digest(&self.image, Some(name), &self.scratch.path("snapshot.raw"));
            assert_eq!(found, *expected, "{what}: snapshot {name}");
        }
    }

    /// QEMU fills, we change, QEMU changes, we change: judged each time.
    pub fn run(mut self, what: &str) {
        for turn in ["first", "second"] {
            self.fill_by_qemu();
            self.judge(&format!("{what}: {turn} turn of QEMU"));
            self.change_by_us();
            self.judge(&format!("{what}: our {turn} turn"));
        }
    }
}
