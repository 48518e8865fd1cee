//! The order of a save, and all the ways out of it, on plain memory whose writers never rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use snapshot::{
    CaptureOptions, ChunkSize, Codec, ErrorKind, Phase, PlainMemory, RunSwitch, SaveControl, SaveMode,
    SaveOptions, SaveReport, Subject, WriterOptions, save,
};
use tempfile::TempDir;

const MEMORY_BYTES: u64 = 32 << 20;
const WRITERS: usize = 2;

/// Writers at work, and a directory for their snapshots.
struct Scene {
    memory: PlainMemory,
    directory: TempDir,
}

impl Scene {
    /// Sets the scene, unless write protection cannot be had here.
    fn set(test: &str) -> Option<Self> {
        if !Path::new("/dev/userfaultfd").exists() {
            eprintln!("SKIPPED: {test}: there is no /dev/userfaultfd");
            return None;
        }
        let memory = PlainMemory::new(MEMORY_BYTES, WRITERS).unwrap();
        memory.resume().unwrap();
        let scene = Self {
            memory,
            directory: TempDir::new().unwrap(),
        };
        scene.wait_for_steps(20_000);
        Some(scene)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn wait_for_steps(&self, more: u64) {
        let target = self.memory.steps() + more;
        while self.memory.steps() < target {
            thread::yield_now();
        }
    }

    fn save(&self, name: &str, options: &SaveOptions) -> SaveReport {
        save(&self.memory, self.path(name), options, &SaveControl::new()).unwrap()
    }

    fn assert_unharmed(&self) {
        assert!(self.memory.is_running());
        self.wait_for_steps(1000);
        assert_eq!(
            fs::read_dir(self.directory.path()).unwrap().count(),
            0,
            "something was left behind"
        );
        self.save("afterwards", &SaveOptions::default());
        assert_clean(&self.path("afterwards"));
    }
}

#[track_caller]
fn assert_clean(path: &Path) {
    let report = PlainMemory::check(path).unwrap();
    assert_eq!(report.mismatches, Vec::<String>::new());
    assert_eq!(report.pages_checked, MEMORY_BYTES / 4096);
}

fn stop() -> SaveOptions {
    SaveOptions {
        mode: SaveMode::Stop,
        ..SaveOptions::default()
    }
}

#[test]
fn memory_is_saved_as_of_one_instant_while_it_is_written() {
    let Some(scene) = Scene::set("memory_is_saved_as_of_one_instant_while_it_is_written") else {
        return;
    };
    for round in 0..4 {
        let before = scene.memory.steps();
        let report = scene.save("out", &SaveOptions::default());
        assert_clean(&scene.path("out"));
        let saved: u64 = PlainMemory::check(scene.path("out")).unwrap().steps.iter().sum();
        assert!(
            (before..scene.memory.steps()).contains(&saved),
            "round {round}: the capture point is outside"
        );
        assert!(!report.statistics.was_paused);
        assert_eq!(report.file_bytes, fs::metadata(scene.path("out")).unwrap().len());
    }
}

#[test]
fn both_modes_and_all_encodings_of_paused_memory_have_the_same_root_digest() {
    let Some(scene) = Scene::set("both_modes_and_all_encodings_of_paused_memory") else {
        return;
    };
    scene.memory.pause().unwrap();
    let moving = scene.save("async", &SaveOptions::default());
    let lz4 = WriterOptions {
        codec: Codec::Lz4,
        chunk_size: ChunkSize::new(4096).unwrap(),
        ..WriterOptions::default()
    };
    let stopped = scene.save(
        "stop",
        &SaveOptions {
            writer: lz4,
            ..stop()
        },
    );
    assert_eq!(moving.root_digest, stopped.root_digest);
    assert!(moving.statistics.was_paused && stopped.statistics.was_paused);
    assert_eq!(moving.statistics.downtime_us, 0);
    assert!(
        !scene.memory.is_running(),
        "a save resumed what its user had paused"
    );
}

#[test]
fn a_stopped_save_holds_the_writers_and_lets_them_go() {
    let Some(scene) = Scene::set("a_stopped_save_holds_the_writers_and_lets_them_go") else {
        return;
    };
    let report = scene.save("out", &stop());
    assert_eq!(report.statistics.capture.faults_draining, 0);
    assert_clean(&scene.path("out"));
    scene.wait_for_steps(1000);
}

#[test]
fn restored_writers_go_on_where_they_were() {
    let Some(scene) = Scene::set("restored_writers_go_on_where_they_were") else {
        return;
    };
    scene.save("out", &SaveOptions::default());
    let restored = PlainMemory::restore(scene.path("out")).unwrap();
    let saved: u64 = PlainMemory::check(scene.path("out")).unwrap().steps.iter().sum();
    assert_eq!(restored.steps(), saved);
    let again = scene.path("again");
    save(&restored, &again, &stop(), &SaveControl::new()).unwrap();
    assert_eq!(
        PlainMemory::check(&again).unwrap().steps,
        PlainMemory::check(scene.path("out")).unwrap().steps
    );
    assert_clean(&again);
}

#[test]
fn a_child_stores_less_than_its_parent_and_reads_the_same() {
    let Some(scene) = Scene::set("a_child_stores_less_than_its_parent_and_reads_the_same") else {
        return;
    };
    scene.memory.pause().unwrap();
    let parent = scene.save("parent", &SaveOptions::default());
    let options = SaveOptions {
        parent: Some(scene.path("parent")),
        ..SaveOptions::default()
    };
    let child = scene.save("child", &options);
    assert_eq!(child.root_digest, parent.root_digest);
    assert!(
        child.chunks.parent > 0 && child.stored_bytes < parent.stored_bytes,
        "{child:?}"
    );
    assert_clean(&scene.path("child"));
}

#[test]
fn a_child_cannot_take_the_place_of_what_it_needs() {
    let Some(scene) = Scene::set("a_child_cannot_take_the_place_of_what_it_needs") else {
        return;
    };
    scene.save("grandparent", &SaveOptions::default());
    let child_of = |name: &str| SaveOptions {
        parent: Some(scene.path(name)),
        ..SaveOptions::default()
    };
    scene.save("parent", &child_of("grandparent"));
    for needed in ["parent", "grandparent"] {
        let options = child_of("parent");
        let error = save(&scene.memory, scene.path(needed), &options, &SaveControl::new()).unwrap_err();
        assert!(matches!(error, snapshot::Error::ReplacesParent { .. }), "{error}");
    }
    scene.save("child", &child_of("parent"));
    assert_clean(&scene.path("child"));
}

#[test]
fn a_bad_path_fails_before_anything_is_protected() {
    let Some(scene) = Scene::set("a_bad_path_fails_before_anything_is_protected") else {
        return;
    };
    let control = SaveControl::new();
    let path = scene.path("missing").join("out");
    let error = save(&scene.memory, &path, &SaveOptions::default(), &control).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert_eq!(control.progress().chunks_done, 0);
    scene.assert_unharmed();
}

#[test]
fn a_cancel_before_the_end_leaves_no_file() {
    let Some(scene) = Scene::set("a_cancel_before_the_end_leaves_no_file") else {
        return;
    };
    for mode in [SaveMode::Async, SaveMode::Stop] {
        // Slow enough that the cancel comes while chunks are being written.
        let writer = WriterOptions {
            codec: Codec::Zstd { level: 19 },
            ..WriterOptions::default()
        };
        let options = SaveOptions {
            mode,
            writer,
            ..SaveOptions::default()
        };
        let control = SaveControl::new();
        let result = thread::scope(|scope| {
            let saving = scope.spawn(|| save(&scene.memory, scene.path("out"), &options, &control));
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
        assert_eq!(control.progress().phase, Phase::Finished);
        assert_eq!(fs::read_dir(scene.directory.path()).unwrap().count(), 0);
    }
    scene.assert_unharmed();
}

#[test]
fn a_cancel_before_the_begin_is_heeded() {
    let Some(scene) = Scene::set("a_cancel_before_the_begin_is_heeded") else {
        return;
    };
    let control = SaveControl::new();
    control.cancel();
    let error = save(
        &scene.memory,
        scene.path("out"),
        &SaveOptions::default(),
        &control,
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    scene.assert_unharmed();
}

#[test]
fn pressure_under_the_fail_policy_gives_the_snapshot_up() {
    let Some(scene) = Scene::set("pressure_under_the_fail_policy_gives_the_snapshot_up") else {
        return;
    };
    let options = SaveOptions {
        capture: CaptureOptions {
            on_pressure: snapshot::Pressure::Fail,
            buffer_bytes: 1,
            ..CaptureOptions::default()
        },
        writer: WriterOptions {
            codec: Codec::Zstd { level: 19 },
            ..WriterOptions::default()
        },
        ..SaveOptions::default()
    };
    let error = save(&scene.memory, scene.path("out"), &options, &SaveControl::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Abandoned, "{error}");
    scene.assert_unharmed();
}

/// A save that holds the writers for long, while `action` is done through the switch.
fn during_a_stopped_save(scene: &Scene, action: impl FnOnce(&RunSwitch)) {
    let switch = Arc::new(RunSwitch::new());
    let control = SaveControl::with_switch(Arc::clone(&switch));
    let writer = WriterOptions {
        codec: Codec::Zstd { level: 12 },
        ..WriterOptions::default()
    };
    let options = SaveOptions { writer, ..stop() };
    thread::scope(|scope| {
        let saving = scope.spawn(|| save(&scene.memory, scene.path("out"), &options, &control));
        while control.progress().phase != Phase::Draining {
            assert!(!saving.is_finished(), "the save ended too early");
            thread::yield_now();
        }
        action(&switch);
        assert!(
            !scene.memory.is_running() || saving.is_finished(),
            "the writers run inside a stopped save"
        );
        saving.join().unwrap().unwrap();
    });
    assert_clean(&scene.path("out"));
}

#[test]
fn a_users_pause_outlives_the_save_that_holds_the_machine() {
    let Some(scene) = Scene::set("a_users_pause_outlives_the_save_that_holds_the_machine") else {
        return;
    };
    during_a_stopped_save(&scene, |switch| switch.pause(&scene.memory).unwrap());
    assert!(!scene.memory.is_running());
}

#[test]
fn a_users_resume_waits_for_the_save_that_holds_the_machine() {
    let Some(scene) = Scene::set("a_users_resume_waits_for_the_save_that_holds_the_machine") else {
        return;
    };
    scene.memory.pause().unwrap();
    during_a_stopped_save(&scene, |switch| switch.resume(&scene.memory).unwrap());
    assert!(scene.memory.is_running());
}
