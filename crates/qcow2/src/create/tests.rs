//! Layouts of new images; what QEMU says of them is in the integration tests.

use std::sync::Arc;

use crate::create::block_of_ones;
use crate::{Backing, CreateOptions, Error, ImageFormat, MemoryStorage, Metadata, Storage, create};

#[test]
fn an_image_of_any_option_opens_and_maps_nothing() {
    for version in [2, 3] {
        for cluster_bits in 9..=21 {
            for refcount_order in 0..=6 {
                let mut options = CreateOptions::new(5 << 20);
                (options.version, options.cluster_bits) = (version, cluster_bits);
                options.refcount_bits = 1 << refcount_order;
                let storage = Arc::new(MemoryStorage::new());
                let created = create(storage.as_ref(), &options);
                if version == 2 && refcount_order != 4 {
                    assert!(matches!(created, Err(Error::Usage(_))));
                    continue;
                }
                created.unwrap();
                let metadata = Metadata::open(storage).unwrap();
                assert!(metadata.l1.iter().all(|entry| entry.is_unallocated()));
                assert_eq!(metadata.header.refcount_bits(), 1 << refcount_order);
            }
        }
    }
}

#[test]
fn refcounts_narrower_than_a_byte_fill_it_from_below() {
    assert_eq!(block_of_ones(3, 1, 2), [0b111, 0]);
    assert_eq!(block_of_ones(3, 2, 2), [0b01_0101, 0]);
    assert_eq!(block_of_ones(3, 4, 2), [0x11, 0x01]);
    assert_eq!(block_of_ones(2, 8, 3), [1, 1, 0]);
    assert_eq!(block_of_ones(1, 16, 4), [0, 1, 0, 0]);
    assert_eq!(
        block_of_ones(1, 64, 16),
        [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    );
}

#[test]
fn many_refcount_blocks_count_themselves() {
    // 512-byte clusters and 64-bit refcounts: 64 refcounts in a block, and an L1 table of thousands of clusters.
    let mut options = CreateOptions::new(16 << 30);
    (options.cluster_bits, options.refcount_bits) = (9, 64);
    let storage = Arc::new(MemoryStorage::new());
    create(storage.as_ref(), &options).unwrap();
    let metadata = Metadata::open(storage.clone()).unwrap();
    let clusters = storage.len().unwrap() / 512;
    let table_entries = u64::from(metadata.header.refcount_table_clusters) * 64;
    assert!(table_entries * 64 >= clusters);
}

#[test]
fn options_that_no_image_has_are_refused() {
    let base = CreateOptions::new(1 << 20);
    let unstated = Backing {
        name: "base".into(),
        format: None,
    };
    for options in [
        CreateOptions {
            cluster_bits: 8,
            ..base.clone()
        },
        CreateOptions {
            cluster_bits: 22,
            ..base.clone()
        },
        CreateOptions {
            version: 1,
            ..base.clone()
        },
        CreateOptions {
            refcount_bits: 0,
            ..base.clone()
        },
        CreateOptions {
            refcount_bits: 24,
            ..base.clone()
        },
        CreateOptions {
            refcount_bits: 128,
            ..base.clone()
        },
        CreateOptions {
            virtual_size_bytes: 1000,
            ..base.clone()
        },
        CreateOptions {
            virtual_size_bytes: u64::MAX,
            ..base.clone()
        },
        CreateOptions {
            virtual_size_bytes: 1 << 62,
            ..base.clone()
        },
        CreateOptions {
            backing: Some(unstated),
            ..base.clone()
        },
        CreateOptions::overlay(1 << 20, Backing::new("", ImageFormat::Raw)),
        CreateOptions::overlay(1 << 20, Backing::new("x".repeat(1024), ImageFormat::Raw)),
    ] {
        let storage = MemoryStorage::new();
        assert!(create(&storage, &options).is_err(), "{options:?}");
        assert_eq!(storage.len().unwrap(), 0);
    }
}

#[test]
fn an_empty_disk_is_an_image() {
    let storage = Arc::new(MemoryStorage::new());
    create(storage.as_ref(), &CreateOptions::new(0)).unwrap();
    assert!(Metadata::open(storage).unwrap().l1.is_empty());
}
