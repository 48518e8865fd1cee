//! `check` beside `qemu-img check`: the same verdict and the same figures on images of many options, whole, leaky and
//! damaged.

mod second_opinion;

use std::ops::ControlFlow;
use std::path::Path;

use qcow2::Metadata;
use qcow2::check::{CheckReport, FindingKind, check};
use second_opinion::{
    OPTIONS, add_snapshots, alone, can_have_snapshots, filled, open, patch, patch_u64, present, qemu_check,
    qemu_img, read_u64, text, used_entry,
};

/// Where the offset of the active L1 table is in the header.
const L1_OFFSET: u64 = 40;
/// Where the offset of the refcount table is in the header.
const REFCOUNT_TABLE_OFFSET: u64 = 48;
/// Bits 9 to 55 of an entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Our report.
fn ours(path: &Path) -> CheckReport {
    let metadata = Metadata::open(open(path)).expect("open");
    check(&metadata, &mut |_, _| ControlFlow::Continue(())).expect("check")
}

/// The exit code that qemu-img has for a report.
fn exit_code(report: &CheckReport) -> i32 {
    match report {
        report if report.check_errors > 0 => 1,
        report if report.corruptions > 0 => 2,
        report if report.leaks > 0 => 3,
        _ => 0,
    }
}

/// Checks an image with both and fails where they differ; returns our report.
fn agree(what: &str, path: &Path) -> CheckReport {
    let report = ours(path);
    let (code, figures) = qemu_check(path);
    let theirs = |name: &str| figures[name].as_u64().unwrap_or(0);
    assert_eq!(code, Some(exit_code(&report)), "{what}: {report:#?}\n{figures:#}");
    let pairs = [
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("check-errors", report.check_errors),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("compressed-clusters", report.compressed_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("image-end-offset", report.image_end_offset),
    ];
    for (name, ours) in pairs {
        assert_eq!(ours, theirs(name), "{what}: {name}: {report:#?}\n{figures:#}");
    }
    report
}

#[test]
fn whole_images_are_clean_and_the_figures_are_qemus() {
    if !present("whole_images_are_clean_and_the_figures_are_qemus") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("tempdir");
    for (number, options) in OPTIONS.iter().enumerate() {
        let path = filled(directory.path(), &format!("{number}.qcow2"), options);
        assert!(agree(options, &path).is_clean(), "{options}");
        if can_have_snapshots(options) {
            add_snapshots(&path);
            assert!(agree(options, &path).is_clean(), "{options} with snapshots");
            qemu_img(&["snapshot", "-a", "first", text(&path)]);
            qemu_img(&["snapshot", "-d", "second", text(&path)]);
            assert!(agree(options, &path).is_clean(), "{options} after snapshots");
        }
    }
}

#[test]
fn bitmaps_are_counted_while_they_are_valid() {
    if !present("bitmaps_are_counted_while_they_are_valid") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("tempdir");
    let path = filled(directory.path(), "bitmaps.qcow2", "cluster_size=4096");
    qemu_img(&["bitmap", "--add", "-g", "512", text(&path), "first"]);
    qemu_img(&["bitmap", "--add", "-g", "65536", text(&path), "second bitmap"]);
    second_opinion::qemu_io(&path, &["write -P 9 4M 2M"]);
    assert!(agree("bitmaps", &path).is_clean());
    // Without the autoclear bit they are what a program left that knew nothing of them.
    patch(&path, 88, &[0; 8]);
    assert!(agree("invalid bitmaps", &path).leaks > 0);
}

/// What is done to an image, and its name. The header stays readable.
type Damage = (&'static str, fn(&Path));

/// Entries that are wrong in themselves.
fn wrong_entries() -> Vec<Damage> {
    vec![
        ("a refcount is too high", |path| {
            let block = first_block(path);
            patch(path, block + 8, &[0, 9]);
        }),
        ("a refcount is 0", |path| {
            let block = first_block(path);
            patch(path, block + 10, &[0, 0]);
        }),
        ("an L2 table's copied flag is lost", |path| {
            patch_u64(path, first_l1_entry(path), |entry| entry ^ (1 << 63));
        }),
        ("a data cluster's copied flag is lost", |path| {
            patch_u64(path, first_l2_entry(path, 0), |entry| entry ^ (1 << 63));
        }),
        ("a data cluster is not aligned", |path| {
            patch_u64(path, first_l2_entry(path, 0), |entry| entry + 512);
        }),
        ("a data cluster is beyond the end", |path| {
            patch_u64(path, first_l2_entry(path, 2), |entry| entry + (1 << 40));
        }),
        ("a data entry has reserved bits", |path| {
            patch_u64(path, first_l2_entry(path, 1), |entry| entry | 1 << 60);
        }),
        ("an L1 entry has reserved bits", |path| {
            patch_u64(path, first_l1_entry(path), |entry| entry | 2);
        }),
    ]
}

/// Entries that lead where something else is, and compressed clusters.
fn wrong_targets() -> Vec<Damage> {
    vec![
        ("two guest clusters share a host cluster", |path| {
            let entry = read_u64(path, first_l2_entry(path, 0));
            patch_u64(path, first_l2_entry(path, 3), |_| entry);
        }),
        ("data is on the refcount table", |path| {
            let table = read_u64(path, REFCOUNT_TABLE_OFFSET);
            patch_u64(path, first_l2_entry(path, 0), |_| table | 1 << 63);
        }),
        ("data is on a refcount block", |path| {
            let block = first_block(path);
            patch_u64(path, first_l2_entry(path, 0), |_| block | 1 << 63);
        }),
        ("data is on the L1 table", |path| {
            let l1 = read_u64(path, L1_OFFSET);
            patch_u64(path, first_l2_entry(path, 0), |_| l1 | 1 << 63);
        }),
        ("an L2 table maps itself", |path| {
            let l2 = read_u64(path, first_l1_entry(path));
            patch_u64(path, first_l2_entry(path, 0), |_| l2);
        }),
        ("a compressed cluster has the copied flag", |path| {
            let entry = compressed_entry(path);
            patch_u64(path, entry, |entry| entry | 1 << 63);
        }),
        ("a compressed cluster is beyond the end", |path| {
            let entry = compressed_entry(path);
            patch_u64(path, entry, |entry| entry + (1 << 38));
        }),
        ("a compressed cluster claims more sectors", |path| {
            let entry = compressed_entry(path);
            patch_u64(path, entry, |entry| entry | 0xff << 54);
        }),
    ]
}

/// Damaged refcount structures, lost tables, and files of another length.
fn wrong_structures() -> Vec<Damage> {
    vec![
        ("a refcount block is beyond the end", |path| {
            let table = read_u64(path, REFCOUNT_TABLE_OFFSET);
            patch_u64(path, table + 8, |_| 1 << 40);
        }),
        ("a refcount block is forgotten", |path| {
            let table = read_u64(path, REFCOUNT_TABLE_OFFSET);
            patch_u64(path, table, |_| 0);
        }),
        ("a refcount block's entry has reserved bits", |path| {
            let table = read_u64(path, REFCOUNT_TABLE_OFFSET);
            patch_u64(path, table, |entry| entry | 8);
        }),
        ("two entries name one refcount block", |path| {
            let table = read_u64(path, REFCOUNT_TABLE_OFFSET);
            let block = read_u64(path, table);
            patch_u64(path, table + 8, |_| block);
        }),
        ("an L2 table is beyond the end", |path| {
            patch_u64(path, first_l1_entry(path), |entry| entry + (1 << 40));
        }),
        ("an L1 entry is forgotten", |path| {
            patch_u64(path, first_l1_entry(path), |_| 0);
        }),
        ("the file is cut in its last cluster", |path| cut(path, 700)),
        ("the file is cut by several clusters", |path| cut(path, 300_000)),
        ("the file goes on beyond its clusters", |path| {
            let len = path.metadata().expect("metadata").len();
            let file = std::fs::File::options().write(true).open(path).expect("open");
            file.set_len(len + 1_000_000).expect("grow");
        }),
    ]
}

/// Cuts bytes off the end of a file.
fn cut(path: &Path, bytes: u64) {
    let len = path.metadata().expect("metadata").len();
    let file = std::fs::File::options().write(true).open(path).expect("open");
    file.set_len(len - bytes).expect("cut");
}

/// Offset of the first refcount block.
fn first_block(path: &Path) -> u64 {
    read_u64(path, read_u64(path, REFCOUNT_TABLE_OFFSET))
}

/// Offset of the first entry in use of the active L1 table.
fn first_l1_entry(path: &Path) -> u64 {
    used_entry(path, read_u64(path, L1_OFFSET), 0)
}

/// Offset of the first entry in use from `index` on of the first L2 table.
fn first_l2_entry(path: &Path, index: u64) -> u64 {
    used_entry(path, read_u64(path, first_l1_entry(path)) & OFFSET, index)
}

/// Offset of the first entry of a compressed cluster.
fn compressed_entry(path: &Path) -> u64 {
    let cluster_bits = read_u64(path, 16) & 0xffff_ffff;
    let entries = (1 << cluster_bits) / 8;
    let mut l1_entry = first_l1_entry(path);
    loop {
        let table = read_u64(path, l1_entry) & OFFSET;
        let compressed = |offset: &u64| read_u64(path, *offset) >> 62 & 1 == 1;
        if table != 0
            && let Some(offset) = (0..entries).map(|index| table + index * 8).find(compressed)
        {
            return offset;
        }
        l1_entry += 8;
    }
}

#[test]
fn damaged_images_get_qemus_verdict_and_figures() {
    if !present("damaged_images_get_qemus_verdict_and_figures") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("tempdir");
    for options in [
        "cluster_size=4096",
        "cluster_size=65536",
        "compat=0.10,cluster_size=4096",
    ] {
        for snapshots in [false, true] {
            let whole = filled(directory.path(), "whole.qcow2", options);
            if snapshots {
                add_snapshots(&whole);
            }
            let damages = [wrong_entries(), wrong_targets(), wrong_structures()];
            for (what, damage) in damages.into_iter().flatten() {
                let path = directory.path().join("damaged.qcow2");
                std::fs::copy(&whole, &path).expect("copy");
                damage(&path);
                agree(&format!("{what} ({options}, snapshots: {snapshots})"), &path);
            }
        }
    }
}

#[test]
fn tables_beyond_the_disk_are_counted_too() {
    if !present("tables_beyond_the_disk_are_counted_too") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("state.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=512",
        text(&path),
        "4M",
    ]);
    second_opinion::qemu_io(&path, &["write -P 1 0 64k", "write -P 2 3M 64k"]);
    qemu_img(&["snapshot", "-c", "state", text(&path)]);
    // What lies beyond the disk now is where the state of a machine is kept.
    patch(&path, 24, &(1_u64 << 20).to_be_bytes());
    let report = agree("state beyond the disk", &path);
    assert!(report.is_clean() && report.allocated_clusters == 256);
}

#[test]
fn shared_metadata_is_found_even_where_the_refcounts_agree() {
    if !present("shared_metadata_is_found_even_where_the_refcounts_agree") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("tempdir");
    let path = filled(directory.path(), "overlap.qcow2", "cluster_size=65536");
    // A data entry leads to the L1 table, whose refcount allows for it; the cluster that it led to is free.
    let l1 = read_u64(&path, L1_OFFSET);
    let entry = first_l2_entry(&path, 0);
    let lost = (read_u64(&path, entry) & OFFSET) >> 16;
    patch_u64(&path, entry, |_| l1);
    patch(&path, first_block(&path) + 2 * (l1 >> 16), &[0, 2]);
    patch(&path, first_block(&path) + 2 * lost, &[0, 0]);
    let l1_entry_refcounts_agree = qemu_check(&path).0 == Some(0);
    assert!(l1_entry_refcounts_agree, "the refcounts alone show nothing");
    let report = ours(&path);
    assert_eq!(report.corruptions, 1, "{report:#?}");
    assert!(matches!(report.findings[0].kind, FindingKind::Overlap { .. }));
    assert_eq!(report.findings[0].offset, l1);
}
