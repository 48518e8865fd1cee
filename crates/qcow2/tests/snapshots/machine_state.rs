//! The state of a machine that QEMU keeps behind the end of the disk (iotests 029, 068, 267).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use qcow2::{Metadata, snapshots};

use crate::content::{alone, as_qemu_reads, assert_clean, metadata};
use crate::second_opinion::{filled, open, qemu_img, qemu_io, text};

/// Runs QEMU without a guest on an image and gives its monitor commands; `None` where QEMU is not here.
fn monitor(image: &Path, commands: &[&str]) -> Option<String> {
    let drive = format!("if=none,id=disk,format=qcow2,file={}", text(image));
    let mut qemu = Command::new("timeout")
        .args(["-k", "1", "60", "qemu-system-x86_64"])
        .args([
            "-accel",
            "tcg",
            "-S",
            "-m",
            "16",
            "-nodefaults",
            "-display",
            "none",
            "-monitor",
            "stdio",
        ])
        .args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let mut stdin = qemu.stdin.take().expect("a pipe");
    // A QEMU that is not here has closed the pipe: its exit code tells.
    let _ = stdin.write_all(format!("{}\nquit\n", commands.join("\n")).as_bytes());
    let output = qemu.wait_with_output().expect("its end");
    if output.status.code() == Some(127) {
        return None;
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && !said.contains("Error"),
        "{said} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(said)
}

/// An image in which QEMU has saved a machine as the snapshot `saved`.
fn saved(test: &str, directory: &Path, options: &str) -> Option<PathBuf> {
    let path = filled(directory, "disk.qcow2", options);
    if monitor(&path, &["savevm saved"]).is_none() {
        eprintln!("SKIPPED: {test}: qemu-system-x86_64 is not installed");
        return None;
    }
    assert_clean(&path, "saved");
    Some(path)
}

#[test]
fn a_machine_that_qemu_saved_can_be_loaded_after_our_operations() {
    let test = "a_machine_that_qemu_saved_can_be_loaded_after_our_operations";
    let Some(_alone) = alone(test) else {
        return;
    };
    for options in ["cluster_size=65536", "cluster_size=512", "compat=0.10"] {
        let directory = tempfile::tempdir().expect("a directory");
        let Some(path) = saved(test, directory.path(), options) else {
            return;
        };
        let entry = snapshots::list(&metadata(&path))[0].clone();
        assert!(entry.vm_state_bytes() > 0, "{options}");
        let content = as_qemu_reads(&path, None);
        snapshots::create(&mut metadata(&path), "ours", SystemTime::now()).expect("created");
        qemu_io(&path, &["write -P 9 0 1M"]);
        snapshots::apply(&mut metadata(&path), "saved").expect("applied");
        assert_clean(&path, options);
        assert_eq!(as_qemu_reads(&path, None), content, "{options}");
        // The state is in the active tree now, as QEMU leaves it: it is no part of a snapshot of the disk.
        let mine = snapshots::create(&mut metadata(&path), "again", SystemTime::now()).expect("created");
        assert!(mine.l1_entries <= entry.l1_entries, "{options}");
        snapshots::delete(&mut metadata(&path), "ours").expect("deleted");
        assert_clean(&path, options);
        monitor(&path, &["loadvm saved", "info snapshots"]).expect("QEMU is here");
        snapshots::delete(&mut metadata(&path), "again").expect("deleted");
        assert_clean(&path, options);
        assert_eq!(as_qemu_reads(&path, None), content, "{options}");
    }
}

#[test]
fn deleting_a_saved_machine_frees_its_state() {
    let test = "deleting_a_saved_machine_frees_its_state";
    let Some(_alone) = alone(test) else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let Some(path) = saved(test, directory.path(), "cluster_size=4096") else {
        return;
    };
    let qemus = directory.path().join("qemus.qcow2");
    std::fs::copy(&path, &qemus).expect("a copy");
    snapshots::delete(&mut metadata(&path), "saved").expect("deleted");
    qemu_img(&["snapshot", "-d", "saved", text(&qemus)]);
    assert_clean(&path, "deleted");
    let allocated = |path: &Path| {
        let report = qcow2::check::check(&Metadata::open(open(path)).expect("an image"), &mut |_, _| {
            std::ops::ControlFlow::Continue(())
        });
        report.expect("checked").allocated_clusters
    };
    assert_eq!(allocated(&path), allocated(&qemus));
    assert_eq!(as_qemu_reads(&path, None), as_qemu_reads(&qemus, None));
}

/// State that `qemu-io` writes behind the end of the disk comes back with the snapshot.
#[test]
fn bytes_behind_the_end_of_the_disk_come_back_with_their_snapshot() {
    let Some(_alone) = alone("bytes_behind_the_end_of_the_disk_come_back_with_their_snapshot") else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let path = filled(directory.path(), "disk.qcow2", "cluster_size=1024");
    qemu_io(&path, &["write -b -P 11 0 300k"]);
    qemu_img(&["snapshot", "-c", "with state", text(&path)]);
    qemu_io(&path, &["write -b -P 12 0 300k", "write -P 13 0 1M"]);
    snapshots::apply(&mut metadata(&path), "with state").expect("applied");
    assert_clean(&path, "applied");
    qemu_io(&path, &["read -b -P 11 0 300k"]);
    snapshots::create(&mut metadata(&path), "without", SystemTime::now()).expect("created");
    snapshots::delete(&mut metadata(&path), "with state").expect("deleted");
    assert_clean(&path, "deleted");
    qemu_io(&path, &["read -b -P 11 0 300k"]);
    snapshots::apply(&mut metadata(&path), "without").expect("applied");
    assert_clean(&path, "the state is gone");
}
