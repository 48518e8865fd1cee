//! A process that is killed while it takes snapshots: its disks are as they were last flushed, or later, and every
//! snapshot file is whole.
//!
//! The child is this very test program, told by an environment variable to be one. It says on standard output what
//! was flushed; what it says is killed in the middle of whatever it does next.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use snapshot::{DisksMode, SaveControl, SaveMode, SaveOptions, save};
use support::live::{
    LiveMachine, alone, assert_restorable, config_of, expected, make_disk, numbers, place, read_all,
};
use support::qemu::assert_checked;
use tempfile::TempDir;
use vmm::Disk;

/// Tells the child where to work; in the parent it is not set.
const DIRECTORY: &str = "SNAPSHOT_KILL_TEST_DIRECTORY";
/// Tells the child how to keep its disks.
const MODE: &str = "SNAPSHOT_KILL_TEST_MODE";
/// The names of the live disks once they were switched to overlays, beside those before.
const NAMES: [[&str; 2]; 2] = [["a.qcow2", "a.qcow2"], ["b.raw", "b.raw.qcow2"]];
const INTERNAL: [&str; 2] = ["a.qcow2", "b.qcow2"];

/// Kills per mode; more by `SNAPSHOT_KILLS`.
fn kills() -> u64 {
    let asked = std::env::var("SNAPSHOT_KILLS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(6)
}

#[test]
#[ignore = "the child of the other tests, not a test"]
fn the_child() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let disks = if std::env::var_os(MODE).is_some_and(|mode| mode == "internal") {
        DisksMode::Internal
    } else {
        DisksMode::Overlay
    };
    let names = match disks {
        DisksMode::Internal => INTERNAL,
        _ => [NAMES[0][0], NAMES[1][0]],
    };
    let open = |name: &str| Disk::open(&config_of(&directory.join(name), false)).unwrap();
    let opened = names.map(open);
    let say = |flushed: u64| {
        let mut output = std::io::stdout().lock();
        writeln!(output, "flushed {flushed}").unwrap();
    };
    let machine = LiveMachine::start(&opened, 0, say);
    for number in 0.. {
        let options = SaveOptions {
            mode: if number % 2 == 0 {
                SaveMode::Async
            } else {
                SaveMode::Stop
            },
            disks,
            ..SaveOptions::default()
        };
        let path = directory.join(format!("{number}.vmsnap"));
        match save(&machine, path, &options, &SaveControl::new()) {
            Ok(_) => {}
            // Only the limit of the chain ends it before it is killed.
            Err(error) => return println!("ended: {error}"),
        }
        println!("saved {number}");
    }
}

fn start_child(directory: &Path, mode: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_child", "--ignored", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(MODE, mode)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills the child some flushes after some snapshots, so that each kill hits another step; returns the last write
/// that is known to be flushed, and the number of snapshots that are known to be complete.
fn kill_after(mut child: Child, snapshots: u64, flushes: u64) -> (u64, u64) {
    let (mut flushed, mut saved, mut left) = (0, 0, flushes);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut killed = false;
    // What it said before it died is still read.
    while let Some(Ok(line)) = lines.next() {
        if let Some(number) = line.strip_prefix("flushed ") {
            flushed = number.parse().unwrap();
            if saved >= snapshots {
                left = left.saturating_sub(1);
            }
        }
        saved += u64::from(line.starts_with("saved "));
        assert!(!line.starts_with("ended"), "{line}");
        if left == 0 && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    assert!(killed, "the child ended by itself");
    (flushed, saved)
}

/// Insists that a disk holds all that was flushed, and of later writes only whole ones in their places.
#[track_caller]
fn assert_flushed(disk: &Disk, number: usize, flushed: u64) {
    let found = numbers(&read_all(disk));
    let least = expected(number, 2, flushed);
    for (block, (found, least)) in (0..).zip(found.iter().zip(&least)) {
        assert!(
            found >= least,
            "disk {}: block {block} lost write {least}",
            disk.id()
        );
        let in_place = *found == 0 || place(*found, 2) == (number, block);
        assert!(in_place, "disk {}: block {block} holds write {found}", disk.id());
    }
}

fn check_survivors(directory: &Path, live: [PathBuf; 2], flushed: u64, saved: u64) {
    for (number, path) in live.iter().enumerate() {
        let disk = Disk::open(&config_of(path, false)).unwrap();
        assert_flushed(&disk, number, flushed);
        drop(disk);
        if path.extension().unwrap() == "qcow2" {
            assert_checked(path, true);
        }
    }
    let snapshots = (0..).map(|number| directory.join(format!("{number}.vmsnap")));
    let complete: Vec<_> = snapshots.take_while(|path| path.exists()).collect();
    assert!(
        complete.len() as u64 >= saved,
        "a snapshot that was complete is gone"
    );
    for path in complete {
        drop(assert_restorable(&path));
    }
}

fn kill_again_and_again(test: &str, mode: &str) {
    if !Path::new("/dev/userfaultfd").exists() {
        eprintln!("SKIPPED: {test}: there is no /dev/userfaultfd");
        return;
    }
    let _alone = alone();
    for round in 0..kills() {
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name);
        let names = if mode == "internal" {
            INTERNAL
        } else {
            NAMES.map(|[first, _]| first)
        };
        names.iter().for_each(|name| make_disk(&path(name)));
        let child = start_child(directory.path(), mode);
        let (flushed, saved) = kill_after(child, round % 4, 1 + round * 7 % 13);
        let live = if mode == "internal" {
            INTERNAL.map(path)
        } else {
            NAMES.map(|[first, later]| {
                if path(later).exists() {
                    path(later)
                } else {
                    path(first)
                }
            })
        };
        check_survivors(directory.path(), live, flushed, saved);
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert!(left > 0, "the images are gone");
    }
}

#[test]
fn a_kill_between_overlays_loses_nothing_that_was_flushed() {
    kill_again_and_again(
        "a_kill_between_overlays_loses_nothing_that_was_flushed",
        "overlay",
    );
}

#[test]
fn a_kill_between_internal_snapshots_loses_nothing_that_was_flushed() {
    kill_again_and_again(
        "a_kill_between_internal_snapshots_loses_nothing_that_was_flushed",
        "internal",
    );
}
