//! Snapshots of a disk that had another size (iotest 029, and 261 for version 2).

use std::fs;
use std::time::SystemTime;

use qcow2::{Metadata, snapshots};

use crate::content::{alone, as_qemu_reads, assert_clean, metadata};
use crate::second_opinion::{open, qemu_img, qemu_io, text};

/// We and QEMU apply a snapshot of another size to copies of one image, with the same result.
#[test]
fn a_disk_takes_the_size_of_the_snapshot_as_with_qemu() {
    let Some(_alone) = alone("a_disk_takes_the_size_of_the_snapshot_as_with_qemu") else {
        return;
    };
    for (cluster, first, second) in [
        ("512", "1M", "9M"),
        ("512", "9M", "1M"),
        ("65536", "16M", "17M"),
        ("4096", "40M", "3M"),
    ] {
        let what = format!("clusters of {cluster}, {first} applied over {second}");
        let directory = tempfile::tempdir().expect("a directory");
        let ours = directory.path().join("ours.qcow2");
        let qemus = directory.path().join("qemus.qcow2");
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &format!("cluster_size={cluster}"),
            text(&ours),
            first,
        ]);
        qemu_io(&ours, &["write -P 1 0 700k"]);
        let content = as_qemu_reads(&ours, None);
        snapshots::create(&mut metadata(&ours), "sized", SystemTime::now()).expect("created");
        qemu_img(&["resize", "-q", "--shrink", "-f", "qcow2", text(&ours), second]);
        qemu_io(&ours, &["write -P 2 300k 100k"]);
        fs::copy(&ours, &qemus).expect("a copy");

        snapshots::apply(&mut metadata(&ours), "sized").expect("applied");
        qemu_img(&["snapshot", "-a", "sized", text(&qemus)]);
        assert_eq!(as_qemu_reads(&ours, None), content, "{what}");
        assert_eq!(as_qemu_reads(&qemus, None), content, "{what}");
        let size = |path| {
            Metadata::open(open(path))
                .expect("an image")
                .header
                .virtual_size_bytes
        };
        assert_eq!(size(&ours), size(&qemus), "{what}");
        assert_clean(&ours, &what);
        qemu_io(&ours, &["write -P 3 0 1M"]);
        assert_eq!(
            as_qemu_reads(&ours, Some("1")),
            content,
            "{what}: the snapshot stays"
        );
        assert_clean(&ours, &what);
    }
}

/// Without a size of its own in the table a snapshot has the image's, so that an image of version 2 keeps its size.
#[test]
fn an_image_of_version_2_keeps_its_size() {
    let Some(_alone) = alone("an_image_of_version_2_keeps_its_size") else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "compat=0.10",
        text(&path),
        "16M",
    ]);
    snapshots::create(&mut metadata(&path), "sized", SystemTime::now()).expect("created");
    let mut smaller = metadata(&path);
    smaller.header.virtual_size_bytes = 8 << 20;
    smaller
        .header
        .write(smaller.storage().as_ref())
        .expect("another size in the header");
    let before = fs::read(&path).expect("the image");
    snapshots::apply(&mut smaller, "sized").expect_err("another size");
    assert!(
        fs::read(&path).expect("the image") == before,
        "nothing is written"
    );
}
