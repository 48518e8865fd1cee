//! Situations of images with backing files that have broken implementations before, with QEMU as the second reader.

mod qcow2_common;

use std::fs;
use std::path::Path;
use std::thread;

use qcow2_common::ours::Disk;
use qcow2_common::random::Shadow;
use qcow2_common::{CLUSTER, KIB, MIB, Scratch, judge, ours, qemu, text};

/// Idea: iotests 037 and 038.
#[test]
fn a_write_into_part_of_a_cluster_keeps_what_the_backing_file_has_around_it() {
    let Some(_alone) =
        qemu::alone("a_write_into_part_of_a_cluster_keeps_what_the_backing_file_has_around_it")
    else {
        return;
    };
    let scratch = Scratch::new();
    let (base, image) = (scratch.path("base.raw"), scratch.path("disk.qcow2"));
    let shadow = Shadow::create(&scratch.path("shadow.raw"), 8 * MIB);
    shadow.fill(0, 8 * MIB, 1);
    fs::copy(&shadow.path, &base).expect("the base");
    qemu::img([
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.raw",
        "-F",
        "raw",
        text(&image),
    ])
    .good();
    let disk = Disk::open(&image);
    let starts = [0, 1, 511, 512, 4096, CLUSTER - 512, CLUSTER - 1];
    let lengths = [1, 512, 4096, CLUSTER - 1, CLUSTER, CLUSTER + 1, 3 * CLUSTER + 513];
    let places = starts
        .into_iter()
        .flat_map(|start| lengths.map(|len| (start, len)));
    for (number, (start, len)) in (0..).zip(places) {
        let offset = number % 24 * 5 * CLUSTER + start;
        disk.fill(offset, len, 100 + number);
        shadow.fill(offset, len, 100 + number);
    }
    disk.close();
    judge(&image, &shadow);
}

/// Idea: iotest 046.
#[test]
fn writers_of_the_same_clusters_at_once_lose_nothing() {
    let Some(_alone) = qemu::alone("writers_of_the_same_clusters_at_once_lose_nothing") else {
        return;
    };
    let scratch = Scratch::new();
    let base = scratch.path("base.raw");
    let shadow = Shadow::create(&scratch.path("shadow.raw"), 4 * MIB);
    shadow.fill(0, 4 * MIB, 1);
    fs::copy(&shadow.path, &base).expect("the base");
    let image = scratch.path("disk.qcow2");
    qemu::img([
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.raw",
        "-F",
        "raw",
        text(&image),
    ])
    .good();
    let disk = Disk::open(&image);
    // Thread n has every eighth sector: all eight are in every cluster, and no sector has two writers.
    thread::scope(|scope| {
        for writer in 0..8 {
            let (disk, shadow) = (&disk, &shadow);
            scope.spawn(move || {
                for sector in (writer..4 * MIB / 512)
                    .step_by(8)
                    .filter(|sector| sector % 5 != 0)
                {
                    disk.fill(sector * 512, 512, 2 + writer);
                    shadow.fill(sector * 512, 512, 2 + writer);
                }
            });
        }
    });
    disk.close();
    judge(&image, &shadow);
}

/// Idea: iotest 062.
#[test]
fn clusters_of_zeros_without_room_survive_snapshots_over_a_backing_file() {
    let Some(_alone) = qemu::alone("clusters_of_zeros_without_room_survive_snapshots_over_a_backing_file")
    else {
        return;
    };
    let scratch = Scratch::new();
    let (base, image) = (scratch.path("base.raw"), scratch.path("disk.qcow2"));
    let shadow = Shadow::create(&scratch.path("shadow.raw"), 4 * MIB);
    shadow.fill(0, 4 * MIB, 1);
    fs::copy(&shadow.path, &base).expect("the base");
    qemu::img([
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "base.raw",
        "-F",
        "raw",
        text(&image),
    ])
    .good();
    let disk = Disk::open(&image);
    disk.zero_unmap(MIB, MIB);
    disk.close();
    shadow.zero(MIB, MIB);
    ours::snapshot_create(&image, "zeros");
    judge(&image, &shadow);
    let disk = Disk::open(&image);
    disk.fill(MIB + 5, 3, 9);
    disk.close();
    ours::snapshot_apply(&image, "zeros");
    judge(&image, &shadow);
    ours::snapshot_delete(&image, "zeros");
    judge(&image, &shadow);
}

/// Idea: iotest 290.
#[test]
fn a_discard_never_brings_back_what_the_backing_file_has() {
    let Some(_alone) = qemu::alone("a_discard_never_brings_back_what_the_backing_file_has") else {
        return;
    };
    for compat in ["0.10", "1.1"] {
        let scratch = Scratch::new();
        let (base, image) = (scratch.path("base.raw"), scratch.path("disk.qcow2"));
        fs::write(&base, vec![0xbb; 1 << 20]).expect("the base");
        let option = format!("compat={compat}");
        qemu::img([
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &option,
            "-b",
            "base.raw",
            "-F",
            "raw",
            text(&image),
        ])
        .good();
        let disk = Disk::open(&image);
        disk.fill(0, 4 * CLUSTER, 6);
        let before = disk.read(CLUSTER, CLUSTER);
        disk.discard(CLUSTER, CLUSTER);
        let after = disk.read(CLUSTER, CLUSTER);
        disk.close();
        let zeros = after.iter().all(|byte| *byte == 0);
        assert!(
            zeros || after == before,
            "compat {compat}: neither zeros nor what was written"
        );
        assert!(zeros || compat == "0.10", "version 3 can say zero");
        qemu::assert_clean(&image);
    }
}

/// Idea: iotest 274.
#[test]
fn what_is_beyond_a_short_backing_file_stays_zero_when_the_image_is_flattened() {
    let Some(_alone) =
        qemu::alone("what_is_beyond_a_short_backing_file_stays_zero_when_the_image_is_flattened")
    else {
        return;
    };
    for format in ["raw", "qcow2"] {
        let scratch = Scratch::new();
        let (base, middle, top) = (
            scratch.path("base"),
            scratch.path("middle.qcow2"),
            scratch.path("top.qcow2"),
        );
        qemu::img(["create", "-q", "-f", format, text(&base), "4M"]).good();
        qemu::io_as(&base, format, ["write -P 1 0 4M"]);
        // The middle one is shorter than what is below it and above it.
        qemu::img([
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "base",
            "-F",
            format,
            text(&middle),
            "1M",
        ])
        .good();
        qemu::img([
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "middle.qcow2",
            "-F",
            "qcow2",
            text(&top),
            "8M",
        ])
        .good();
        let shadow = Shadow::create(&scratch.path("shadow.raw"), 8 * MIB);
        shadow.write(&[1; 1 << 20], 0);
        let disk = Disk::open(&top);
        disk.fill(6 * MIB + 77, 1000, 2);
        shadow.fill(6 * MIB + 77, 1000, 2);
        disk.close();
        judge(&top, &shadow);
        let flat = scratch.path("flat.qcow2");
        fs::copy(&top, &flat).expect("a copy");
        ours::flatten(&flat);
        for lower in [&base, &middle] {
            fs::rename(lower, lower.with_extension("away")).expect("the layer goes away");
        }
        judge(&flat, &shadow);
        for lower in [&base, &middle] {
            fs::rename(lower.with_extension("away"), lower).expect("the layer comes back");
        }
        // The disk in the middle would have to grow; nothing is written before that is known.
        let before = fs::read(&middle).expect("the middle");
        assert!(ours::try_commit(&top).is_err());
        assert!(fs::read(&middle).expect("the middle") == before);
    }
}

/// Idea: iotests 144, 176 and 191.
#[test]
fn a_chain_of_overlays_is_committed_layer_by_layer() {
    let Some(_alone) = qemu::alone("a_chain_of_overlays_is_committed_layer_by_layer") else {
        return;
    };
    let scratch = Scratch::new();
    let shadow = Shadow::create(&scratch.path("shadow.raw"), 8 * MIB);
    let base = scratch.path("0.raw");
    shadow.fill(0, 8 * MIB, 1);
    fs::copy(&shadow.path, &base).expect("the base");
    let mut below = ("0.raw".to_owned(), "raw");
    for layer in 1..4 {
        let name = format!("{layer}.qcow2");
        let image = scratch.path(&name);
        ours::create_overlay(&image, Path::new(&below.0), below.1);
        let disk = Disk::open(&image);
        disk.fill(layer * MIB + 11, 700 * KIB, 10 + layer);
        shadow.fill(layer * MIB + 11, 700 * KIB, 10 + layer);
        disk.zero_unmap(6 * MIB + layer * 10 * KIB, 300 * KIB);
        shadow.zero(6 * MIB + layer * 10 * KIB, 300 * KIB);
        disk.close();
        judge(&image, &shadow);
        below = (name, "qcow2");
    }
    for layer in [3, 2, 1] {
        let image = scratch.path(&format!("{layer}.qcow2"));
        ours::commit(&image);
        judge(&image, &shadow);
    }
    assert!(fs::read(&base).expect("the base") == shadow.read(0, 8 * MIB));
}
