//! A snapshot that fails or is given up leaves the guest running and nothing under the final name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Guest, has_kvm, is_root, run};
use tempfile::TempDir;

/// A small tmpfs; unmounted when dropped.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn mount(path: PathBuf, size: &str) -> Self {
        fs::create_dir(&path).expect("a mount point");
        let options = format!("size={size}");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&path)
            .status();
        assert!(
            status.expect("mount starts").success(),
            "mount a tmpfs on {}",
            path.display()
        );
        Self { path }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _best_effort = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}

/// Insists that the guest runs, was not torn, and can be snapshotted after all.
fn assert_unharmed(guest: &mut Guest, directory: &Path) {
    assert_eq!(guest.state(), "running");
    guest.wait_for_steps(20_000);
    assert!(
        !guest.serial().contains("BAD"),
        "the guest found a wrong page: {}",
        guest.serial()
    );
    assert_unprotected(guest);
    let file = directory.join("afterwards.vmsnap");
    guest.snapshot(&file, &["--max-stall", "30s"]);
    run("snapvm", ["check", file.to_str().expect("UTF-8")]).expect_code(0);
}

/// Insists that no memory of the machine is registered with a userfaultfd any more.
fn assert_unprotected(guest: &Guest) {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", guest.pid())).expect("the machine's mappings");
    let left = maps.lines().filter(|line| line.starts_with("VmFlags:"));
    let left = left
        .filter(|line| line.split_whitespace().any(|flag| flag == "uw" || flag == "um"))
        .count();
    assert_eq!(left, 0, "mappings are still registered with a userfaultfd");
}

#[test]
fn a_full_disk_fails_the_snapshot_and_not_the_guest() {
    const TEST: &str = "a_full_disk_fails_the_snapshot_and_not_the_guest";
    if !has_kvm(TEST) || !is_root(TEST) {
        return;
    }
    let directory = TempDir::new().expect("a directory");
    let disk = SmallDisk::mount(directory.path().join("disk"), "8M");
    let arguments = ["--memory", "256M", "--cpus", "2", "--incompressible", "100"];
    let mut guest = Guest::run_builtin(directory.path(), &arguments);
    guest.wait_for_steps(10_000);
    let file = disk.path.join("out.vmsnap");
    let output = guest
        .control("snapshot", &[file.to_str().expect("UTF-8")])
        .expect_code(2);
    assert!(
        output.stderr.contains("No space left on device"),
        "unclear error: {}",
        output.stderr
    );
    let left: Vec<_> = fs::read_dir(&disk.path).expect("the disk is there").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    assert_unharmed(&mut guest, directory.path());
}

#[test]
fn too_small_a_buffer_under_the_fail_policy_gives_the_snapshot_up() {
    if !has_kvm("too_small_a_buffer_under_the_fail_policy_gives_the_snapshot_up") {
        return;
    }
    let directory = TempDir::new().expect("a directory");
    let mut guest = Guest::run_builtin(directory.path(), &["--memory", "256M", "--cpus", "2"]);
    guest.wait_for_steps(10_000);
    let file = directory.path().join("out.vmsnap");
    let name = file.to_str().expect("UTF-8");
    let arguments = [name, "--on-pressure", "fail", "--buffer", "64K", "--level", "19"];
    let output = guest.control("snapshot", &arguments).expect_code(1);
    assert!(
        output.stderr.contains("buffer"),
        "unclear error: {}",
        output.stderr
    );
    assert!(!file.exists());
    assert_unharmed(&mut guest, directory.path());
}

#[test]
fn a_cancelled_snapshot_is_gone_and_the_guest_runs_on() {
    if !has_kvm("a_cancelled_snapshot_is_gone_and_the_guest_runs_on") {
        return;
    }
    let directory = TempDir::new().expect("a directory");
    let mut guest = Guest::run_builtin(directory.path(), &["--memory", "512M", "--cpus", "1"]);
    guest.wait_for_steps(10_000);
    let file = directory.path().join("out.vmsnap");
    let name = file.to_str().expect("UTF-8").to_owned();
    // Level 19 takes many seconds for this much memory: the cancellation comes in the middle of it.
    std::thread::scope(|scope| {
        let guest = &guest;
        let writing =
            scope.spawn(|| guest.control("snapshot", &[&name, "--level", "19", "--max-stall", "60s"]));
        while guest.control("cancel", &[]).code != 0 {
            assert!(
                !writing.is_finished(),
                "the snapshot ended before it could be cancelled"
            );
        }
        let output = writing.join().expect("the command ends").expect_code(1);
        assert!(
            output.stderr.contains("cancel"),
            "unclear error: {}",
            output.stderr
        );
    });
    assert!(!file.exists());
    assert_unharmed(&mut guest, directory.path());
}

#[test]
fn a_path_that_cannot_be_written_fails_at_once() {
    if !has_kvm("a_path_that_cannot_be_written_fails_at_once") {
        return;
    }
    let directory = TempDir::new().expect("a directory");
    let mut guest = Guest::run_builtin(directory.path(), &["--memory", "64M"]);
    guest.wait_for_steps(5_000);
    let file = directory.path().join("missing").join("out.vmsnap");
    let output = guest
        .control("snapshot", &[file.to_str().expect("UTF-8")])
        .expect_code(2);
    assert!(
        output.stderr.contains("missing"),
        "the error does not name the path: {}",
        output.stderr
    );
    assert_unharmed(&mut guest, directory.path());
}
