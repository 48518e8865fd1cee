//! One thread, many option sets: the image always reads as the array of bytes beside it.

use std::sync::Arc;

use qcow2::{CreateOptions, Image, ImageOptions, MemoryStorage, Metadata, Storage};

use crate::driver::{Below, Driver, Options, checked, matrix};

/// Steps for each option set; more with the environment variable.
fn steps() -> usize {
    std::env::var("QCOW2_ENGINE_STEPS")
        .ok()
        .and_then(|steps| steps.parse().ok())
        .unwrap_or(250)
}

#[test]
fn random_operations_agree_with_an_array_of_bytes() {
    for (options, seed) in matrix().into_iter().zip(1..) {
        let storage = Arc::new(MemoryStorage::new());
        options.create(storage.as_ref());
        let lower = options.lower_layer();
        let mut driver = Driver::new(options, storage, lower.layer, lower.shown, seed);
        for step in 0..steps() {
            driver.step();
            if step % 100 == 99 {
                driver.verify();
            }
        }
        driver.verify();
    }
}

#[test]
fn what_is_freed_is_used_again_after_a_flush() {
    let options = Options {
        version: 3,
        cluster_bits: 16,
        refcount_bits: 16,
        below: Below::Nothing,
        snapshots: false,
    };
    let storage = Arc::new(MemoryStorage::new());
    options.create(storage.as_ref());
    let image = Image::open(storage.clone(), None, &ImageOptions::default()).unwrap();
    let megabyte = vec![7; 1 << 20];
    image.write_at(&megabyte, 0).unwrap();
    image.flush().unwrap();
    let len = storage.len().unwrap();
    for _ in 0..10 {
        image.discard(0, 1 << 20).unwrap();
        image.flush().unwrap();
        image.write_at(&megabyte, 0).unwrap();
        image.flush().unwrap();
    }
    assert_eq!(storage.len().unwrap(), len);
    image.settle().unwrap();
    assert!(checked(storage).is_clean());
}

#[test]
fn a_new_cluster_shows_nothing_of_what_was_there_before() {
    let storage = Arc::new(MemoryStorage::new());
    qcow2::create(storage.as_ref(), &CreateOptions::new(1 << 20)).unwrap();
    let image = Image::open(storage.clone(), None, &ImageOptions::default()).unwrap();
    image.write_at(&[0x55; 65536], 0).unwrap();
    image.discard(0, 65536).unwrap();
    image.flush().unwrap();
    image.write_at(&[1; 512], 65536 + 1024).unwrap();
    let mut read = vec![0xee; 65536];
    image.read_at(&mut read, 65536).unwrap();
    assert!(read.iter().all(|byte| *byte != 0x55));
    assert_eq!(read.iter().filter(|byte| **byte == 1).count(), 512);
}

#[test]
fn a_mapping_onto_metadata_is_not_followed_and_marks_the_image_corrupt() {
    let storage = Arc::new(MemoryStorage::new());
    qcow2::create(storage.as_ref(), &CreateOptions::new(1 << 20)).unwrap();
    let image = Image::open(storage.clone(), None, &ImageOptions::default()).unwrap();
    image.write_at(&[7; 3 << 16], 0).unwrap();
    image.close().unwrap();
    let metadata = Metadata::open(storage.clone()).unwrap();
    let table = metadata.l1[0].host_offset();
    for target in [
        0,
        metadata.header.refcount_table_offset,
        metadata.header.l1_offset,
        table,
        1 << 40,
        0x10200,
    ] {
        let storage = Arc::new(MemoryStorage::from_bytes(storage.to_bytes()));
        let entry = qcow2::format::COPIED | target | u64::from(target == 0) << 62;
        storage.write_at(&entry.to_be_bytes(), table + 8).unwrap();
        let image = Image::open(storage.clone(), None, &ImageOptions::default()).unwrap();
        let mut read = [0; 512];
        assert!(image.read_at(&mut read, 1 << 16).is_err(), "{target:#x}");
        image.read_at(&mut read, 0).unwrap();
        assert_eq!(read, [7; 512], "what is good is still read");
        assert!(image.write_at(&read, 0).is_err());
        drop(image);
        assert!(
            Metadata::open(storage.clone())
                .unwrap()
                .header
                .is_marked_corrupt()
        );
        assert!(Image::open(storage.clone(), None, &ImageOptions::default()).is_err());
        Image::open(storage, None, &ImageOptions::read_only()).unwrap();
    }
}

#[test]
fn an_image_that_was_not_closed_with_postponed_refcounts_is_repaired_when_opened() {
    let storage = Arc::new(MemoryStorage::new());
    qcow2::create(storage.as_ref(), &CreateOptions::new(1 << 20)).unwrap();
    let image = Image::open(storage.clone(), None, &ImageOptions::default()).unwrap();
    image.write_at(&[7; 3 << 16], 0).unwrap();
    image.close().unwrap();
    let mut header = Metadata::open(storage.clone()).unwrap().header;
    header.incompatible |= qcow2::format::INCOMPATIBLE_DIRTY;
    header.write_feature_fields(storage.as_ref()).unwrap();
    let block = header.refcount_table_offset;
    let mut entry = [0; 8];
    storage.read_at(&mut entry, block).unwrap();
    storage.write_at(&[0; 32], u64::from_be_bytes(entry)).unwrap();
    let image = Image::open(storage.clone(), None, &ImageOptions::default()).unwrap();
    image.write_at(&[8; 1 << 16], 5 << 16).unwrap();
    let mut read = vec![0; 3 << 16];
    image.read_at(&mut read, 0).unwrap();
    assert!(read.iter().all(|byte| *byte == 7));
    image.close().unwrap();
    assert!(checked(storage.clone()).is_clean());
    assert!(!Metadata::open(storage).unwrap().header.is_dirty());
}
