use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::replay::{Crash, Recorder};
use crate::{CreateOptions, MemoryStorage, Metadata, create};

/// A new image, in memory.
fn image(cluster_bits: u32, refcount_bits: u32) -> (Arc<dyn Storage>, Header) {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let options = CreateOptions {
        cluster_bits,
        refcount_bits,
        ..CreateOptions::new(1 << 20)
    };
    create(storage.as_ref(), &options).expect("create");
    let header = Metadata::open(Arc::clone(&storage)).expect("open").header;
    (storage, header)
}

#[test]
fn counts_of_every_width_come_back() {
    for order in 0..=6 {
        let width = Width::from_order(order).expect("width");
        let mut block = vec![0; 512];
        let counts = usize::try_from((512 * 8) >> order).expect("counts");
        let value = |index: usize| (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & width.max();
        for index in 0..counts {
            width.set(&mut block, index, value(index));
        }
        for index in 0..counts {
            assert_eq!(
                width.get(&block, index),
                value(index),
                "order {order} index {index}"
            );
        }
        assert_eq!(width.get(&block, counts), 0);
    }
    assert_eq!(Width::from_order(7), None);
}

#[test]
fn narrow_counts_fill_bytes_from_the_lowest_bit() {
    let mut block = vec![0; 512];
    Width::from_order(0).expect("width").set(&mut block, 1, 1);
    Width::from_order(2).expect("width").set(&mut block, 3, 5);
    Width::from_order(4).expect("width").set(&mut block, 1, 0x1234);
    assert_eq!(block[..4], [2, 0x50, 0x12, 0x34]);
}

#[test]
fn a_count_never_leaves_its_width() {
    let (storage, header) = image(9, 2);
    let mut refcounts = Refcounts::open(storage, &header).expect("open");
    let cluster = refcounts.allocate(1).expect("allocate");
    assert_eq!(refcounts.add(cluster, 2).expect("add"), 3);
    assert!(matches!(refcounts.add(cluster, 1), Err(Error::Corrupt(_))));
    assert!(matches!(refcounts.sub(cluster, 4), Err(Error::Corrupt(_))));
    assert_eq!(refcounts.get(cluster).expect("get"), 3);
    assert_eq!(refcounts.sub(cluster, 3).expect("sub"), 0);
    assert_eq!(refcounts.allocate(1).expect("allocate"), cluster);
}

#[test]
fn metadata_that_the_refcounts_call_free_is_not_handed_out() {
    let (storage, header) = image(16, 16);
    let mut refcounts = Refcounts::open(storage, &header).expect("open");
    let l1 = header.cluster_size.cluster_of(header.l1_offset);
    refcounts.set(l1, 0).expect("set");
    assert!(matches!(refcounts.allocate(1), Err(Error::Corrupt(_))));
}

#[test]
fn a_block_beyond_the_file_is_corrupt() {
    let (storage, header) = image(9, 16);
    storage
        .write_at(&(1_u64 << 40).to_be_bytes(), header.refcount_table_offset)
        .expect("write");
    let mut refcounts = Refcounts::open(storage, &header).expect("open");
    assert!(matches!(refcounts.get(HostCluster(0)), Err(Error::Corrupt(_))));
}

#[test]
fn a_block_that_two_entries_name_is_refused() {
    let (storage, header) = image(9, 16);
    let mut entry = [0; 8];
    storage
        .read_at(&mut entry, header.refcount_table_offset)
        .expect("read");
    storage
        .write_at(&entry, header.refcount_table_offset + 8)
        .expect("write");
    assert!(matches!(
        Refcounts::open(storage, &header),
        Err(Error::Corrupt(_))
    ));
}

#[test]
fn what_is_dropped_from_memory_is_read_again() {
    let (storage, mut header) = image(9, 64);
    let mut refcounts = Refcounts::open(storage, &header).expect("open");
    let first = refcounts.allocate(1000).expect("allocate");
    refcounts.shrink(0);
    assert!(refcounts.loaded_bytes() > 0, "what has not been written stays");
    refcounts.write_dirty(&mut header).expect("write");
    refcounts.shrink(0);
    assert_eq!(refcounts.loaded_bytes(), 0);
    assert_eq!(refcounts.get(HostCluster(first.0 + 999)).expect("get"), 1);
}

/// Allocations and frees beside a model, with everything written and read back in between.
#[test]
fn blocks_and_table_grow_as_clusters_are_allocated() {
    for (cluster_bits, refcount_bits) in [(9, 64), (9, 16), (9, 1), (12, 32), (16, 16)] {
        let (storage, mut header) = image(cluster_bits, refcount_bits);
        let mut refcounts = Refcounts::open(Arc::clone(&storage), &header).expect("open");
        let mut runs: BTreeMap<u64, u64> = BTreeMap::new();
        let mut seed = 1_u64;
        for round in 0..300 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let random = seed >> 33;
            if random.is_multiple_of(4) && !runs.is_empty() {
                let nth = usize::try_from(random).expect("small") % runs.len();
                let (&first, &len) = runs.iter().nth(nth).expect("run");
                refcounts.free(HostCluster(first), len).expect("free");
                runs.remove(&first);
            } else {
                let len = 1 + random % 7 * (random % 31);
                let first = refcounts.allocate(len).expect("allocate").0;
                for (&other, &other_len) in &runs {
                    assert!(first + len <= other || other + other_len <= first, "runs overlap");
                }
                runs.insert(first, len);
            }
            if round % 37 == 0 {
                refcounts.write_dirty(&mut header).expect("write");
                assert!(refcounts.is_clean());
                header = Metadata::open(Arc::clone(&storage)).expect("open").header;
                refcounts = Refcounts::open(Arc::clone(&storage), &header).expect("open");
            }
        }
        refcounts.write_dirty(&mut header).expect("write");
        let mut read = Refcounts::open(Arc::clone(&storage), &header).expect("open");
        for (first, len) in runs {
            for cluster in first..first + len {
                assert_eq!(read.get(HostCluster(cluster)).expect("get"), 1);
            }
            read.free(HostCluster(first), len).expect("free");
        }
        // What is left are the image's own structures: with the runs gone, nothing is leaked.
        read.write_dirty(&mut header).expect("write");
        let metadata = Metadata::open(storage).expect("open");
        let report =
            crate::check::check(&metadata, &mut |_, _| std::ops::ControlFlow::Continue(())).expect("check");
        assert!(
            report.is_clean(),
            "{cluster_bits} {refcount_bits}: {:?}",
            report.findings
        );
    }
}

#[test]
fn a_run_longer_than_a_block_counts_brings_all_its_blocks() {
    // One block counts 64 clusters, one cluster of the table names 64 blocks.
    let (storage, mut header) = image(9, 64);
    let mut refcounts = Refcounts::open(storage, &header).expect("open");
    let first = refcounts.allocate(20_000).expect("allocate").0;
    for cluster in first..first + 20_000 {
        assert_eq!(refcounts.get(HostCluster(cluster)).expect("get"), 1);
    }
    let before = header.refcount_table_offset;
    refcounts.write_dirty(&mut header).expect("write");
    assert_ne!(header.refcount_table_offset, before, "the table has moved");
    let old = header.cluster_size.cluster_of(before);
    assert_eq!(refcounts.get(old).expect("get"), 0, "the old table is free");
}

#[test]
fn a_table_beyond_its_limit_is_refused_and_changes_nothing() {
    let (storage, header) = image(9, 64);
    let mut refcounts = Refcounts::open(storage, &header).expect("open");
    let far = HostCluster(1 << 40);
    assert!(matches!(refcounts.set(far, 1), Err(Error::Limit(_))));
    assert!(refcounts.is_clean());
    assert_eq!(refcounts.get(far).expect("get"), 0);
}

#[test]
fn what_could_not_be_written_is_written_the_next_time() {
    let (storage, mut header) = image(9, 16);
    let mut refcounts = Refcounts::open(Arc::clone(&storage), &header).expect("open");
    let first = refcounts.allocate(30_000).expect("allocate");
    let dirty = refcounts.take_dirty();
    assert!(refcounts.is_clean() && !dirty.is_empty());
    refcounts.put_back(dirty);
    assert!(!refcounts.is_clean());
    refcounts.write_dirty(&mut header).expect("write");
    let mut read = Refcounts::open(storage, &header).expect("open");
    assert_eq!(read.get(HostCluster(first.0 + 29_999)).expect("get"), 1);
}

#[test]
fn some_clusters_are_taken_as_far_as_they_are_free() {
    let (storage, header) = image(16, 16);
    let mut refcounts = Refcounts::open(storage, &header).expect("open");
    let first = refcounts.allocate(10).expect("allocate").0;
    refcounts.free(HostCluster(first + 2), 3).expect("free");
    assert_eq!(
        refcounts.allocate_some(8).expect("allocate"),
        (HostCluster(first + 2), 3)
    );
    assert_eq!(
        refcounts.allocate_some(8).expect("allocate"),
        (HostCluster(first + 10), 8)
    );
}

/// The image's refcounts after a crash count everything that is used: its own structures.
fn only_leaks(crash: &Crash) {
    let storage: Arc<dyn Storage> = Arc::new(crash.storage("image").expect("file"));
    let metadata = Metadata::open(storage).expect("open");
    let report =
        crate::check::check(&metadata, &mut |_, _| std::ops::ControlFlow::Continue(())).expect("check");
    let (corruptions, errors) = (report.corruptions, report.check_errors);
    assert_eq!(
        (corruptions, errors),
        (0, 0),
        "{}: {:?}",
        crash.description(),
        report.findings
    );
}

#[test]
fn a_crash_while_blocks_and_table_grow_leaves_leaks_at_worst() {
    for (cluster_bits, refcount_bits, runs) in [
        (9, 64, [1, 700, 1, 5000]),
        (9, 16, [100, 300, 9000, 1]),
        (12, 64, [1, 600, 1500, 2]),
    ] {
        let (fresh, mut header) = image(cluster_bits, refcount_bits);
        let mut bytes = vec![0; usize::try_from(fresh.len().expect("len")).expect("small")];
        fresh.read_at(&mut bytes, 0).expect("read");
        let recorder = Recorder::new();
        let recorded: Arc<dyn Storage> = recorder.existing("image", bytes);
        let mut refcounts = Refcounts::open(recorded, &header).expect("open");
        for clusters in runs {
            let first = refcounts.allocate(clusters).expect("allocate");
            refcounts.write_dirty(&mut header).expect("write");
            refcounts.free(first, clusters / 2).expect("free");
        }
        refcounts.write_dirty(&mut header).expect("write");
        recorder.kills().for_each(|crash| only_leaks(&crash));
        recorder.power_losses(7, 6).for_each(|crash| only_leaks(&crash));
    }
}
