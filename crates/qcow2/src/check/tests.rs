use std::ops::ControlFlow;
use std::sync::Arc;

use super::*;
use crate::format::{L1Entry, L2Entry};
use crate::{ClusterSize, CreateOptions, MemoryStorage, Refcounts, Storage, create, fields};

/// An image with one L2 table and `clusters` clusters of data behind it.
fn image(clusters: usize) -> Arc<dyn Storage> {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let options = CreateOptions {
        cluster_bits: 12,
        ..CreateOptions::new(4 << 20)
    };
    create(storage.as_ref(), &options).expect("create");
    let mut metadata = Metadata::open(Arc::clone(&storage)).expect("open");
    let cluster = metadata.cluster_size();
    let mut refcounts = Refcounts::open(Arc::clone(&storage), &metadata.header).expect("open");
    let l2 = refcounts.allocate(1).expect("allocate").offset(cluster);
    let mut entries = vec![0; 512];
    for entry in entries.iter_mut().take(clusters) {
        let host = refcounts.allocate(1).expect("allocate").offset(cluster);
        storage.write_at(&[7; 4096], host).expect("write");
        *entry = L2Entry::data(host, true).0;
    }
    storage
        .write_at(&fields::entry_bytes(entries), l2)
        .expect("write");
    let l1 = L1Entry::new(l2, true).0.to_be_bytes();
    storage.write_at(&l1, metadata.header.l1_offset).expect("write");
    refcounts.write_dirty(&mut metadata.header).expect("write");
    storage
}

fn checked(storage: &Arc<dyn Storage>) -> Result<CheckReport> {
    let metadata = Metadata::open(Arc::clone(storage))?;
    check(&metadata, &mut |_, _| ControlFlow::Continue(()))
}

#[test]
fn an_entry_that_every_l1_entry_shares_is_read_once_and_counted_each_time() {
    let storage = image(1);
    let metadata = Metadata::open(Arc::clone(&storage)).expect("open");
    let entries = u64::from(metadata.header.l1_entries);
    let shared = fields::entry_bytes((0..entries).map(|_| metadata.l1[0].0));
    storage
        .write_at(&shared, metadata.header.l1_offset)
        .expect("write");
    let report = checked(&storage).expect("check");
    // The table and its cluster have more references than their refcounts say.
    assert_eq!(report.corruptions, 2, "{report:#?}");
    let references: Vec<u64> = report
        .findings
        .iter()
        .filter_map(|finding| match finding.kind {
            FindingKind::CountTooLow { references, .. } => Some(references),
            _ => None,
        })
        .collect();
    assert_eq!(references, [entries; 2]);
    assert_eq!(report.allocated_clusters, entries);
}

#[test]
fn findings_beyond_those_listed_are_counted() {
    let storage = image(500);
    let metadata = Metadata::open(Arc::clone(&storage)).expect("open");
    let mut wrong = Vec::new();
    for index in 0..512 {
        wrong.extend((1_u64 << 55 | 1 << 60 | index << 9).to_be_bytes());
    }
    storage
        .write_at(&wrong, metadata.l1[0].host_offset())
        .expect("write");
    let report = checked(&storage).expect("check");
    assert_eq!(report.findings.len(), MAX_FINDINGS);
    assert!(report.findings_total > MAX_FINDINGS as u64);
    assert_eq!(report.leaks, 500);
}

#[test]
fn every_finding_is_a_sentence_and_a_record() {
    let finding = Finding {
        offset: 0x20000,
        kind: FindingKind::CountTooLow {
            refcount: 1,
            references: 2,
        },
    };
    assert_eq!(
        finding.to_string(),
        "cluster at 0x20000 has refcount 1 but 2 references"
    );
    let record = serde_json::to_value(&finding).expect("json");
    assert_eq!(
        record,
        serde_json::json!({"offset": 0x20000, "kind": "count-too-low", "refcount": 1, "references": 2})
    );
}

#[test]
fn a_file_longer_than_can_be_counted_is_refused_before_memory_is_taken() {
    let cluster = ClusterSize::new(9).expect("size");
    let mut holes = References::new(cluster, 1 << 36, 1).expect("references");
    holes.add(100_000_000, 1).expect("add");
    assert_eq!(holes.next_counted(0), 100_000_000 / 1024 * 1024);
    assert!(matches!(
        References::new(cluster, u64::MAX, 1),
        Err(Error::Limit(_))
    ));
}

#[test]
fn counts_that_do_not_fit_are_kept_aside() {
    let cluster = ClusterSize::new(16).expect("size");
    let mut references = References::new(cluster, 1 << 30, u64::MAX).expect("references");
    assert!(!references.mark(5).expect("mark"));
    for _ in 0..3 {
        references.add(5, 30_000).expect("add");
    }
    assert_eq!(references.get(5), 90_000);
    references.set(5, 2).expect("set");
    assert_eq!(references.get(5), 2);
    assert!(references.mark(5).expect("mark"), "the mark stays");
    assert_eq!(references.next_counted(6), 6);
    assert_eq!(references.next_counted(1024), references.clusters());
}

#[test]
fn a_count_stops_at_what_the_image_can_hold() {
    let cluster = ClusterSize::new(16).expect("size");
    let mut references = References::new(cluster, 1 << 20, 3).expect("references");
    assert_eq!(references.add(1, 2).expect("add").overflow, 0);
    assert_eq!(references.add(1, 2).expect("add").overflow, 1);
    assert_eq!(references.get(1), 3);
    assert_eq!(
        references.inside(1 << 20, 65_536),
        None,
        "a whole cluster beyond the end"
    );
    assert_eq!(references.inside((1 << 20) - 1, 65_536), Some(15..17));
}

#[test]
fn a_check_can_be_cancelled() {
    let metadata = Metadata::open(image(1)).expect("open");
    let result = check(&metadata, &mut |_, _| ControlFlow::Break(()));
    assert!(matches!(result, Err(Error::Cancelled)));
}
