//! What crashes and failures leave of images that QEMU made, judged by `qemu-img check` (the claim of iotest 217).

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use qcow2::repair::{Repair, repair};
use qcow2::replay::{FailingStorage, Fault, Recorder};
use qcow2::{MemoryStorage, Metadata, Result, SnapshotEntry, Storage, snapshots};

use crate::content::{alone, as_qemu_reads, assert_clean, ids};
use crate::second_opinion::{add_snapshots, filled, open_writable, run, text};

type Operation = fn(&mut Metadata) -> Result<SnapshotEntry>;

const OPERATIONS: [(&str, Operation); 3] = [
    ("create", |metadata| {
        snapshots::create(metadata, "new", SystemTime::UNIX_EPOCH)
    }),
    ("apply", |metadata| snapshots::apply(metadata, "first")),
    ("delete", |metadata| snapshots::delete(metadata, "first")),
];

/// One of this many crashes is judged by QEMU; the crate's unit tests judge all of them.
const SAMPLE: usize = 6;

/// What QEMU reads of the active disk and of each snapshot.
fn contents(path: &Path) -> Vec<(String, String)> {
    let mut contents = vec![("active".to_owned(), as_qemu_reads(path, None))];
    for id in ids(path) {
        let content = as_qemu_reads(path, Some(&id));
        contents.push((id, content));
    }
    contents
}

/// Asserts that QEMU finds leaks at worst, or copied flags that disagree with refcounts, and that a repair mends them.
fn judge(path: &Path, what: &str, allowed: &[Vec<(String, String)>]) {
    let output = run("qemu-img", &["check", "-f", "qcow2", text(path)]);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let wrong = said.lines().filter(|line| line.starts_with("ERROR"));
    let serious: Vec<&str> = wrong.filter(|line| !line.contains("OFLAG_COPIED")).collect();
    assert!(serious.is_empty(), "{what}: {serious:?}");
    let found = contents(path);
    assert!(allowed.contains(&found), "{what}: neither before nor after");
    repair(open_writable(path), Repair::All, &mut |_, _| {
        ControlFlow::Continue(())
    })
    .expect("repaired");
    assert_clean(path, what);
    assert_eq!(contents(path), found, "{what}: a repair loses nothing");
}

#[test]
fn qemu_finds_only_leaks_and_flags_after_a_crash() {
    let Some(_alone) = alone("qemu_finds_only_leaks_and_flags_after_a_crash") else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let path = filled(directory.path(), "disk.qcow2", "cluster_size=4096");
    add_snapshots(&path);
    let bytes = fs::read(&path).expect("the image");
    let before = contents(&path);
    for (name, operation) in OPERATIONS {
        let recorder = Recorder::new();
        let file = recorder.existing("disk.qcow2", bytes.clone());
        operation(&mut Metadata::open(file.clone()).expect("an image")).expect(name);
        fs::write(&path, all_bytes(file.as_ref())).expect("the image");
        let allowed = [before.clone(), contents(&path)];
        let crashes = recorder.kills().chain(recorder.power_losses(217, 3));
        for crash in crashes.step_by(SAMPLE) {
            crash.write_to(directory.path()).expect("the image");
            judge(&path, &format!("{name}, {}", crash.description()), &allowed);
        }
    }
}

#[test]
fn qemu_finds_only_leaks_and_flags_after_a_failed_write_or_sync() {
    let Some(_alone) = alone("qemu_finds_only_leaks_and_flags_after_a_failed_write_or_sync") else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let path = filled(directory.path(), "disk.qcow2", "cluster_size=65536");
    add_snapshots(&path);
    let bytes = fs::read(&path).expect("the image");
    let before = contents(&path);
    for (name, operation) in OPERATIONS {
        let attempt = |fault| {
            let memory = Arc::new(MemoryStorage::from_bytes(bytes.clone()));
            let failing = FailingStorage::new(memory.clone(), fault, io::ErrorKind::Other);
            let result = operation(&mut Metadata::open(Arc::new(failing)).expect("an image"));
            (memory.to_bytes(), result.is_ok())
        };
        fs::write(&path, attempt(Fault::None).0).expect("the image");
        let allowed = [before.clone(), contents(&path)];
        for fault in (0..3).flat_map(|number| [Fault::Write(number * 2), Fault::Sync(number)]) {
            let (left, done) = attempt(fault);
            fs::write(&path, left).expect("the image");
            assert!(
                !done || matches!(fault, Fault::Write(_)),
                "{name}, {fault:?}: told"
            );
            judge(&path, &format!("{name}, {fault:?}"), &allowed);
        }
    }
}

/// All bytes of a recorded file.
fn all_bytes(file: &dyn Storage) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.len().expect("length")).expect("small")];
    file.read_at(&mut bytes, 0).expect("memory");
    bytes
}
