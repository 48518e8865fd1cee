//! A hundred snapshots of a guest that writes as fast as it can: every page as of the capture point, every time.
//!
//! The built-in guest writes its pages in an order fixed by its seed, so `snapvm check` computes from the saved
//! registers alone what each page must hold.  Every file is checked so; some are brought back to see that the guest
//! goes on.

use std::path::Path;

use e2e::{Guest, has_kvm, run};
use tempfile::TempDir;

/// Checks every page of a snapshot against the guest's own rule, and its digests.
#[track_caller]
fn assert_as_of_capture_point(file: &Path) {
    let name = file.to_str().expect("test paths are UTF-8");
    let report = run("snapvm", ["check", name, "--json"]).expect_code(0).json();
    assert!(
        report["pages_checked"].as_u64() > Some(10_000),
        "hardly anything was checked: {report}"
    );
    run("snaptool", ["verify", "--deep", name]).expect_code(0);
}

/// Brings a snapshot back and lets the guest run until its own check of what it overwrites would have spoken up.
#[track_caller]
fn assert_goes_on(directory: &Path, file: &Path) {
    let name = file.to_str().expect("test paths are UTF-8");
    let mut restored = Guest::spawn(directory, "restored", ["restore", name]);
    restored.wait_for_steps(20_000);
    assert!(
        !restored.serial().contains("BAD"),
        "the restored guest found a wrong page: {}",
        restored.serial()
    );
    let again = directory.join("again.vmsnap");
    restored.snapshot(&again, &["--max-stall", "30s"]);
    assert_as_of_capture_point(&again);
}

/// Takes this many snapshots of a guest with these options, and brings the last one back.
fn take_and_check(test: &str, guest: &str, snapshots: usize) {
    if !has_kvm(test) {
        return;
    }
    let directory = TempDir::new().expect("a directory");
    let mut guest = Guest::run_builtin(directory.path(), &guest.split(' ').collect::<Vec<_>>());
    let file = directory.path().join("out.vmsnap");
    for round in 0..snapshots {
        guest.wait_for_steps(5_000);
        // The machine under test may be busy with other things: here a long wait of the guest is no failure.
        let options = [OPTIONS[round % OPTIONS.len()], &["--max-stall", "30s"]].concat();
        guest.snapshot(&file, &options);
        assert_as_of_capture_point(&file);
        if round + 1 == snapshots {
            assert_goes_on(directory.path(), &file);
        }
    }
    assert_eq!(guest.state(), "running");
    assert!(
        !guest.serial().contains("BAD"),
        "the source guest found a wrong page: {}",
        guest.serial()
    );
}

/// Chunk sizes, codecs and policies that every load goes through in turn.
const OPTIONS: &[&[&str]] = &[
    &[],
    &["--chunk", "4K", "--codec", "lz4"],
    &["--chunk", "2M"],
    &["--chunk", "16K", "--max-arm", "0ms"],
    &["--codec", "raw", "--buffer", "4M"],
    &["--chunk", "256K", "--on-pressure", "fail", "--buffer", "1G"],
    &["--level", "-5", "--max-arm", "10ms"],
    &["--on-pressure", "throttle", "--buffer", "2M"],
];

#[test]
fn one_cpu_64_mib() {
    take_and_check("one_cpu_64_mib", "--memory 64M --cpus 1", 32);
}

#[test]
fn two_cpus_128_mib() {
    take_and_check("two_cpus_128_mib", "--memory 128M --cpus 2", 32);
}

#[test]
fn two_cpus_256_mib_whole_pages_in_a_memory_file() {
    take_and_check(
        "two_cpus_256_mib_whole_pages_in_a_memory_file",
        "--memory 256M --cpus 2 --words 512 --memory-backing memfd",
        16,
    );
}

#[test]
fn one_cpu_512_mib_without_huge_pages() {
    take_and_check(
        "one_cpu_512_mib_without_huge_pages",
        "--memory 512M --cpus 1 --no-thp --incompressible 80",
        12,
    );
}

#[test]
fn two_cpus_1_gib() {
    take_and_check("two_cpus_1_gib", "--memory 1G --cpus 2", 8);
}
