//! One thread, many option sets: the image always reads as the array of bytes beside it.

use std::sync::Arc;

use qcow2::{Image, ImageOptions, MemoryStorage};

use crate::driver::{Below, Driver, Options, checked, matrix};

/// Steps for each option set; more with the environment variable.
fn steps() -> usize {
    std::env::var("QCOW2_ENGINE_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(250)
}

#[test]
fn random_operations_agree_with_an_array_of_bytes() {
    for (options, seed) in matrix().into_iter().zip(1..) {
        let storage = Arc::new(MemoryStorage::new());
        options.create(storage.as_ref());
        let (below, _, shadow) = options.lower_layer();
        let mut driver = Driver::new(options, storage, below, shadow, seed);
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
    let len = qcow2::Storage::len(storage.as_ref()).unwrap();
    for _ in 0..10 {
        image.discard(0, 1 << 20).unwrap();
        image.flush().unwrap();
        image.write_at(&megabyte, 0).unwrap();
        image.flush().unwrap();
    }
    assert_eq!(qcow2::Storage::len(storage.as_ref()).unwrap(), len);
    image.settle().unwrap();
    assert!(checked(storage).is_clean());
}

#[test]
fn a_new_cluster_shows_nothing_of_what_was_there_before() {
    let storage = Arc::new(MemoryStorage::new());
    qcow2::create(storage.as_ref(), &qcow2::CreateOptions::new(1 << 20)).unwrap();
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
