//! Disks in a snapshot: copied as of the capture point, beside memory whose writers never rest.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use snapshot::{
    DisksMode, ErrorKind, Phase, PlainMemory, SaveControl, SaveMode, SaveOptions, Subject, WriterOptions,
    read_disks, read_machine, save,
};
use support::DiskScene;

const MEMORY_BYTES: u64 = 32 << 20;

fn options(mode: SaveMode, disks: DisksMode) -> SaveOptions {
    SaveOptions {
        mode,
        disks,
        ..SaveOptions::default()
    }
}

#[test]
fn a_disk_is_copied_as_it_was_when_it_was_held() {
    let Some(scene) = DiskScene::set("a_disk_is_copied_as_it_was_when_it_was_held", MEMORY_BYTES) else {
        return;
    };
    for mode in [SaveMode::Async, SaveMode::Stop] {
        let report = save(
            &scene.subject,
            scene.path("out"),
            &options(mode, DisksMode::Copy),
            &SaveControl::new(),
        );
        let report = report.unwrap();
        let copied = fs::read(scene.path("out.data.raw")).unwrap();
        let held = scene.held_content("data");
        assert!(copied == held, "the copy is not as of the capture point");
        assert!(scene.is_free("data"), "the disk is still held");
        assert_eq!(
            report.statistics.disks.count, 1,
            "only the disk that the guest can write"
        );
        assert_eq!(report.statistics.disks.bytes, held.len() as u64);
        assert_eq!(
            PlainMemory::check(scene.path("out")).unwrap().mismatches,
            Vec::<String>::new()
        );

        let file = snapfile::Snapshot::open(scene.path("out")).unwrap();
        let table = read_disks(&file).unwrap().disks;
        assert_eq!(table[0].layers[0].0, *blake3::hash(&held).as_bytes());
        assert_eq!((table[0].mode, table[1].mode), (DisksMode::Copy, DisksMode::None));
        assert_eq!(
            (table[1].id.as_str(), table[1].readonly, table[1].layers.len()),
            ("cd", true, 1)
        );
        let record = read_machine(&file).unwrap();
        assert_eq!(record.disk_layers["data"][0].path, Path::new("out.data.raw"));
    }
    assert_eq!(scene.files(), ["cd", "data", "out", "out.data.raw"]);
}

#[test]
fn without_copies_disks_are_only_recorded() {
    let Some(scene) = DiskScene::set("without_copies_disks_are_only_recorded", MEMORY_BYTES) else {
        return;
    };
    let options = options(SaveMode::Async, DisksMode::None);
    let report = save(&scene.subject, scene.path("out"), &options, &SaveControl::new()).unwrap();
    assert_eq!(report.statistics.disks.count, 0);
    assert_eq!(scene.files(), ["cd", "data", "out"]);
    let table = read_disks(&snapfile::Snapshot::open(scene.path("out")).unwrap()).unwrap();
    assert_eq!((table.disks[0].layers.len(), table.disks[1].layers.len()), (0, 0));
    assert_eq!(
        scene.holds("data"),
        0,
        "a disk that is not copied need not be held"
    );
}

#[test]
fn the_root_digest_is_of_the_disks_content_not_of_its_names() {
    let Some(scene) = DiskScene::set("the_root_digest_is_of_the_disks_content", MEMORY_BYTES) else {
        return;
    };
    scene.subject.pause().unwrap();
    scene.rest("data");
    let digest = |name| {
        let options = options(SaveMode::Async, DisksMode::Copy);
        let report = save(&scene.subject, scene.path(name), &options, &SaveControl::new());
        report.unwrap().root_digest
    };
    let first = digest("one");
    assert_eq!(first, digest("two"));
    scene.disk("data").write_all_at(b"changed", 0).unwrap();
    assert_ne!(first, digest("three"));
}

#[test]
fn a_cancel_removes_the_copies_and_frees_the_disks() {
    let Some(scene) = DiskScene::set("a_cancel_removes_the_copies_and_frees_the_disks", MEMORY_BYTES) else {
        return;
    };
    let options = SaveOptions {
        writer: WriterOptions {
            codec: snapshot::Codec::Zstd { level: 19 },
            ..WriterOptions::default()
        },
        ..options(SaveMode::Async, DisksMode::Copy)
    };
    let control = SaveControl::new();
    let result = thread::scope(|scope| {
        let saving = scope.spawn(|| save(&scene.subject, scene.path("out"), &options, &control));
        while control.progress().phase != Phase::Draining {
            assert!(
                !saving.is_finished(),
                "the save ended before it could be cancelled"
            );
            thread::yield_now();
        }
        control.cancel();
        saving.join().unwrap()
    });
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(scene.files(), ["cd", "data"]);
    assert!(scene.is_free("data") && scene.subject.is_running());
}

#[test]
fn a_disk_that_cannot_be_copied_fails_the_snapshot_by_its_name() {
    let Some(scene) = DiskScene::set("a_disk_that_cannot_be_copied_fails_the_snapshot", MEMORY_BYTES) else {
        return;
    };
    // Shorter at the capture point than when the save began: reading ends too early.
    scene.shrink_when_held("data");
    let options = options(SaveMode::Async, DisksMode::Copy);
    let error = save(&scene.subject, scene.path("out"), &options, &SaveControl::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert_eq!(error.to_string(), "disk data");
    assert_eq!(scene.files(), ["cd", "data"]);
    assert!(scene.is_free("data") && scene.subject.is_running());
}

#[test]
fn a_copy_never_takes_the_place_of_a_disk_in_use() {
    let Some(scene) = DiskScene::set("a_copy_never_takes_the_place_of_a_disk_in_use", MEMORY_BYTES) else {
        return;
    };
    fs::hard_link(scene.path("data"), scene.path("out.data.raw")).unwrap();
    let options = options(SaveMode::Async, DisksMode::Copy);
    let error = save(&scene.subject, scene.path("out"), &options, &SaveControl::new()).unwrap_err();
    assert!(matches!(
        error,
        snapshot::Error::Disk {
            source: snapshot::DiskError::InUse { .. },
            ..
        }
    ));
    assert_eq!(scene.files(), ["cd", "data", "out.data.raw"]);
}
