use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::thread;

use qcow2::flatten::{FlattenOptions, flatten};
use qcow2::replay::Random;
use qcow2::{Error, Image, ImageFormat, ImageOptions, Layer, Usage};

use crate::second_opinion::{present, qemu_check};
use crate::{DISK, assert_clean, assert_reads, disk, fill, overlay};

#[test]
fn a_flat_image_needs_no_backing_file() {
    let directory = tempfile::tempdir().unwrap();
    let (base, top) = (
        directory.path().join("base.qcow2"),
        directory.path().join("top.qcow2"),
    );
    let (image, mut content) = disk(&base);
    drop(image);
    let image = overlay(&top, "base.qcow2", ImageFormat::Qcow2);
    fill(&image, &mut content, 70_000, 200_000, 9);
    image.discard(0, 65536).unwrap();
    content[..65536].fill(0);
    let mut last = None;
    let mut progress = |progress| {
        last = Some(progress);
        ControlFlow::Continue(())
    };
    let report = flatten(&image, &FlattenOptions::default(), &mut progress).unwrap();
    assert_eq!(last.unwrap().done_bytes, DISK as u64);
    assert!(
        report.copied_bytes < DISK as u64 / 2,
        "what is there already is not copied"
    );
    assert_reads(image.as_ref(), &content);
    image.discard(DISK as u64 / 4, 65536).unwrap();
    content[DISK / 4..DISK / 4 + 65536].fill(0);
    drop(image);
    std::fs::remove_file(base).unwrap();
    let image = Image::open_chain(&top, &ImageOptions::default()).unwrap();
    assert_reads(image.as_ref(), &content);
    assert_clean(image.storage());
    drop(image);
    if present("a_flat_image_needs_no_backing_file") {
        assert_eq!(qemu_check(&top).0, Some(0));
    }
}

#[test]
fn the_guest_writes_on_while_its_disk_is_flattened() {
    let directory = tempfile::tempdir().unwrap();
    let (image, mut content) = disk(&directory.path().join("base.qcow2"));
    drop(image);
    let image = overlay(
        &directory.path().join("top.qcow2"),
        "base.qcow2",
        ImageFormat::Qcow2,
    );
    let guest = image.clone();
    content = thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let mut random = Random::new(5);
            for number in 0..400 {
                let start = random.index(DISK / 512 - 16) * 512;
                match number % 4 {
                    0 => {
                        guest.write_zeroes(start as u64, 8192, true).unwrap();
                        content[start..start + 8192].fill(0);
                    }
                    _ => fill(&guest, &mut content, start, 4096, number as u8),
                }
            }
            content
        });
        flatten(&image, &FlattenOptions::default(), &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
        writer.join().unwrap()
    });
    assert!(image.backing().is_none());
    image.settle().unwrap();
    assert_reads(image.as_ref(), &content);
    assert_clean(image.storage());
}

#[test]
fn a_cancelled_flatten_leaves_a_whole_disk() {
    let directory = tempfile::tempdir().unwrap();
    let (image, content) = disk(&directory.path().join("base.qcow2"));
    drop(image);
    let image = overlay(
        &directory.path().join("top.qcow2"),
        "base.qcow2",
        ImageFormat::Qcow2,
    );
    let slow = FlattenOptions {
        bytes_per_second: NonZeroU64::new(1),
    };
    let mut calls = 0;
    let result = flatten(&image, &slow, &mut |_| {
        calls += 1;
        if calls < 3 {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    assert!(
        matches!(result, Err(Error::Cancelled)),
        "the rate is kept by sleeping, and sleeping ends when told"
    );
    assert!(image.backing().is_some());
    assert_reads(image.as_ref(), &content);
    image.settle().unwrap();
    assert_clean(image.storage());
}

#[test]
fn an_image_whose_snapshots_need_the_backing_file_is_not_flattened() {
    let directory = tempfile::tempdir().unwrap();
    drop(disk(&directory.path().join("base.qcow2")));
    let image = overlay(
        &directory.path().join("top.qcow2"),
        "base.qcow2",
        ImageFormat::Qcow2,
    );
    let id = image.create_snapshot("one").unwrap().id().into_owned();
    let mut progress = |_| ControlFlow::Continue(());
    let result = flatten(&image, &FlattenOptions::default(), &mut progress);
    assert!(matches!(result, Err(Error::Usage(Usage::SnapshotsNeedBacking))));
    image.delete_snapshot(&id).unwrap();
    flatten(&image, &FlattenOptions::default(), &mut progress).unwrap();
}
