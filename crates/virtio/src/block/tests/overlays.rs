//! Overlays that are put on a disk while requests pour in.

use std::fs::File;
use std::path::PathBuf;

use qcow2::limits::MAX_CHAIN_DEPTH;
use qcow2::{Access, Backing, ChainError, CreateOptions, FileStorage, ImageFormat};

use super::images::{DISK_BYTES, Images, REQUESTS, check_image, names, owner, switch};
use super::traffic::Traffic;
use super::*;
use crate::config::DiskFormat;

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
    assert!(reader.backend().is_read_only());
}
