//! Real disks in a snapshot: what each mode keeps is what the disks held at the capture point, and nothing else changes.

mod support;

use std::fs;
use std::path::Path;

use snapshot::{
    DisksMode, DisksRestore, KnownFingerprints, RestoreOptions, SaveControl, SaveMode, SaveOptions,
    SaveReport, Subject, read_disks, read_machine, restore_disks, save,
};
use support::live::{LiveMachine, LiveScene, assert_restorable, expected, numbers, written_at};
use support::qemu::{assert_checked, qemu_img, read_by_qemu};

fn options(mode: SaveMode, disks: DisksMode) -> SaveOptions {
    SaveOptions {
        mode,
        disks,
        ..SaveOptions::default()
    }
}

fn take(scene: &LiveScene, name: &str, options: &SaveOptions) -> SaveReport {
    let report = save(&scene.machine, scene.path(name), options, &SaveControl::new()).unwrap();
    scene.machine.wait_for_writes(300);
    scene.machine.assert_intact();
    report
}

#[test]
fn disks_of_mixed_formats_are_frozen_at_the_instant_of_memory() {
    let test = "disks_of_mixed_formats_are_frozen_at_the_instant_of_memory";
    let Some(scene) = LiveScene::set(test, &["a.qcow2", "b.raw"]) else {
        return;
    };
    let modes = [SaveMode::Async, SaveMode::Stop, SaveMode::Async];
    for (number, mode) in modes.into_iter().enumerate() {
        let options = options(mode, DisksMode::Overlay);
        let report = take(&scene, &format!("{number}.vmsnap"), &options);
        let figures = report.statistics.disks;
        assert_eq!((figures.count, figures.bytes, figures.internal_us), (2, 0, 0));
        assert_eq!((report.disks[0].depth, report.disks[2].depth), (number + 2, 1));
    }
    let images = [
        "0.vmsnap.a.qcow2",
        "1.vmsnap.a.qcow2",
        "1.vmsnap.b.qcow2",
        "2.vmsnap.a.qcow2",
        "2.vmsnap.b.qcow2",
        "a.qcow2",
        "b.raw",
        "b.raw.qcow2",
        "cd.qcow2",
    ];
    let snapshots = ["0.vmsnap", "1.vmsnap", "2.vmsnap"];
    let mut names = [&images[..], &snapshots].concat();
    names.sort_unstable();
    assert_eq!(scene.files(), names);
    // The second reader: each frozen image, read from the top of its chain.
    for (number, name) in ["0.vmsnap.a.qcow2", "1.vmsnap.a.qcow2"].iter().enumerate() {
        let written = written_at(&scene.path(snapshots[number]));
        assert_checked(&scene.path(name), false);
        if let Some(content) = read_by_qemu("qcow2", &scene.path(name), &scene.path("scratch")) {
            assert!(numbers(&content) == expected(0, 2, written), "{name}");
        }
    }
    for snapshot in snapshots {
        drop(assert_restorable(&scene.path(snapshot)));
    }
    let file = snapfile::Snapshot::open(scene.path("1.vmsnap")).unwrap();
    let table = read_disks(&file).unwrap().disks;
    assert_eq!(
        (table[1].format.as_str(), table[1].mode, table[1].layers.len()),
        ("qcow2", DisksMode::Overlay, 2)
    );
    assert_eq!(
        (table[2].mode, table[2].readonly, table[2].layers.len()),
        (DisksMode::None, true, 1)
    );
    let layers = &read_machine(&file).unwrap().disk_layers["b"];
    assert_eq!(layers[0].path, Path::new("1.vmsnap.b.qcow2"));
    assert_eq!(
        (layers[1].path.as_path(), layers[1].format.as_str()),
        (Path::new("b.raw"), "raw")
    );
}

#[test]
fn internal_snapshots_are_of_the_instant_of_memory_and_can_be_gone_back_to() {
    let test = "internal_snapshots_are_of_the_instant_of_memory_and_can_be_gone_back_to";
    let Some(scene) = LiveScene::set(test, &["a.qcow2", "b.qcow2"]) else {
        return;
    };
    for (name, mode) in [("0.vmsnap", SaveMode::Async), ("1.vmsnap", SaveMode::Stop)] {
        let report = take(&scene, name, &options(mode, DisksMode::Internal));
        assert_eq!(
            (report.statistics.disks.count, report.statistics.disks.switch_us),
            (2, 0)
        );
        assert_eq!(report.disks[0].mode, DisksMode::Internal);
        assert_eq!(report.disks[0].depth, 1);
    }
    // A copy can be brought back beside the machine, which has the images locked and writes to them.
    drop(assert_restorable(&scene.path("0.vmsnap")));
    scene.machine.wait_for_writes(300);
    scene.machine.assert_intact();
    let LiveScene {
        machine, directory, ..
    } = scene;
    drop(machine);
    let path = |name: &str| directory.path().join(name);
    assert_checked(&path("a.qcow2"), false);
    if let Some(output) = qemu_img(&["snapshot", "-l"], &path("a.qcow2")) {
        let list = String::from_utf8(output.stdout).unwrap();
        assert!(list.contains("0.vmsnap") && list.contains("1.vmsnap"), "{list}");
    }
    for name in ["0.vmsnap", "1.vmsnap"] {
        drop(assert_restorable(&path(name)));
    }
    let in_place = RestoreOptions {
        disks: DisksRestore::InPlace,
        ..RestoreOptions::default()
    };
    let disks = restore_disks(path("0.vmsnap"), &in_place).unwrap();
    let written = written_at(&path("0.vmsnap"));
    let machine = LiveMachine::start(&disks, written, |_| {});
    machine.wait_for_writes(300);
    machine.assert_intact();
    drop((machine, disks));
    assert_checked(&path("b.qcow2"), false);
    drop(assert_restorable(&path("1.vmsnap")));
}

#[test]
fn what_is_restored_can_be_saved_and_its_chain_restored() {
    let test = "what_is_restored_can_be_saved_and_its_chain_restored";
    let Some(scene) = LiveScene::set(test, &["a.qcow2", "b.raw"]) else {
        return;
    };
    let overlay = options(SaveMode::Async, DisksMode::Overlay);
    take(&scene, "first.vmsnap", &overlay);
    let before = scene.files();
    let restored = assert_restorable(&scene.path("first.vmsnap"));
    assert_eq!(scene.files(), before, "a restored disk has a name");
    let twin = LiveMachine::start(&restored, written_at(&scene.path("first.vmsnap")), |_| {});
    for name in ["second.vmsnap", "third.vmsnap"] {
        twin.wait_for_writes(300);
        save(&twin, scene.path(name), &overlay, &SaveControl::new()).unwrap();
    }
    twin.wait_for_writes(300);
    twin.assert_intact();
    drop((twin, restored));
    assert!(scene.path("second.vmsnap.a.qcow2").exists());
    for name in ["first.vmsnap", "second.vmsnap", "third.vmsnap"] {
        drop(assert_restorable(&scene.path(name)));
    }
    assert_checked(&scene.path("third.vmsnap.b.qcow2"), false);
    scene.machine.assert_intact();
}

#[test]
fn a_layer_is_read_once_however_many_snapshots_it_is_in() {
    let test = "a_layer_is_read_once_however_many_snapshots_it_is_in";
    let Some(scene) = LiveScene::set(test, &["a.qcow2"]) else {
        return;
    };
    let overlay = options(SaveMode::Async, DisksMode::Overlay);
    let length = |name: &str| fs::metadata(scene.path(name)).unwrap().len();
    let read = |name: &str| take(&scene, name, &overlay).statistics.disks.fingerprint_bytes;
    assert_eq!(read("0.vmsnap"), length("0.vmsnap.a.qcow2") + length("cd.qcow2"));
    assert_eq!(read("1.vmsnap"), length("1.vmsnap.a.qcow2"));
    // A restored machine knows what it was restored from.
    let known = KnownFingerprints::default();
    let restoring = RestoreOptions {
        fingerprints: known.clone(),
        ..RestoreOptions::default()
    };
    let disks = restore_disks(scene.path("1.vmsnap"), &restoring).unwrap();
    let twin = LiveMachine::start(&disks, written_at(&scene.path("1.vmsnap")), |_| {});
    let options = SaveOptions {
        fingerprints: known,
        ..options(SaveMode::Stop, DisksMode::Overlay)
    };
    let report = save(&twin, scene.path("2.vmsnap"), &options, &SaveControl::new()).unwrap();
    let figures = report.statistics.disks;
    assert_eq!(figures.fingerprint_bytes, length("2.vmsnap.a.qcow2"));
}

#[test]
fn frozen_images_have_the_names_that_were_asked_for() {
    let Some(scene) = LiveScene::set("frozen_images_have_the_names_that_were_asked_for", &["a.qcow2"]) else {
        return;
    };
    fs::create_dir(scene.path("old")).unwrap();
    let named = SaveOptions {
        frozen: [("a".to_owned(), scene.path("old/monday.qcow2"))].into(),
        ..options(SaveMode::Async, DisksMode::Overlay)
    };
    let report = take(&scene, "0.vmsnap", &named);
    let frozen = scene.path("old/monday.qcow2").canonicalize().unwrap();
    assert_eq!(
        report.disks[0].file.as_ref().unwrap().canonicalize().unwrap(),
        frozen
    );
    // Without a name of its own, one that is taken gets a number.
    fs::write(scene.path("1.vmsnap.a.qcow2"), "in the way").unwrap();
    take(&scene, "1.vmsnap", &options(SaveMode::Async, DisksMode::Overlay));
    assert!(scene.path("1.vmsnap.a.1.qcow2").exists());
    for name in ["0.vmsnap", "1.vmsnap"] {
        drop(assert_restorable(&scene.path(name)));
    }
    assert!(scene.machine.is_running());
}
