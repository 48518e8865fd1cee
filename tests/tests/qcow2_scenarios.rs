//! Situations that have broken qcow2 implementations before, one by one, with QEMU as the second reader.
//!
//! Each test here, in `qcow2_chains.rs` and in `qcow2_refusals.rs` is an idea of QEMU's own regression tests, told anew
//! for our engine. What the header, the check and the snapshot table refuse is tested beside them in `crates/qcow2`.

mod qcow2_common;

use std::fs;

use qcow2_common::ours::Disk;
use qcow2_common::{CLUSTER, KIB, MIB, Scratch, be64, image_of, judge, ours, qemu, text};

/// Idea: iotests 015 and 044.
#[test]
fn the_refcount_table_grows_under_writes_and_under_snapshots() {
    let Some(_alone) = qemu::alone("the_refcount_table_grows_under_writes_and_under_snapshots") else {
        return;
    };
    let scratch = Scratch::new();
    // One cluster of refcount table covers 2 MiB of such an image.
    let options = "version=v3,cluster_size=512,refcount_bits=64";
    let (image, shadow) = image_of(&scratch, options, 16 * MIB);
    for turn in 0..3 {
        let disk = Disk::open(&image);
        disk.fill(turn * 4 * MIB, 5 * MIB, turn);
        disk.close();
        shadow.fill(turn * 4 * MIB, 5 * MIB, turn);
        ours::snapshot_create(&image, &format!("s{turn}"));
        judge(&image, &shadow);
    }
    let table = be64(&fs::read(&image).expect("the image"), 48);
    assert_ne!(
        table, 512,
        "the refcount table is where qemu-img put it: it has not grown"
    );
}

/// Idea: iotests 066, 154 and 179.
#[test]
fn clusters_of_zeros_with_room_read_as_zeros_around_a_write() {
    let Some(_alone) = qemu::alone("clusters_of_zeros_with_room_read_as_zeros_around_a_write") else {
        return;
    };
    let scratch = Scratch::new();
    let (image, shadow) = image_of(&scratch, "version=v3", 4 * MIB);
    qemu::io(&image, ["write -P 0x77 0 2M", "write -z 256k 1M"]);
    shadow.write(&[0x77; 2 << 20], 0);
    shadow.zero(256 * KIB, MIB);
    let disk = Disk::open(&image);
    // The old bytes are still in the file below the zeros: none may show.
    for (offset, len) in [(256 * KIB + 100, 1), (400 * KIB, 4096), (MIB - 1, CLUSTER + 2)] {
        disk.fill(offset, len, 4);
        shadow.fill(offset, len, 4);
    }
    disk.zero(512 * KIB + 3, 9);
    disk.discard(640 * KIB, 2 * CLUSTER);
    disk.close();
    judge(&image, &shadow);
}

/// Idea: iotests 029 and 068.
#[test]
fn the_vm_state_of_a_snapshot_survives_our_snapshots() {
    let Some(_alone) = qemu::alone("the_vm_state_of_a_snapshot_survives_our_snapshots") else {
        return;
    };
    let scratch = Scratch::new();
    let (image, shadow) = image_of(&scratch, "version=v3,cluster_size=4k", 4 * MIB);
    // Behind the end of the disk, where a saved machine has its memory.
    qemu::io(&image, ["write -P 0x11 0 1M", "write -b -P 0x22 0 256k"]);
    shadow.write(&[0x11; 1 << 20], 0);
    qemu::img(["snapshot", "-c", "machine", text(&image)]).good();
    judge(&image, &shadow);
    let disk = Disk::open(&image);
    disk.fill(0, MIB, 5);
    disk.close();
    ours::snapshot_create(&image, "other");
    ours::snapshot_apply(&image, "machine");
    judge(&image, &shadow);
    qemu::io(&image, ["read -b -P 0x22 0 256k", "read -P 0x11 0 1M"]);
    ours::snapshot_delete(&image, "other");
    ours::snapshot_delete(&image, "machine");
    judge(&image, &shadow);
}

/// Idea: iotests 090 and 217.
#[test]
fn compressed_clusters_that_share_a_host_cluster_are_discarded_one_by_one() {
    let Some(_alone) = qemu::alone("compressed_clusters_that_share_a_host_cluster_are_discarded_one_by_one")
    else {
        return;
    };
    let scratch = Scratch::new();
    let (image, shadow) = image_of(&scratch, "version=v3", 4 * MIB);
    qemu::io(
        &image,
        [
            "write -c -P 1 0 64k",
            "write -c -P 2 64k 64k",
            "write -c -P 3 128k 64k",
            "write -P 4 192k 64k",
        ],
    );
    for (number, byte) in (0..).zip([1, 2, 3, 4]) {
        shadow.write(&vec![byte; 65536], number * CLUSTER);
    }
    judge(&image, &shadow);
    for cluster in [1, 0, 3, 2] {
        let disk = Disk::open(&image);
        disk.discard(cluster * CLUSTER, CLUSTER);
        let now = disk.read(cluster * CLUSTER, CLUSTER);
        disk.close();
        assert!(now.iter().all(|byte| *byte == 0), "no backing file: zeros");
        shadow.zero(cluster * CLUSTER, CLUSTER);
        judge(&image, &shadow);
    }
}
