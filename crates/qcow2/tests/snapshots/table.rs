//! Extra data of the snapshot table that QEMU or we do not know (iotest 261).

use std::path::Path;
use std::time::SystemTime;

use qcow2::{Metadata, snapshots};

use crate::content::{alone, as_qemu_reads, assert_clean, metadata};
use crate::second_opinion::{filled, open, patch, qemu_check, qemu_img, read_u64, text};

/// What `important` of the table must survive.
const UNKNOWN: &[u8] = b"very important data";

/// Makes an image of version 2 whose three snapshots have no extra data, unknown extra data, and too little of it.
fn odd_image(directory: &Path) -> std::path::PathBuf {
    let path = filled(directory, "odd.qcow2", "compat=0.10");
    for name in ["sn0", "sn1", "sn2"] {
        qemu_img(&["snapshot", "-c", name, text(&path)]);
    }
    let metadata = Metadata::open(open(&path)).expect("an image");
    let mut table = Vec::new();
    for (index, entry) in snapshots::list(&metadata).iter().enumerate() {
        let mut extra = entry.extra.clone();
        match index {
            0 => extra.clear(),
            1 => {
                extra.truncate(16);
                extra.extend(UNKNOWN);
            }
            _ => extra.truncate(8),
        }
        table.resize(table.len().next_multiple_of(8), 0);
        table.extend(entry.l1_offset.to_be_bytes());
        table.extend(entry.l1_entries.to_be_bytes());
        table.extend(u16::try_from(entry.id.len()).expect("short").to_be_bytes());
        table.extend(u16::try_from(entry.name.len()).expect("short").to_be_bytes());
        table.extend(entry.seconds.to_be_bytes());
        table.extend(entry.nanoseconds.to_be_bytes());
        table.extend(entry.vm_clock_ns.to_be_bytes());
        table.extend([0; 4]);
        table.extend(u32::try_from(extra.len()).expect("short").to_be_bytes());
        table.extend([&extra[..], &entry.id, &entry.name].concat());
    }
    patch(&path, read_u64(&path, 64), &table);
    path
}

/// The extra data of every snapshot, by name.
fn extras(path: &Path) -> Vec<(String, Vec<u8>)> {
    let metadata = Metadata::open(open(path)).expect("an image");
    let list = snapshots::list(&metadata).iter();
    list.map(|entry| (entry.name().into_owned(), entry.extra.clone()))
        .collect()
}

#[test]
fn extra_data_survives_every_operation_byte_for_byte() {
    let Some(_alone) = alone("extra_data_survives_every_operation_byte_for_byte") else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let path = odd_image(directory.path());
    assert_clean(&path, "the odd table");
    let before = extras(&path);
    let content = as_qemu_reads(&path, None);
    snapshots::create(&mut metadata(&path), "sn3", SystemTime::now()).expect("created");
    assert_eq!(extras(&path)[..3], before);
    assert_clean(&path, "created");
    snapshots::apply(&mut metadata(&path), "sn1").expect("applied");
    snapshots::delete(&mut metadata(&path), "sn0").expect("deleted");
    assert_eq!(extras(&path)[..2], before[1..]);
    snapshots::delete(&mut metadata(&path), "sn2").expect("deleted");
    assert_eq!(extras(&path)[0], before[1]);
    assert!(extras(&path)[0].1.ends_with(UNKNOWN));
    assert_clean(&path, "deleted");
    assert_eq!(as_qemu_reads(&path, None), content);
    assert_eq!(as_qemu_reads(&path, Some("2")), content);
}

/// The same table in an image that says it is of version 3, which requires more: QEMU finds fault with it until
/// somebody writes the table anew.
#[test]
fn a_table_that_version_3_calls_incomplete_is_completed_when_it_is_written() {
    let Some(_alone) = alone("a_table_that_version_3_calls_incomplete_is_completed_when_it_is_written")
    else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let path = odd_image(directory.path());
    patch(&path, 4, &3_u32.to_be_bytes());
    patch(&path, 96, &4_u32.to_be_bytes());
    patch(&path, 100, &104_u32.to_be_bytes());
    assert_eq!(qemu_check(&path).0, Some(2), "incomplete entries");
    snapshots::create(&mut metadata(&path), "sn3", SystemTime::now()).expect("created");
    assert_clean(&path, "completed");
    let after = extras(&path);
    assert!(after[1].1.ends_with(UNKNOWN));
    assert!(after.iter().all(|(_, extra)| extra.len() >= 16));
}

#[test]
fn qemu_lists_our_snapshots_and_we_list_qemus() {
    let Some(_alone) = alone("qemu_lists_our_snapshots_and_we_list_qemus") else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let path = filled(directory.path(), "disk.qcow2", "cluster_size=65536");
    let when = SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_890_123_456_789);
    snapshots::create(&mut metadata(&path), "ours \u{e9}", when).expect("created");
    qemu_img(&["snapshot", "-c", "qemu's \u{e9}", text(&path)]);
    let listed = qemu_img(&["info", "--output=json", text(&path)]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("json");
    let listed = listed["snapshots"].as_array().expect("snapshots");
    let metadata = Metadata::open(open(&path)).expect("an image");
    assert_eq!(listed.len(), 2);
    for (qemus, ours) in listed.iter().zip(snapshots::list(&metadata)) {
        assert_eq!(qemus["id"], ours.id().as_ref());
        assert_eq!(qemus["name"], ours.name().as_ref());
        assert_eq!(qemus["date-sec"], ours.seconds);
        assert_eq!(qemus["date-nsec"], ours.nanoseconds);
        assert_eq!(qemus["vm-state-size"], ours.vm_state_bytes());
        assert_eq!(ours.virtual_size_bytes(), Some(16 << 20));
    }
    assert_eq!(snapshots::list(&metadata)[0].nanoseconds, 123_456_789);
}
