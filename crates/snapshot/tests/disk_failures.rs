//! Disks that fail a snapshot: where the failure can be undone it is, and where not, the error says what is left.

mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use snapshot::{
    Codec, DiskError, DisksMode, Error, ErrorKind, Phase, SaveControl, SaveMode, SaveOptions, Subject,
    WriterOptions, save,
};
use support::faulty::{Fault, Faulty};
use support::live::{LiveScene, assert_restorable};
use support::qemu::{assert_checked, qemu_img};

fn options(disks: DisksMode) -> SaveOptions {
    SaveOptions {
        disks,
        ..SaveOptions::default()
    }
}

/// The refusal of a save, with the disk that it names.
#[track_caller]
fn refusal(scene: &LiveScene, options: &SaveOptions) -> (String, DiskError) {
    let refused = save(
        &scene.machine,
        scene.path("out.vmsnap"),
        options,
        &SaveControl::new(),
    );
    match refused.unwrap_err() {
        Error::Disk { id, source } => (id, source),
        error => panic!("{error}"),
    }
}

/// Insists that the scene is as it was, and that a snapshot can be taken of it.
fn assert_unharmed(scene: LiveScene, files: &[String]) {
    assert_eq!(scene.files(), files, "something was left behind");
    assert!(scene.machine.is_running());
    scene.machine.assert_intact();
    let options = options(DisksMode::Overlay);
    save(
        &scene.machine,
        scene.path("after.vmsnap"),
        &options,
        &SaveControl::new(),
    )
    .unwrap();
    scene.machine.wait_for_writes(100);
    drop(assert_restorable(&scene.path("after.vmsnap")));
}

#[test]
fn a_disk_that_the_mode_is_not_for_is_refused_by_name_and_nothing_is_left() {
    let test = "a_disk_that_the_mode_is_not_for_is_refused_by_name_and_nothing_is_left";
    let Some(scene) = LiveScene::set(test, &["a.qcow2", "b.raw"]) else {
        return;
    };
    let files = scene.files();
    for (mode, disk) in [(DisksMode::Internal, "b"), (DisksMode::Copy, "a")] {
        let (id, error) = refusal(&scene, &options(mode));
        assert!(matches!(error, DiskError::WrongFormat { .. }), "{error}");
        assert_eq!(id, disk);
    }
    assert_unharmed(scene, &files);
}

#[test]
fn a_name_that_cannot_be_given_is_refused_before_the_guest_is_held() {
    let test = "a_name_that_cannot_be_given_is_refused_before_the_guest_is_held";
    let Some(scene) = LiveScene::set(test, &["a.qcow2", "b.raw"]) else {
        return;
    };
    let files = scene.files();
    let named = |id: &str, path: &Path| SaveOptions {
        frozen: [(id.to_owned(), path.to_owned())].into(),
        ..options(DisksMode::Overlay)
    };
    let (id, error) = refusal(&scene, &named("a", &scene.path("cd.qcow2")));
    assert!(
        id == "a" && matches!(error, DiskError::FrozenTaken { .. }),
        "{error}"
    );
    let (id, error) = refusal(&scene, &named("b", &scene.path("other.raw")));
    assert!(
        id == "b" && matches!(error, DiskError::KeepsName { .. }),
        "{error}"
    );
    let (id, error) = refusal(&scene, &named("z", &scene.path("z.qcow2")));
    assert!(id == "z" && matches!(error, DiskError::Unknown), "{error}");
    let (id, error) = refusal(&scene, &named("a", &scene.path("no/such/place.qcow2")));
    assert!(id == "a" && matches!(error, DiskError::Overlay { .. }), "{error}");
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    let (id, error) = refusal(&scene, &named("a", &elsewhere.path().join("x.qcow2")));
    assert!(id == "a" && matches!(error, DiskError::Overlay { .. }), "{error}");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    assert_unharmed(scene, &files);
}

#[test]
fn a_snapshot_never_takes_the_place_of_a_disk() {
    let Some(scene) = LiveScene::set("a_snapshot_never_takes_the_place_of_a_disk", &["a.qcow2"]) else {
        return;
    };
    let files = scene.files();
    let options = options(DisksMode::Overlay);
    let refused = save(
        &scene.machine,
        scene.path("a.qcow2"),
        &options,
        &SaveControl::new(),
    )
    .unwrap_err();
    let in_use = matches!(
        refused,
        Error::Disk {
            source: DiskError::InUse { .. },
            ..
        }
    );
    assert!(in_use, "{refused}");
    assert_unharmed(scene, &files);
}

/// A scene whose second disk fails so, and the error of a snapshot of it.
fn with_fault(test: &str, fault: Fault, disks: DisksMode) -> Option<(LiveScene, Error, Vec<String>)> {
    let mut scene = LiveScene::set(test, &["a.qcow2", "b.qcow2"])?;
    let files = scene.files();
    let disk = Arc::clone(&scene.machine.sources[1]);
    scene.machine.sources[1] = Arc::new(Faulty {
        disk: Arc::clone(&disk),
        fault,
    });
    let path = scene.path("out.vmsnap");
    let error = save(&scene.machine, path, &options(disks), &SaveControl::new()).unwrap_err();
    scene.machine.sources[1] = disk;
    assert!(scene.machine.is_running());
    assert!(!scene.path("out.vmsnap").exists());
    Some((scene, error, files))
}

#[test]
fn a_failure_before_the_capture_point_leaves_no_overlay() {
    let test = "a_failure_before_the_capture_point_leaves_no_overlay";
    for fault in [Fault::Full, Fault::Deep, Fault::Prepare] {
        let Some((scene, error, files)) = with_fault(test, fault, DisksMode::Overlay) else {
            return;
        };
        let Error::Disk { id, source } = error else {
            panic!("{error}")
        };
        let expected = match fault {
            Fault::Full => matches!(source, DiskError::WaitsForRoom),
            Fault::Deep => matches!(source, DiskError::TooDeep { depth: 64, limit: 64 }),
            _ => matches!(source, DiskError::Overlay { .. }),
        };
        assert!(id == "b" && expected, "{source}");
        assert_unharmed(scene, &files);
    }
}

#[test]
fn a_failure_behind_the_first_switch_names_the_overlays_that_are_left() {
    let test = "a_failure_behind_the_first_switch_names_the_overlays_that_are_left";
    for (fault, disks_left) in [(Fault::Switch, 1), (Fault::Settle, 2)] {
        let Some((scene, error, mut files)) = with_fault(test, fault, DisksMode::Overlay) else {
            return;
        };
        let Error::LeftOverlays { left, source } = error else {
            panic!("{error}")
        };
        assert_eq!(left.len(), disks_left);
        assert_eq!((left[0].disk.as_str(), left[0].frozen.exists()), ("a", true));
        assert!(
            matches!(*source, Error::Disk { ref id, .. } if id == "b"),
            "{source}"
        );
        files.push("out.vmsnap.a.qcow2".to_owned());
        if disks_left == 2 {
            files.push("out.vmsnap.b.qcow2".to_owned());
        }
        files.sort();
        assert_checked(&scene.path("out.vmsnap.a.qcow2"), false);
        assert_unharmed(scene, &files);
    }
}

#[test]
fn an_internal_snapshot_is_deleted_again_when_another_disk_has_none() {
    let test = "an_internal_snapshot_is_deleted_again_when_another_disk_has_none";
    let Some((scene, error, files)) = with_fault(test, Fault::Create, DisksMode::Internal) else {
        return;
    };
    assert!(
        matches!(error, Error::Disk { ref id, .. } if id == "b"),
        "{error}"
    );
    if let Some(output) = qemu_img(&["snapshot", "-U", "-l"], &scene.path("a.qcow2")) {
        let list = String::from_utf8(output.stdout).unwrap();
        assert!(!list.contains("out.vmsnap"), "{list}");
    }
    assert_unharmed(scene, &files);
}

/// Gives a snapshot up while memory is written.
fn cancelled(test: &str, disks: DisksMode) -> Option<(LiveScene, Error, Vec<String>)> {
    let scene = LiveScene::set(test, &["a.qcow2", "b.qcow2"])?;
    let files = scene.files();
    let options = SaveOptions {
        mode: SaveMode::Async,
        writer: WriterOptions {
            codec: Codec::Zstd { level: 19 },
            ..WriterOptions::default()
        },
        ..options(disks)
    };
    let control = SaveControl::new();
    let path = scene.path("out.vmsnap");
    let result = thread::scope(|scope| {
        let saving = scope.spawn(|| save(&scene.machine, &path, &options, &control));
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
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    Some((scene, error, files))
}

#[test]
fn a_cancel_behind_the_capture_point_loses_nothing_and_names_what_is_left() {
    let test = "a_cancel_behind_the_capture_point_loses_nothing_and_names_what_is_left";
    let Some((scene, error, mut files)) = cancelled(test, DisksMode::Overlay) else {
        return;
    };
    let Error::LeftOverlays { left, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(left.len(), 2);
    assert!(
        error.to_string().contains("disk a goes on in an overlay over /"),
        "{error}"
    );
    files.extend(["out.vmsnap.a.qcow2", "out.vmsnap.b.qcow2"].map(str::to_owned));
    files.sort();
    assert_unharmed(scene, &files);
    let Some((scene, _, files)) = cancelled(test, DisksMode::Internal) else {
        return;
    };
    if let Some(output) = qemu_img(&["snapshot", "-U", "-l"], &scene.path("b.qcow2")) {
        assert!(!String::from_utf8(output.stdout).unwrap().contains("out.vmsnap"));
    }
    assert_unharmed(scene, &files);
}
