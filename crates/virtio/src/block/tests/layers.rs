//! Disks of several files, and how these change while requests pour in.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use qcow2::limits::MAX_CHAIN_DEPTH;
use qcow2::{Access, Backing, Cache, ChainError, CreateOptions, FileStorage, ImageFormat};
use tempfile::TempDir;

use super::traffic::{Shadow, Traffic};
use super::*;
use crate::config::{DiskCache, DiskFormat};

/// Size of a disk under test.
const DISK_BYTES: u64 = 4 << 20;
/// Requests of each step of a test.
const REQUESTS: u64 = 300;

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
    fn reader(&self, path: &Path, format: DiskFormat) -> Disk {
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

fn names(disk: &Disk) -> Vec<String> {
    let name = |layer: &LayerInfo| layer.path.file_name().unwrap().to_string_lossy().into_owned();
    disk.layers().iter().map(name).collect()
}

/// Pauses, switches to an overlay, and lets the device work on; returns what is frozen and what it holds.
fn switch(disk: &Disk, frozen: &Path, driver: &mut Driver, traffic: &mut Traffic) -> (FrozenDisk, Shadow) {
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

#[test]
fn overlays_are_put_on_under_load_and_keep_what_was_below() {
    for (seed, cluster_bits) in [(1, None), (2, Some(16)), (3, Some(12)), (4, Some(9))] {
        let images = Images::new();
        let (config, shadow) = match cluster_bits {
            None => images.raw("d.raw"),
            Some(bits) => images.qcow2("d.qcow2", |options| options.cluster_bits = bits),
        };
        let disk = Disk::open(&config).unwrap();
        let mut driver = Driver::started(Block::new(disk.clone()), 0);
        let mut traffic = Traffic::new(&mut driver, seed, shadow);
        let mut kept = Vec::new();
        for number in 0..3 {
            traffic.run(&mut driver, REQUESTS);
            let frozen = images.path(&format!("s{number}.data.qcow2"));
            let (frozen, then) = switch(&disk, &frozen, &mut driver, &mut traffic);
            // The first flush of the guest settles as well; both ways must do.
            if number % 2 == 0 {
                frozen.settle().unwrap();
            }
            kept.push((frozen, then));
        }
        traffic.run(&mut driver, REQUESTS);
        traffic.finish(&mut driver);
        drop(driver);
        traffic.shadow.compare_disk(&disk);
        assert_eq!(disk.depth(), 4);
        let live = if cluster_bits.is_some() {
            "d.qcow2"
        } else {
            "d.raw.qcow2"
        };
        let oldest = if cluster_bits.is_some() {
            "s0.data.qcow2"
        } else {
            "d.raw"
        };
        assert_eq!(names(&disk), [live, "s2.data.qcow2", "s1.data.qcow2", oldest]);
        for (frozen, mut then) in kept {
            frozen.settle().unwrap();
            then.compare_disk(&images.reader(&frozen.path, frozen.format));
            if frozen.format == DiskFormat::Qcow2 {
                check_image(&frozen.path);
            }
        }
        drop(disk);
        check_image(&images.path(live));
        // The live name is the live disk.
        traffic
            .shadow
            .compare_disk(&images.reader(&images.path(live), DiskFormat::Qcow2));
    }
}

/// Nobody has to pause the device: requests are kept out for as long as it takes.
#[test]
fn an_overlay_is_put_on_while_the_device_works() {
    let images = Images::new();
    let (config, shadow) = images.qcow2("d.qcow2", |_| {});
    let disk = Disk::open(&config).unwrap();
    let mut driver = Driver::started(Block::new(disk.clone()), 0);
    let mut traffic = Traffic::new(&mut driver, 13, shadow);
    std::thread::scope(|scope| {
        let switching = scope.spawn(|| {
            for number in 0..10 {
                let frozen = images.path(&format!("s{number}"));
                let prepared = disk.prepare_overlay(&frozen, &owner()).unwrap();
                prepared.switch().unwrap().settle().unwrap();
            }
        });
        while !switching.is_finished() {
            traffic.run(&mut driver, 20);
        }
        switching.join().unwrap();
    });
    traffic.run(&mut driver, REQUESTS);
    traffic.finish(&mut driver);
    assert_eq!(disk.depth(), 11);
    traffic.shadow.compare_disk(&disk);
}

#[test]
fn a_chain_is_never_made_deeper_than_one_that_can_be_opened() {
    let images = Images::new();
    let (config, _) = images.qcow2("d.qcow2", |_| {});
    let disk = Disk::open(&config).unwrap();
    let add = |number: usize| {
        let prepared = disk.prepare_overlay(&images.path(&format!("s{number}")), &owner())?;
        prepared.switch()?.settle()
    };
    (1..MAX_CHAIN_DEPTH).for_each(|number| add(number).unwrap());
    let error = add(MAX_CHAIN_DEPTH).unwrap_err();
    let Error::Image {
        source: qcow2::Error::Chain(ChainError::TooDeep),
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    drop(disk);
    let mut disk = Disk::open(&config).unwrap();
    assert_eq!(disk.depth(), MAX_CHAIN_DEPTH);
    disk.flatten(&FlattenOptions::default(), &mut |_| {}).unwrap();
    drop(disk);
    disk = Disk::open(&config).unwrap();
    assert_eq!(disk.depth(), 1);
}

#[test]
fn a_disk_is_flattened_while_requests_pour_in() {
    let images = Images::new();
    let (config, shadow) = images.raw("d.raw");
    let disk = Disk::open(&config).unwrap();
    let mut driver = Driver::started(Block::new(disk.clone()), 0);
    let mut traffic = Traffic::new(&mut driver, 5, shadow);
    let (first, mut then) = switch(&disk, &images.path("s0"), &mut driver, &mut traffic);
    first.settle().unwrap();
    traffic.run(&mut driver, REQUESTS);
    switch(&disk, &images.path("s1"), &mut driver, &mut traffic)
        .0
        .settle()
        .unwrap();
    assert_eq!(disk.depth(), 3);
    let flattened = std::thread::scope(|scope| {
        let mut last = FlattenProgress::default();
        let disk = &disk;
        let flattening = scope.spawn(move || {
            let result = disk.flatten(&FlattenOptions::default(), &mut |progress| last = progress);
            result.map(|()| last)
        });
        while !flattening.is_finished() {
            traffic.run(&mut driver, 20);
        }
        flattening.join().unwrap()
    });
    assert_eq!(flattened.unwrap().done_bytes, DISK_BYTES);
    traffic.run(&mut driver, REQUESTS);
    traffic.finish(&mut driver);
    assert_eq!(names(&disk), ["d.raw.qcow2"]);
    traffic.shadow.compare_disk(&disk);
    then.compare_disk(&images.reader(&first.path, first.format));
    drop(driver);
    drop(disk);
    check_image(&images.path("d.raw.qcow2"));
}

#[test]
fn an_overlay_ends_a_flattening_and_cancelling_does() {
    let images = Images::new();
    let (config, mut shadow) = images.raw("d.raw");
    let disk = Disk::open(&config).unwrap();
    disk.prepare_overlay(&images.path("s0"), &owner())
        .unwrap()
        .switch()
        .unwrap();
    let slow = FlattenOptions {
        bytes_per_second: std::num::NonZeroU64::new(1),
        ..FlattenOptions::default()
    };
    let error = disk
        .flatten(&slow, &mut |_| slow.cancel.store(true, Ordering::Relaxed))
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Image {
                source: qcow2::Error::Cancelled,
                ..
            }
        ),
        "{error:?}"
    );
    let mut prepared = Some(disk.prepare_overlay(&images.path("s1"), &owner()).unwrap());
    let error = disk.flatten(&FlattenOptions::default(), &mut |_| {
        if let Some(prepared) = prepared.take() {
            prepared.switch().unwrap();
            let busy = disk.flatten(&FlattenOptions::default(), &mut |_| {}).unwrap_err();
            assert_eq!(busy.to_string(), "disk data: it is being flattened already");
        }
    });
    let error = error.unwrap_err().to_string();
    assert_eq!(
        error,
        "disk data: an overlay was put on it while it was flattened"
    );
    assert_eq!(disk.depth(), 3);
    shadow.compare_disk(&disk);
}

#[test]
fn internal_snapshots_keep_what_was_there_and_the_guest_writes_on() {
    for (seed, bits) in [(6, 16), (7, 9)] {
        let images = Images::new();
        let (config, shadow) = images.qcow2("d.qcow2", |options| options.cluster_bits = bits);
        let disk = Disk::open(&config).unwrap();
        let mut driver = Driver::started(Block::new(disk.clone()), 0);
        let mut traffic = Traffic::new(&mut driver, seed, shadow);
        let mut kept = Vec::new();
        for number in 0..3 {
            traffic.run(&mut driver, REQUESTS);
            driver.transport.pause().unwrap();
            traffic.collect(&mut driver);
            let made = disk.create_internal_snapshot(&format!("s{number}")).unwrap();
            assert_eq!(made.virtual_size_bytes, DISK_BYTES);
            kept.push((made, traffic.shadow.clone()));
            driver.transport.resume();
            // While requests pour in, too: they wait.
            traffic.pour(&mut driver);
            let passing = disk.create_internal_snapshot("passing").unwrap();
            disk.delete_internal_snapshot(&passing.id).unwrap();
        }
        traffic.run(&mut driver, REQUESTS);
        traffic.finish(&mut driver);
        traffic.shadow.compare_disk(&disk);
        for (made, then) in &mut kept {
            // Beside the machine that writes to the image.
            let (overlay, _) = images.qcow2(&format!("on-{}.qcow2", made.name), |_| {});
            let view = Disk::on_snapshot(&overlay, &config.file, &made.id).unwrap();
            then.compare_disk(&view);
            let mut driver = Driver::started(Block::new(view.clone()), 0);
            let mut fork = Traffic::new(&mut driver, seed, then.clone());
            fork.run(&mut driver, REQUESTS);
            fork.finish(&mut driver);
            fork.shadow.compare_disk(&view);
            let error = view
                .prepare_overlay(&images.path("x"), &owner())
                .unwrap_err()
                .to_string();
            assert!(error.contains("flattened first"), "{error}");
        }
        traffic.shadow.compare_disk(&disk);
        drop((driver, disk));
        check_image(&config.file);
    }
}

#[test]
fn a_saved_device_goes_on_over_an_overlay_of_its_disk() {
    let images = Images::new();
    let (config, shadow) = images.raw("d.raw");
    let disk = Disk::open(&config).unwrap();
    let mut driver = Driver::started(Block::new(disk.clone()), 0);
    let mut traffic = Traffic::new(&mut driver, 8, shadow);
    traffic.run(&mut driver, REQUESTS);
    let prepared = disk.prepare_overlay(&images.path("s0"), &owner()).unwrap();
    traffic.finish(&mut driver);
    driver.transport.pause().unwrap();
    let frozen = prepared.switch().unwrap();
    frozen.settle().unwrap();
    let (fork, _) = images.qcow2("fork.qcow2", |options| {
        options.backing = Some(Backing::new(&frozen.path, ImageFormat::Raw));
    });
    let fork = Disk::open(&fork).unwrap();
    let mut copy = driver.restored(Block::new(fork.clone()));
    let mut copied = Traffic::new(&mut copy, 9, traffic.shadow.clone());
    driver.transport.resume();
    copy.transport.resume();
    traffic.run(&mut driver, REQUESTS);
    copied.run(&mut copy, REQUESTS);
    traffic.finish(&mut driver);
    copied.finish(&mut copy);
    traffic.shadow.compare_disk(&disk);
    copied.shadow.compare_disk(&fork);
}

#[test]
fn a_disk_without_a_name_stays_without_one_and_what_is_frozen_gets_one() {
    let images = Images::new();
    let (config, shadow) = images.qcow2("base.qcow2", |_| {});
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
    let file = match rustix::fs::open(
        images.directory.path(),
        flags,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    ) {
        Ok(file) => File::from(file),
        Err(error) => {
            eprintln!("SKIPPED: a_disk_without_a_name: O_TMPFILE: {error}");
            return;
        }
    };
    let path = PathBuf::from(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&file)
    ));
    let storage = FileStorage::from_file(file.try_clone().unwrap(), Access::ReadWrite);
    let options = CreateOptions::overlay(DISK_BYTES, Backing::new(&config.file, ImageFormat::Qcow2));
    qcow2::create(&storage, &options).unwrap();
    let nameless = DiskConfig {
        file: path,
        ..config.clone()
    };
    let disk = Disk::open(&nameless).unwrap();
    drop(file);
    assert_eq!(disk.path(), None);
    let mut driver = Driver::started(Block::new(disk.clone()), 0);
    let mut traffic = Traffic::new(&mut driver, 10, shadow);
    traffic.run(&mut driver, REQUESTS);
    let (frozen, mut then) = switch(&disk, &images.path("s0.data.qcow2"), &mut driver, &mut traffic);
    traffic.run(&mut driver, REQUESTS);
    traffic.finish(&mut driver);
    frozen.settle().unwrap();
    assert_eq!(disk.path(), None);
    assert_eq!(names(&disk)[1..], ["s0.data.qcow2", "base.qcow2"]);
    traffic.shadow.compare_disk(&disk);
    then.compare_disk(&images.reader(&frozen.path, frozen.format));
}

#[test]
fn disks_past_the_page_cache_hold_the_same() {
    let images = Images::new();
    let (raw, raw_shadow) = images.raw("d.raw");
    let (image, image_shadow) = images.qcow2("d.qcow2", |_| {});
    for (seed, config, shadow) in [(11, raw, raw_shadow), (12, image, image_shadow)] {
        let config = DiskConfig {
            cache: DiskCache::None,
            ..config
        };
        let disk = match Disk::open(&config) {
            Ok(disk) => disk,
            Err(Error::OpenDisk { source, .. }) if source.kind() == std::io::ErrorKind::InvalidInput => {
                eprintln!("SKIPPED: disks_past_the_page_cache_hold_the_same: no O_DIRECT here");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let mut driver = Driver::started(Block::new(disk.clone()), 0);
        let mut traffic = Traffic::new(&mut driver, seed, shadow);
        traffic.run(&mut driver, REQUESTS);
        switch(
            &disk,
            &images.path(&format!("s{seed}")),
            &mut driver,
            &mut traffic,
        )
        .0
        .settle()
        .unwrap();
        traffic.run(&mut driver, REQUESTS);
        traffic.finish(&mut driver);
        traffic.shadow.compare_disk(&disk);
    }
}

#[test]
fn an_overlay_that_cannot_be_is_refused_and_leaves_no_file() {
    let images = Images::new();
    let (config, mut shadow) = images.qcow2("d.qcow2", |_| {});
    let files = || std::fs::read_dir(images.directory.path()).unwrap().count();
    let disk = Disk::open(&config).unwrap();
    drop(disk.prepare_overlay(&images.path("s0"), &owner()).unwrap());
    assert_eq!(files(), 1, "an overlay that is not used is removed");
    File::create(images.path("taken")).unwrap();
    disk.prepare_overlay(&images.path("taken"), &owner()).unwrap_err();
    // Taken between preparing and switching.
    let prepared = disk.prepare_overlay(&images.path("late"), &owner()).unwrap();
    File::create(images.path("late")).unwrap();
    prepared.switch().unwrap_err();
    // One of two.
    let first = disk.prepare_overlay(&images.path("s1"), &owner()).unwrap();
    let second = disk.prepare_overlay(&images.path("s2"), &owner()).unwrap();
    first.switch().unwrap();
    let error = second.switch().unwrap_err().to_string();
    assert_eq!(error, "disk data: another overlay was put on it");
    assert_eq!(files(), 4);
    assert_eq!(names(&disk), ["d.qcow2", "s1"]);
    shadow.compare_disk(&disk);
    drop(disk);
    let reader = images.reader(&config.file, DiskFormat::Qcow2);
    reader.prepare_overlay(&images.path("s3"), &owner()).unwrap_err();
    let store: Arc<dyn BlockBackend> = reader.backend();
    assert!(store.is_read_only());
}

#[test]
fn discards_are_asked_for_in_whole_clusters() {
    let images = Images::new();
    let (config, _) = images.qcow2("d.qcow2", |options| options.cluster_bits = 14);
    let driver = Driver::started(Block::new(Disk::open(&config).unwrap()), 0);
    assert_eq!(
        u32::from_le_bytes(driver.config(44)),
        (1 << 14) / 512,
        "discard_sector_alignment"
    );
    assert_ne!(driver.features & 1 << VIRTIO_BLK_F_WRITE_ZEROES, 0);
}
