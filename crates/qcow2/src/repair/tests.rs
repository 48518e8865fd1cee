use std::ops::ControlFlow;

use super::*;
use crate::check::check;
use crate::format::{L1Entry, L2Entry};
use crate::replay::{Crash, Recorder};
use crate::walk::{self, MappingKind};
use crate::{CreateOptions, MemoryStorage, create, fields};

/// An image in memory whose disk is filled in the first half, cluster by cluster with its number.
fn image(cluster_bits: u32, refcount_bits: u32) -> Arc<dyn Storage> {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let options = CreateOptions {
        cluster_bits,
        refcount_bits,
        ..CreateOptions::new(256 << cluster_bits)
    };
    create(storage.as_ref(), &options).expect("create");
    let mut metadata = Metadata::open(Arc::clone(&storage)).expect("open");
    let cluster = metadata.cluster_size();
    let mut refcounts = Refcounts::open(Arc::clone(&storage), &metadata.header).expect("open");
    let mut guest = 0_u8;
    let tables = (128 / cluster.l2_entries()).max(1);
    for index in 0..tables {
        let l2 = refcounts.allocate(1).expect("allocate").offset(cluster);
        let mut entries = vec![0; usize::try_from(cluster.l2_entries()).expect("small")];
        for entry in entries.iter_mut().take(128) {
            let host = refcounts.allocate(1).expect("allocate").offset(cluster);
            guest += 1;
            storage
                .write_at(&vec![guest; cluster.len()], host)
                .expect("write");
            *entry = L2Entry::data(host, true).0;
        }
        storage
            .write_at(&fields::entry_bytes(entries), l2)
            .expect("write");
        metadata.l1[usize::try_from(index).expect("small")] = L1Entry::new(l2, true);
    }
    let l1 = fields::entry_bytes(metadata.l1.iter().map(|entry| entry.0));
    storage.write_at(&l1, metadata.header.l1_offset).expect("write");
    refcounts.write_dirty(&mut metadata.header).expect("write");
    assert!(checked(&storage).is_clean());
    storage
}

fn checked(storage: &Arc<dyn Storage>) -> CheckReport {
    let metadata = Metadata::open(Arc::clone(storage)).expect("open");
    check(&metadata, &mut |_, _| ControlFlow::Continue(())).expect("check")
}

fn repaired(storage: &Arc<dyn Storage>, what: Repair) -> RepairReport {
    repair(Arc::clone(storage), what, &mut |_, _| ControlFlow::Continue(())).expect("repair")
}

/// What a guest reads: the first byte of each cluster.
fn content(storage: &Arc<dyn Storage>) -> Vec<u8> {
    let metadata = Metadata::open(Arc::clone(storage)).expect("open");
    let mut content = Vec::new();
    let visit = &mut |mapping: &walk::Mapping| {
        let mut byte = [0];
        if let MappingKind::Data { host } = mapping.kind {
            storage.read_at(&mut byte, host)?;
        }
        let clusters = mapping.len.div_ceil(metadata.cluster_size().bytes());
        content.extend(std::iter::repeat_n(
            byte[0],
            usize::try_from(clusters).expect("small"),
        ));
        Ok(())
    };
    walk::walk(
        storage.as_ref(),
        metadata.cluster_size(),
        &metadata.l1,
        u64::MAX,
        visit,
    )
    .expect("walk");
    content
}

fn bytes_of(storage: &Arc<dyn Storage>) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(storage.len().expect("len")).expect("small")];
    storage.read_at(&mut bytes, 0).expect("read");
    bytes
}

/// The offset of the first refcount block.
fn first_block(storage: &Arc<dyn Storage>) -> u64 {
    let header = Metadata::open(Arc::clone(storage)).expect("open").header;
    let mut bytes = [0; 8];
    storage
        .read_at(&mut bytes, header.refcount_table_offset)
        .expect("read");
    u64::from_be_bytes(bytes)
}

/// Damages of the refcounts that a rebuild heals, none of which loses what the guest wrote.
fn damages() -> Vec<fn(&Arc<dyn Storage>)> {
    vec![
        // All counts of the first block are 0.
        |storage| {
            let len = Metadata::open(Arc::clone(storage))
                .expect("open")
                .cluster_size()
                .len();
            storage
                .write_at(&vec![0; len], first_block(storage))
                .expect("write");
        },
        // The first block is not named any more.
        |storage| {
            let header = Metadata::open(Arc::clone(storage)).expect("open").header;
            storage
                .write_at(&[0; 8], header.refcount_table_offset)
                .expect("write");
        },
        // The table names a block that is not aligned, and the image is marked.
        |storage| {
            let mut metadata = Metadata::open(Arc::clone(storage)).expect("open");
            let at = metadata.header.refcount_table_offset;
            storage.write_at(&[0, 0, 0, 0, 0, 0, 7, 1], at).expect("write");
            metadata.header.incompatible |= INCOMPATIBLE_CORRUPT | INCOMPATIBLE_DIRTY;
            metadata
                .header
                .write_feature_fields(storage.as_ref())
                .expect("write");
        },
        // The counts are random.
        |storage| {
            let len = Metadata::open(Arc::clone(storage))
                .expect("open")
                .cluster_size()
                .len();
            let noise: Vec<u8> = (0..len).map(|at| u8::from((at * 7919) & 8 != 0)).collect();
            storage.write_at(&noise, first_block(storage)).expect("write");
        },
    ]
}

#[test]
fn refcounts_of_every_width_are_rebuilt() {
    for (cluster_bits, refcount_bits) in [(9, 1), (9, 64), (9, 16), (12, 2), (12, 8), (16, 32)] {
        for damage in damages() {
            let storage = image(cluster_bits, refcount_bits);
            let before = content(&storage);
            damage(&storage);
            assert!(checked(&storage).corruptions > 0);
            let report = repaired(&storage, Repair::All);
            assert!(report.corruptions_fixed > 0);
            assert!(report.after.is_clean(), "{:#?}", report.after);
            assert!(checked(&storage).is_clean());
            assert_eq!(content(&storage), before);
            let metadata = Metadata::open(Arc::clone(&storage)).expect("open");
            metadata.ensure_writable().expect("the marks are gone");
        }
    }
}

#[test]
fn a_repair_that_is_cut_anywhere_can_be_repeated() {
    for (cluster_bits, refcount_bits) in [(9, 64), (9, 16), (12, 16)] {
        for damage in damages() {
            let damaged = image(cluster_bits, refcount_bits);
            let before = content(&damaged);
            damage(&damaged);
            let recorder = Recorder::new();
            let recorded: Arc<dyn Storage> = recorder.existing("image", bytes_of(&damaged));
            assert!(repaired(&recorded, Repair::All).after.is_clean());
            let survives = |crash: Crash| {
                let storage: Arc<dyn Storage> = Arc::new(crash.storage("image").expect("file"));
                assert_eq!(content(&storage), before, "{}", crash.description());
                let report = repaired(&storage, Repair::All);
                assert!(report.after.is_clean(), "{}: {report:#?}", crash.description());
                assert_eq!(content(&storage), before, "{}", crash.description());
            };
            recorder.kills().for_each(survives);
            recorder.power_losses(1, 4).for_each(survives);
        }
    }
}

#[test]
fn leaks_are_freed_in_place_and_flags_follow() {
    let storage = image(12, 16);
    let before = content(&storage);
    let mut metadata = Metadata::open(Arc::clone(&storage)).expect("open");
    let mut refcounts = Refcounts::open(Arc::clone(&storage), &metadata.header).expect("open");
    let unused = refcounts.allocate(3).expect("allocate");
    let end = (unused.0 + 3) << 12;
    storage.set_len(end).expect("grow");
    // A data cluster with a count too many, as a snapshot leaves it that was deleted in part.
    let l2 = metadata.l1[0].host_offset();
    let mut entry = [0; 8];
    storage.read_at(&mut entry, l2).expect("read");
    let entry = L2Entry(u64::from_be_bytes(entry)).with_copied(false);
    storage.write_at(&entry.0.to_be_bytes(), l2).expect("write");
    refcounts
        .add(metadata.cluster_size().cluster_of(entry.host_offset()), 1)
        .expect("add");
    refcounts.write_dirty(&mut metadata.header).expect("write");
    let report = repaired(&storage, Repair::Leaks);
    assert_eq!((report.before.leaks, report.leaks_fixed), (4, 4));
    assert!(
        report.after.is_clean() && !report.refcounts_rebuilt,
        "{report:#?}"
    );
    let mut refcounts = Refcounts::open(Arc::clone(&storage), &metadata.header).expect("open");
    assert_eq!(refcounts.get(unused).expect("get"), 0);
    assert_eq!(content(&storage), before);
}

#[test]
fn leaks_are_kept_where_a_table_leads_nowhere() {
    let storage = image(12, 16);
    let metadata = Metadata::open(Arc::clone(&storage)).expect("open");
    let lost = L1Entry(metadata.l1[0].0 + 512);
    storage
        .write_at(&lost.0.to_be_bytes(), metadata.header.l1_offset)
        .expect("write");
    let mut seen = Vec::new();
    for what in [Repair::Leaks, Repair::All] {
        let report = repaired(&storage, what);
        assert!(report.after.corruptions > 0);
        seen.push(report.after.leaks);
    }
    assert!(
        seen[0] > 100 && seen[1] > 100,
        "the data of the lost table is not given away: {seen:?}"
    );
    // By hand, the table is found again, and with it everything that it leads to.
    storage
        .write_at(&metadata.l1[0].0.to_be_bytes(), metadata.header.l1_offset)
        .expect("write");
    let report = repaired(&storage, Repair::All);
    assert!(report.after.is_clean(), "{report:#?}");
}

#[test]
fn a_repair_can_be_cancelled_before_it_writes() {
    let storage = image(9, 16);
    damages()[0](&storage);
    let before = bytes_of(&storage);
    let result = repair(Arc::clone(&storage), Repair::All, &mut |_, _| {
        ControlFlow::Break(())
    });
    assert!(matches!(result, Err(crate::Error::Cancelled)));
    assert_eq!(bytes_of(&storage), before);
}
