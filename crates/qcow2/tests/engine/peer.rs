//! Images go back and forth between this crate and QEMU's tools.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use qcow2::{Image, ImageOptions, MemoryStorage};

use crate::driver::{Below, Driver, Options, QCOW2_NAME, RAW_NAME, matrix};
use crate::second_opinion::{
    OPTIONS, can_have_snapshots, filled, open_writable, present, qemu_check, qemu_img, text,
};

/// QEMU finds nothing wrong with an image and reads the same bytes.
fn assert_agrees(directory: &Path, image: &Path, content: &[u8], what: &str) {
    let (code, figures) = qemu_check(image);
    assert_eq!(code, Some(0), "{what}: {figures}");
    let raw = directory.join("content.raw");
    fs::write(&raw, content).unwrap();
    qemu_img(&["compare", "-f", "qcow2", "-F", "raw", text(image), text(&raw)]);
}

#[test]
fn qemu_agrees_with_what_was_written() {
    if !present("qemu_agrees_with_what_was_written") {
        return;
    }
    for (options, seed) in matrix().into_iter().zip(500..) {
        let directory = tempfile::tempdir().unwrap();
        let storage = Arc::new(MemoryStorage::new());
        options.create(storage.as_ref());
        let lower = options.lower_layer();
        let mut driver = Driver::new(options, storage.clone(), lower.layer, lower.shown, seed);
        for _ in 0..120 {
            driver.step();
        }
        driver.image.settle().unwrap();
        let image = directory.path().join("image.qcow2");
        fs::write(&image, storage.to_bytes()).unwrap();
        let lower_name = if options.below == Below::Raw {
            RAW_NAME
        } else {
            QCOW2_NAME
        };
        if let Some(lower) = lower.storage {
            fs::write(directory.path().join(lower_name), lower.to_bytes()).unwrap();
        }
        assert_agrees(directory.path(), &image, &driver.shadow, &format!("{options:?}"));
        for (id, content) in &driver.snapshots {
            let raw = directory.path().join("snapshot.raw");
            qemu_img(&[
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                "-l",
                id,
                text(&image),
                text(&raw),
            ]);
            assert!(fs::read(&raw).unwrap() == *content, "{options:?}: snapshot {id}");
        }
    }
}

#[test]
fn images_of_qemu_are_read_and_written() {
    if !present("images_of_qemu_are_read_and_written") {
        return;
    }
    for (made_with, seed) in OPTIONS.into_iter().zip(900..) {
        let directory = tempfile::tempdir().unwrap();
        let path = filled(directory.path(), "image.qcow2", made_with);
        let snapshots = can_have_snapshots(made_with);
        let raw = directory.path().join("before.raw");
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", text(&path), text(&raw)]);
        let before = fs::read(&raw).unwrap();
        if snapshots {
            qemu_img(&["snapshot", "-c", "of-qemu", text(&path)]);
        }
        let storage = open_writable(&path);
        let header = qcow2::Metadata::open(storage.clone()).unwrap().header;
        let options = Options {
            version: header.version,
            cluster_bits: header.cluster_size.bits(),
            refcount_bits: header.refcount_bits(),
            below: Below::Nothing,
            snapshots,
        };
        let mut driver = Driver::new(options, storage, None, before.clone(), seed);
        if snapshots {
            driver.snapshots.push(("1".to_owned(), before));
        }
        for _ in 0..60 {
            driver.step();
        }
        driver.verify();
        let (content, snapshots) = (driver.shadow.clone(), driver.snapshots.clone());
        drop(driver);
        assert_agrees(directory.path(), &path, &content, made_with);
        for (id, content) in snapshots {
            qemu_img(&[
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                "-l",
                &id,
                text(&path),
                text(&raw),
            ]);
            assert!(fs::read(&raw).unwrap() == content, "{made_with}: snapshot {id}");
        }
    }
}

#[test]
fn bitmaps_are_declared_invalid_by_the_first_write() {
    if !present("bitmaps_are_declared_invalid_by_the_first_write") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = filled(directory.path(), "image.qcow2", "compat=1.1");
    qemu_img(&["bitmap", "--add", text(&path), "dirty-sectors"]);
    let storage = open_writable(&path);
    let autoclear = || qcow2::Metadata::open(storage.clone()).unwrap().header.autoclear;
    assert_ne!(autoclear(), 0);
    let image = Image::open(storage.clone(), None, &ImageOptions::default()).unwrap();
    image.read_at(&mut [0; 512], 0).unwrap();
    image.flush().unwrap();
    assert_ne!(autoclear(), 0, "reading changes nothing");
    image.write_at(&[1; 512], 0).unwrap();
    assert_eq!(autoclear(), 0);
}
