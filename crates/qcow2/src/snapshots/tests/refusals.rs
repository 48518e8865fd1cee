//! What is refused, and that nothing is written then.

use std::time::UNIX_EPOCH;

use super::image::{TestImage, Verdict, options};
use crate::format::{INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY};
use crate::snapshots::{apply, create, delete};
use crate::{Error, HostCluster, Metadata, Result, SnapshotEntry, Unsupported, Usage};

/// Runs an operation that must fail, and returns its error after seeing that the file has not changed.
fn refused(image: &mut TestImage, operation: impl FnOnce(&mut Metadata) -> Result<SnapshotEntry>) -> Error {
    let before = image.bytes();
    let error = operation(&mut image.metadata).expect_err("refused");
    assert!(image.bytes() == before, "nothing is written: {error}");
    error
}

/// Overwrites a field of the header and opens the image again.
fn patch(image: &TestImage, offset: u64, bytes: &[u8]) -> TestImage {
    image.storage().write_at(bytes, offset).expect("memory");
    TestImage::open(image.metadata.storage().clone())
}

#[test]
fn a_reference_more_than_the_width_can_count_is_refused_before_anything_is_written() {
    let mut image = TestImage::new(&options(9, 2, 3));
    image.write_all(0..100, 1);
    create(&mut image.metadata, "a", UNIX_EPOCH).expect("two references");
    create(&mut image.metadata, "b", UNIX_EPOCH).expect("three references");
    let error = refused(&mut image, |metadata| create(metadata, "c", UNIX_EPOCH));
    assert!(
        matches!(&error, Error::Limit(limit) if (limit.value, limit.limit) == (4, 3)),
        "{error}"
    );
    assert_eq!(image.check(), Verdict::default());
}

#[test]
fn refcounts_of_one_bit_cannot_have_snapshots() {
    let mut image = TestImage::new(&options(16, 1, 3));
    let error = refused(&mut image, |metadata| create(metadata, "a", UNIX_EPOCH));
    assert!(
        matches!(error, Error::Unsupported(Unsupported::Feature { .. })),
        "{error}"
    );
}

#[test]
fn snapshots_that_do_not_exist_are_named() {
    let mut image = TestImage::new(&options(9, 16, 3));
    for operation in [apply, delete] {
        let error = refused(&mut image, |metadata| operation(metadata, "x"));
        assert!(
            matches!(&error, Error::Usage(Usage::NoSuchSnapshot { wanted }) if wanted == "x"),
            "{error}"
        );
    }
}

#[test]
fn names_that_qemu_would_cut_are_refused() {
    let mut image = TestImage::new(&options(9, 16, 3));
    for name in ["x".repeat(256), "a\0b".to_owned()] {
        refused(&mut image, |metadata| create(metadata, &name, UNIX_EPOCH));
    }
    create(&mut image.metadata, &"x".repeat(255), UNIX_EPOCH).expect("the longest name");
}

#[test]
fn images_to_be_repaired_are_refused() {
    for (bit, expected) in [
        (INCOMPATIBLE_DIRTY, Unsupported::Dirty),
        (INCOMPATIBLE_CORRUPT, Unsupported::MarkedCorrupt),
    ] {
        let mut image = TestImage::new(&options(9, 16, 3));
        create(&mut image.metadata, "a", UNIX_EPOCH).expect("created");
        let mut image = patch(&image, 72, &bit.to_be_bytes());
        let operations: [fn(&mut Metadata) -> Result<SnapshotEntry>; 3] = [
            |metadata| create(metadata, "b", UNIX_EPOCH),
            |metadata| apply(metadata, "a"),
            |metadata| delete(metadata, "a"),
        ];
        for operation in operations {
            let error = refused(&mut image, operation);
            assert!(
                matches!(&error, Error::Unsupported(why) if *why == expected),
                "{error}"
            );
        }
    }
}

#[test]
fn references_that_are_not_counted_are_refused() {
    let mut image = TestImage::new(&options(9, 16, 3));
    image.write_all(0..4, 1);
    create(&mut image.metadata, "a", UNIX_EPOCH).expect("created");
    image.write_all(2..3, 1);
    let table = image.metadata.l1[0].host_offset();
    let mut refcounts = image.refcounts();
    refcounts.set(HostCluster(table / 512), 0).expect("set");
    refcounts
        .write_dirty(&mut image.metadata.header)
        .expect("written");
    let error = refused(&mut image, |metadata| create(metadata, "b", UNIX_EPOCH));
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
}

#[test]
fn a_snapshot_whose_tables_are_nowhere_is_refused() {
    for (field, bytes) in [
        (0, 0x1234_5678_0000_u64.to_be_bytes()),
        (0, 0x201_u64.to_be_bytes()),
    ] {
        let mut image = TestImage::new(&options(9, 16, 3));
        image.write(0, 1);
        create(&mut image.metadata, "a", UNIX_EPOCH).expect("created");
        let offset = image.metadata.header.snapshots_offset;
        let mut image = patch(&image, offset + field, &bytes);
        for operation in [apply, delete] {
            let error = refused(&mut image, |metadata| operation(metadata, "a"));
            assert!(matches!(error, Error::Corrupt(_)), "{error}");
        }
    }
}

#[test]
fn an_l2_table_used_twice_is_refused() {
    let mut image = TestImage::new(&options(9, 16, 3));
    image.write(0, 1);
    let l1 = image.metadata.header.l1_offset;
    let entry = image.metadata.l1[0].0.to_be_bytes();
    let mut image = patch(&image, l1 + 8, &entry);
    let error = refused(&mut image, |metadata| create(metadata, "a", UNIX_EPOCH));
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
}

#[test]
fn bitmaps_that_describe_the_disk_keep_a_snapshot_from_being_applied_but_not_from_being_taken() {
    let mut image = TestImage::new(&options(9, 16, 3));
    create(&mut image.metadata, "a", UNIX_EPOCH).expect("created");
    let mut image = patch(&image, 88, &0b101_u64.to_be_bytes());
    let error = refused(&mut image, |metadata| apply(metadata, "a"));
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    create(&mut image.metadata, "b", UNIX_EPOCH).expect("created");
    let autoclear = TestImage::open(image.metadata.storage().clone())
        .metadata
        .header
        .autoclear;
    assert_eq!(
        autoclear, 1,
        "the bit of an unknown feature is cleared, that of the bitmaps kept"
    );
}
