//! Disks of several files: flattening, internal snapshots, caches, damage.

use std::fs::File;
use std::sync::atomic::Ordering;

use qcow2::{Access, FileStorage};

use super::images::{DISK_BYTES, Images, REQUESTS, check_image, names, owner, switch};
use super::traffic::Traffic;
use super::*;
use crate::config::{DiskCache, DiskFormat};

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

/// Whoever still has the disk, its files are complete: no cluster is left that counts and is not used.
#[test]
fn a_closed_disk_is_complete_in_its_files() {
    let images = Images::new();
    let (config, shadow) = images.qcow2("d.qcow2", |options| options.cluster_bits = 12);
    let disk = Disk::open(&config).unwrap();
    let mut driver = Driver::started(Block::new(disk.clone()), 0);
    let mut traffic = Traffic::new(&mut driver, 14, shadow);
    traffic.run(&mut driver, REQUESTS);
    let (frozen, _) = switch(&disk, &images.path("s0"), &mut driver, &mut traffic);
    traffic.run(&mut driver, REQUESTS);
    disk.close().unwrap();
    disk.close().unwrap();
    // What was answered until then is in the files; what comes now stays in the queue.
    traffic.collect(&mut driver);
    let before = std::fs::read(&config.file).unwrap();
    traffic.pour(&mut driver);
    driver.transport.pause().unwrap();
    assert!(std::fs::read(&config.file).unwrap() == before);
    for path in [&config.file, &frozen.path] {
        let storage = FileStorage::from_file(File::open(path).unwrap(), Access::ReadOnly);
        let metadata = qcow2::Metadata::open(std::sync::Arc::new(storage)).unwrap();
        let report = qcow2::check::check(&metadata, &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
        assert!(report.is_clean(), "{}: {report:?}", path.display());
    }
    drop((driver, disk));
    traffic
        .shadow
        .compare_disk(&images.reader(&config.file, DiskFormat::Qcow2));
}

#[test]
fn a_damaged_image_is_an_error_of_the_requests_that_meet_the_damage() {
    let images = Images::new();
    let (config, _) = images.qcow2("d.qcow2", |_| {});
    let disk = Disk::open(&config).unwrap();
    let mut driver = Driver::started(Block::new(disk.clone()), 0);
    let slot = Slot::new(&mut driver);
    for sector in [0, 128] {
        driver.store(slot.data, &[9; 512]);
        request(&mut driver, &slot, VIRTIO_BLK_T_OUT, sector, 512);
    }
    drop((driver, disk));
    // The second cluster is said to lie far behind the end of the file.
    let file = File::options().read(true).write(true).open(&config.file).unwrap();
    let at = |offset| {
        let mut entry = [0; 8];
        file.read_exact_at(&mut entry, offset).unwrap();
        u64::from_be_bytes(entry)
    };
    let l2 = at(at(40)) & 0x00ff_ffff_ffff_fe00;
    assert_ne!(at(l2 + 8), 0);
    file.write_all_at(&(1u64 << 63 | 1 << 40).to_be_bytes(), l2 + 8)
        .unwrap();
    let disk = Disk::open(&config).unwrap();
    let mut driver = Driver::started(Block::new(disk), 0);
    let slot = Slot::new(&mut driver);
    for (sector, kind) in [
        (128, VIRTIO_BLK_T_IN),
        (128, VIRTIO_BLK_T_OUT),
        (129, VIRTIO_BLK_T_IN),
    ] {
        let answered = request(&mut driver, &slot, kind, sector, 512);
        assert_eq!(answered.0, VIRTIO_BLK_S_IOERR, "{kind} at {sector}");
    }
    for sector in [0, 4096] {
        let answered = request(&mut driver, &slot, VIRTIO_BLK_T_IN, sector, 512);
        assert_eq!(answered.0, VIRTIO_BLK_S_OK, "another cluster");
    }
}
