use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use qcow2::commit::{CommitOptions, commit};
use qcow2::{
    Access, Backing, Cache, CreateOptions, Error, FrozenBacking, Image, ImageFormat, ImageOptions, Layer,
    RawImage, Usage,
};

use crate::{DISK, assert_clean, assert_reads, create, disk, fill, overlay};

/// Changes an overlay in every way that a commit must carry over.
fn change(path: &Path, below: &str, format: ImageFormat, content: &mut [u8]) {
    let image = overlay(path, below, format);
    fill(&image, content, 100_000, 300_000, 50);
    image.write_zeroes(1 << 20, 200_000, true).unwrap();
    content[1 << 20..(1 << 20) + 200_000].fill(0);
    fill(&image, content, DISK - 5000, 5000, 90);
}

#[test]
fn the_backing_file_becomes_what_the_overlay_was() {
    for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
        let directory = tempfile::tempdir().unwrap();
        let (base, top) = (directory.path().join("base"), directory.path().join("top.qcow2"));
        let mut content = match format {
            ImageFormat::Qcow2 => disk(&base).1,
            ImageFormat::Raw => {
                fs::write(&base, vec![3; DISK / 2]).unwrap();
                [vec![3; DISK / 2], vec![0; DISK / 2]].concat()
            }
        };
        change(&top, "base", format, &mut content);
        let mut told = Vec::new();
        let report = commit(&top, &CommitOptions::default(), &mut |done, total| {
            told.push((done, total));
            ControlFlow::Continue(())
        });
        let report = report.unwrap();
        assert_eq!(report.backing, base);
        assert_eq!(told.last(), Some(&(DISK as u64, DISK as u64)));
        let overlay = Image::open_chain(&top, &ImageOptions::read_only()).unwrap();
        assert_reads(overlay.as_ref(), &content);
        drop(overlay);
        let layer = qcow2::open_layer(&base, format, &ImageOptions::read_only()).unwrap();
        assert_reads(layer.as_ref(), &content);
        if format == ImageFormat::Qcow2 {
            assert_clean(layer.storage());
        }
    }
}

#[test]
fn a_backing_file_that_belongs_to_a_snapshot_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let (base, top) = (
        directory.path().join("base.qcow2"),
        directory.path().join("top.qcow2"),
    );
    drop(disk(&base));
    let snapshot = directory.path().join("out.vmsnap");
    let owner = qcow2::FrozenOwner {
        snapshot: snapshot.clone(),
        file_id: [7; 16],
    };
    let mut options = CreateOptions::overlay(DISK as u64, Backing::new("base.qcow2", ImageFormat::Qcow2));
    options.frozen_backing = Some(FrozenBacking { owners: vec![owner] });
    create(&top, &options);
    let mut progress = |_, _| ControlFlow::Continue(());
    fs::write(&snapshot, b"a snapshot").unwrap();
    let refused = commit(&top, &CommitOptions::default(), &mut progress);
    assert!(
        matches!(refused, Err(Error::Usage(Usage::BackingBelongsToSnapshot { snapshot: named })) if named == snapshot)
    );
    commit(
        &top,
        &CommitOptions {
            force: true,
            ..CommitOptions::default()
        },
        &mut progress,
    )
    .unwrap();
    commit(
        &top,
        &CommitOptions {
            owner_exists: |owner| owner.file_id != [7; 16],
            ..CommitOptions::default()
        },
        &mut progress,
    )
    .unwrap();
    fs::remove_file(snapshot).unwrap();
    commit(&top, &CommitOptions::default(), &mut progress).unwrap();
}

#[test]
fn what_cannot_be_committed_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (base, top) = (
        directory.path().join("base.qcow2"),
        directory.path().join("top.qcow2"),
    );
    let mut progress = |_, _| ControlFlow::Continue(());
    drop(disk(&base));
    let alone = commit(&base, &CommitOptions::default(), &mut progress);
    assert!(matches!(alone, Err(Error::Usage(Usage::NoBacking))));

    let larger = CreateOptions::overlay(DISK as u64 * 2, Backing::new("base.qcow2", ImageFormat::Qcow2));
    create(&top, &larger);
    let too_large = commit(&top, &CommitOptions::default(), &mut progress);
    assert!(matches!(
        too_large,
        Err(Error::Usage(Usage::BackingTooSmall { .. }))
    ));

    let image = overlay(&top, "base.qcow2", ImageFormat::Qcow2);
    let in_use = commit(&top, &CommitOptions::default(), &mut progress);
    assert!(matches!(in_use, Err(Error::InUse { .. })));
    image.create_snapshot("one").unwrap();
    drop(image);
    let snapshots = commit(&top, &CommitOptions::default(), &mut progress);
    assert!(matches!(
        snapshots,
        Err(Error::Usage(Usage::SnapshotsNeedBacking))
    ));
}

#[test]
fn a_raw_layer_reads_zeros_beyond_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("short.raw");
    fs::write(&path, [4; 700]).unwrap();
    let raw = RawImage::open(&path, Access::ReadOnly, Cache::Writeback).unwrap();
    let mut content = vec![0; 2000];
    content[..700].fill(4);
    assert_reads(&raw, &content);
    assert_eq!(raw.is_allocated(0, 2000).unwrap(), (true, 700));
    assert_eq!(raw.is_allocated(700, 2000).unwrap(), (false, 2000));
    assert_eq!(raw.holds_data(5000, 10).unwrap(), (false, 10));
}
