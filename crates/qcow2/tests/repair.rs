//! Repaired images are clean to QEMU, and hold what they held.

mod second_opinion;

use std::ops::ControlFlow;
use std::path::Path;

use qcow2::repair::{Repair, RepairReport, repair};
use second_opinion::{
    OPTIONS, add_snapshots, alone, can_have_snapshots, filled, open_writable, patch, patch_u64, present,
    qemu_check, qemu_img, qemu_io, read_u64, run, text, used_entry,
};

/// Where the offset of the refcount table is in the header.
const REFCOUNT_TABLE_OFFSET: u64 = 48;

fn repaired(path: &Path, what: Repair) -> RepairReport {
    repair(open_writable(path), what, &mut |_, _| ControlFlow::Continue(())).expect("repair")
}

/// Fails unless the image is clean to QEMU, and holds what the other one does, in every snapshot.
fn clean_and_equal(what: &str, path: &Path, whole: &Path, snapshots: bool) {
    let (code, figures) = qemu_check(path);
    assert_eq!(code, Some(0), "{what}: {figures:#}");
    let output = run(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "qcow2", text(path), text(whole)],
    );
    assert!(output.status.success(), "{what}: the disk is not what it was");
    for snapshot in ["first", "second"].iter().filter(|_| snapshots) {
        let of = |path: &Path| format!("driver=qcow2,file.driver=file,file.filename={}", text(path));
        let select = format!("snapshot.name={snapshot}");
        let raw = |path: &Path| {
            let raw = path.with_extension(format!("{snapshot}.raw"));
            qemu_img(&[
                "convert",
                "--image-opts",
                "-O",
                "raw",
                "-l",
                &select,
                &of(path),
                text(&raw),
            ]);
            std::fs::read(raw).expect("read")
        };
        assert!(
            raw(path) == raw(whole),
            "{what}: snapshot {snapshot} is not what it was"
        );
    }
}

/// What is done to an image, and its name.
type Damage = (&'static str, fn(&Path));

/// Damages of the refcounts, none of which loses data.
fn damages() -> Vec<Damage> {
    vec![
        ("a block of zeros", |path| {
            patch(path, first_block(path), &[0; 512])
        }),
        ("a block of noise", |path| {
            let noise: Vec<u8> = (0..512_u32).map(|at| (at * 37 % 251).to_be_bytes()[3]).collect();
            patch(path, first_block(path), &noise);
        }),
        ("no block at all", |path| {
            patch(path, read_u64(path, REFCOUNT_TABLE_OFFSET), &[0; 8]);
        }),
        ("a block beyond the end", |path| {
            patch_u64(path, read_u64(path, REFCOUNT_TABLE_OFFSET), |_| 1 << 45);
        }),
        ("the table names the header as a block", |path| {
            patch_u64(path, read_u64(path, REFCOUNT_TABLE_OFFSET) + 8, |_| 1 << 8);
        }),
        ("no copied flag in the first table", |path| {
            patch_u64(path, used_entry(path, read_u64(path, 40), 0), |entry| {
                entry & !(1 << 63)
            });
        }),
        ("leaks at the end", |path| {
            let file = std::fs::File::options().write(true).open(path).expect("open");
            let len = path.metadata().expect("metadata").len();
            file.set_len(len + (3 << 20)).expect("grow");
            patch(path, first_block(path) + 300, &[1; 40]);
        }),
    ]
}

/// Offset of the first refcount block.
fn first_block(path: &Path) -> u64 {
    read_u64(path, read_u64(path, REFCOUNT_TABLE_OFFSET))
}

#[test]
fn repaired_images_are_clean_to_qemu_and_hold_what_they_held() {
    if !present("repaired_images_are_clean_to_qemu_and_hold_what_they_held") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("tempdir");
    for options in [
        "compat=0.10",
        OPTIONS[3],
        OPTIONS[4],
        OPTIONS[5],
        OPTIONS[7],
        OPTIONS[11],
    ] {
        let whole = filled(directory.path(), "whole.qcow2", options);
        let snapshots = can_have_snapshots(options);
        if snapshots {
            add_snapshots(&whole);
        }
        for (what, damage) in damages() {
            let path = directory.path().join("damaged.qcow2");
            std::fs::copy(&whole, &path).expect("copy");
            damage(&path);
            let report = repaired(&path, Repair::All);
            assert!(report.after.is_clean(), "{what} ({options}): {report:#?}");
            clean_and_equal(&format!("{what} ({options})"), &path, &whole, snapshots);
        }
    }
}

#[test]
fn repaired_images_can_be_written_to() {
    if !present("repaired_images_can_be_written_to") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("tempdir");
    let path = filled(directory.path(), "image.qcow2", "cluster_size=4096");
    qemu_img(&["bitmap", "--add", text(&path), "bitmap"]);
    add_snapshots(&path);
    patch(&path, first_block(&path), &[0; 4096]);
    // Dirty and corrupt: nobody writes to it.
    patch(&path, 79, &[3]);
    let refused = run("qemu-io", &["-f", "qcow2", "-c", "write 0 512", text(&path)]);
    assert!(!refused.status.success());
    assert!(repaired(&path, Repair::All).refcounts_rebuilt);
    qemu_io(&path, &["write -P 31 0 16M", "read -P 31 0 16M"]);
    qemu_img(&["bitmap", "--remove", text(&path), "bitmap"]);
    qemu_img(&["snapshot", "-a", "first", text(&path)]);
    qemu_img(&["snapshot", "-d", "first", text(&path)]);
    let (code, figures) = qemu_check(&path);
    assert_eq!(code, Some(0), "{figures:#}");
}

#[test]
fn snapshots_without_sizes_are_completed() {
    if !present("snapshots_without_sizes_are_completed") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("tempdir");
    let path = filled(directory.path(), "image.qcow2", "cluster_size=4096");
    add_snapshots(&path);
    let whole = directory.path().join("whole.qcow2");
    std::fs::copy(&path, &whole).expect("copy");
    drop_extra_data(&path);
    assert_eq!(qemu_check(&path).0, Some(2));
    let report = repaired(&path, Repair::All);
    assert_eq!(report.before.corruptions, 2, "{report:#?}");
    assert!(report.after.is_clean(), "{report:#?}");
    clean_and_equal("snapshots without sizes", &path, &whole, true);
}

/// Takes the extra data from all entries of the snapshot table, as programs wrote them that knew of none.
fn drop_extra_data(path: &Path) {
    let (table, count) = (read_u64(path, 64), read_u64(path, 60) >> 32);
    let mut bytes = Vec::new();
    let mut at = table;
    for _ in 0..count {
        let mut entry = [0; 40];
        for (place, offset) in entry.chunks_mut(8).zip((at..).step_by(8)) {
            place.copy_from_slice(&read_u64(path, offset).to_be_bytes());
        }
        let len = |at: usize| u64::from(u16::from_be_bytes([entry[at], entry[at + 1]]));
        let (texts, extra) = (len(12) + len(14), len(38));
        entry[36..].fill(0);
        bytes.extend(entry);
        for offset in 0..texts {
            bytes.push(read_u64(path, at + 40 + extra + offset).to_be_bytes()[0]);
        }
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        at = (at + 40 + extra + texts).next_multiple_of(8);
    }
    patch(path, table, &bytes);
}
