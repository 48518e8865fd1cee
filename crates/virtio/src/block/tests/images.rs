//! Images in a directory of their own, and how an overlay is put on a disk under load.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use qcow2::{Access, Cache, CreateOptions, FileStorage};
use tempfile::TempDir;

use super::traffic::{Shadow, Traffic};
use super::*;
use crate::config::DiskFormat;

/// Size of a disk under test.
pub(super) const DISK_BYTES: u64 = 4 << 20;
/// Requests of each step of a test.
pub(super) const REQUESTS: u64 = 300;

/// A directory with the images of a disk.
pub(super) struct Images {
    pub(super) directory: TempDir,
}

impl Images {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    /// Makes a raw disk with some content.
    pub(super) fn raw(&self, name: &str) -> (DiskConfig, Shadow) {
        let content: Vec<u8> = (0..DISK_BYTES)
            .map(|i| (i / 512 * 3 + i).to_le_bytes()[0])
            .collect();
        std::fs::write(self.path(name), &content).unwrap();
        (DiskConfig::new("data", self.path(name)), Shadow::new(content))
    }

    /// Makes an empty qcow2 disk.
    pub(super) fn qcow2(&self, name: &str, change: impl FnOnce(&mut CreateOptions)) -> (DiskConfig, Shadow) {
        let mut options = CreateOptions::new(DISK_BYTES);
        change(&mut options);
        File::create(self.path(name)).unwrap();
        let storage = FileStorage::open(&self.path(name), Access::ReadWrite, Cache::Writeback).unwrap();
        qcow2::create(&storage, &options).unwrap();
        let config = DiskConfig {
            format: DiskFormat::Qcow2,
            ..DiskConfig::new("data", self.path(name))
        };
        (config, Shadow::new(vec![0; usize::try_from(DISK_BYTES).unwrap()]))
    }

    /// Opens an image read-only, whoever reads it as well.
    pub(super) fn reader(&self, path: &Path, format: DiskFormat) -> Disk {
        let config = DiskConfig {
            format,
            readonly: true,
            ..DiskConfig::new("reader", path)
        };
        Disk::open(&config).unwrap()
    }
}

/// The snapshot for which tests freeze images.
pub(super) fn owner() -> FrozenFor {
    FrozenFor {
        snapshot: "/tmp/out.vmsnap".into(),
        file_id: [7; 16],
    }
}

/// Has a second program check an image, if it is there.
pub(super) fn check_image(path: &Path) {
    let Ok(output) = Command::new("qemu-img")
        .args(["check", "-f", "qcow2"])
        .arg(path)
        .output()
    else {
        eprintln!("SKIPPED: {}: qemu-img is not installed", path.display());
        return;
    };
    assert!(output.status.success(), "{}: {output:?}", path.display());
}

/// Returns the names of the files that a disk consists of.
pub(super) fn names(disk: &Disk) -> Vec<String> {
    let name = |layer: &LayerInfo| layer.path.file_name().unwrap().to_string_lossy().into_owned();
    disk.layers().iter().map(name).collect()
}

/// Pauses, switches to an overlay, and lets the device work on; returns what is frozen and what it holds.
pub(super) fn switch(
    disk: &Disk,
    frozen: &Path,
    driver: &mut Driver,
    traffic: &mut Traffic,
) -> (FrozenDisk, Shadow) {
    traffic.pour(driver);
    let prepared = disk.prepare_overlay(frozen, &owner()).unwrap();
    driver.transport.pause().unwrap();
    traffic.collect(driver);
    let then = traffic.shadow.clone();
    traffic.pour(driver);
    let frozen = prepared.switch().unwrap();
    driver.transport.resume();
    (frozen, then)
}
