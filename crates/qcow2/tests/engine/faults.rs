//! Media that are full or broken: what fails says so, loses nothing, and can be tried again unless a sync failed.

use std::io::ErrorKind;
use std::sync::Arc;

use qcow2::replay::{FailingStorage, Fault};
use qcow2::{CreateOptions, Image, ImageOptions, MemoryStorage};

use crate::driver::{assert_reads, checked};

const DISK: usize = 64 << 10;

/// An image with small clusters, some data and a snapshot.
fn image() -> (Vec<u8>, Vec<u8>) {
    let storage = Arc::new(MemoryStorage::new());
    let options = CreateOptions {
        cluster_bits: 9,
        ..CreateOptions::new(DISK as u64)
    };
    qcow2::create(storage.as_ref(), &options).unwrap();
    let image = Image::open(storage.clone(), None, &ImageOptions::default()).unwrap();
    let mut content = vec![0; DISK];
    content[..20_000].fill(3);
    image.write_at(&content[..20_000], 0).unwrap();
    image.create_snapshot("kept").unwrap();
    image.close().unwrap();
    (storage.to_bytes(), content)
}

/// A change of the disk, by a range of bytes and what they become.
const CHANGES: [(usize, usize, u8); 7] = [
    (0, 3000, 1),
    (19_000, 24_000, 2),
    (1024, 4096, 0),
    (40_000, 65_536, 4),
    (700, 900, 5),
    (40_960, 50_000, 0),
    (41_000, 42_000, 6),
];

/// Makes all changes, each again until it succeeds, with a flush after every other one.
fn change_all(image: &Image, content: &mut [u8]) -> u64 {
    let mut failures = 0;
    let mut until_done = |change: &dyn Fn() -> qcow2::Result<()>| {
        while let Err(error) = change() {
            assert!(error.is_full(), "{error:?}");
            failures += 1;
        }
    };
    for (number, (start, end, fill)) in CHANGES.into_iter().enumerate() {
        content[start..end].fill(fill);
        let range = &content[start..end];
        match fill {
            0 => until_done(&|| image.write_zeroes(start as u64, range.len() as u64, true)),
            _ => until_done(&|| image.write_at(range, start as u64)),
        }
        if number % 2 == 1 {
            until_done(&|| image.flush());
        }
    }
    until_done(&|| image.settle());
    failures
}

#[test]
fn a_full_medium_fails_one_request_and_loses_nothing() {
    let (bytes, before) = image();
    for failing in 0.. {
        let medium = Arc::new(MemoryStorage::from_bytes(bytes.clone()));
        let storage = FailingStorage::new(medium.clone(), Fault::Write(failing), ErrorKind::StorageFull);
        let image = Image::open(Arc::new(storage), None, &ImageOptions::default()).unwrap();
        let mut content = before.clone();
        let failures = change_all(&image, &mut content);
        assert_reads(&image, &content, "after the failure");
        drop(image);
        let report = checked(medium.clone());
        assert_eq!(report.corruptions, 0, "write {failing}: {report:?}");
        let image = Image::open(medium, None, &ImageOptions::read_only()).unwrap();
        assert_reads(&image, &content, "after opening again");
        if failures == 0 {
            assert!(failing > 15, "only {failing} writes were made to fail");
            break;
        }
    }
}

#[test]
fn after_a_failed_sync_every_change_is_refused() {
    let (bytes, before) = image();
    let mut syncs = 1;
    let mut failing = 0;
    while failing < syncs {
        let medium = Arc::new(MemoryStorage::from_bytes(bytes.clone()));
        let storage = Arc::new(FailingStorage::new(
            medium.clone(),
            Fault::Sync(failing),
            ErrorKind::Other,
        ));
        let image = Image::open(storage, None, &ImageOptions::default()).unwrap();
        image.write_at(&[9; 3000], 5000).unwrap();
        let mut content = before.clone();
        content[5000..8000].fill(9);
        let failed = image.flush().is_err();
        assert!(
            !failed || image.flush().is_err(),
            "a later flush cannot make good"
        );
        assert_eq!(image.write_at(&[8; 512], 0).is_err(), failed);
        if !failed {
            content[..512].fill(8);
        }
        assert_reads(&image, &content, "in memory nothing is lost");
        let done = !failed;
        drop(image);
        let report = checked(medium);
        assert_eq!(report.corruptions, 0, "sync {failing}: {report:?}");
        syncs = if done { failing } else { failing + 2 };
        failing += 1;
    }
    assert!(
        failing > 2,
        "at least the syncs of refcounts and tables were made to fail"
    );
}
