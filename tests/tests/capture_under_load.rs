//! A hundred snapshots of a guest that writes as fast as it can: every page as of the capture point, every time.
//!
//! The built-in guest writes its pages in an order fixed by its seed, so `snapvm check` computes from the saved
//! registers alone what each page must hold.  Every file is checked so; some are brought back to see that the guest
//! goes on.

use std::path::Path;

use e2e::{Guest, has_kvm, run};
use tempfile::TempDir;

/// One guest and the snapshots taken of it.
struct Load {
    guest: &'static [&'static str],
    snapshots: usize,
    options: &'static [&'static [&'static str]],
}

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
    restored.snapshot(&again, &[]);
    assert_as_of_capture_point(&again);
}

fn take_and_check(load: &Load) {
    let directory = TempDir::new().expect("a directory");
    let mut guest = Guest::run_builtin(directory.path(), load.guest);
    let file = directory.path().join("out.vmsnap");
    for round in 0..load.snapshots {
        guest.wait_for_steps(5_000);
        let options = load.options[round % load.options.len()];
        guest.snapshot(&file, options);
        assert_as_of_capture_point(&file);
        if round + 1 == load.snapshots {
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
    &["--codec", "raw", "--buffer", "4M", "--max-stall", "10s"],
    &[
        "--chunk",
        "256K",
        "--on-pressure",
        "fail",
        "--buffer",
        "1G",
        "--max-stall",
        "10s",
    ],
    &["--level", "-5", "--max-arm", "10ms"],
    &[
        "--on-pressure",
        "throttle",
        "--buffer",
        "2M",
        "--max-stall",
        "10s",
    ],
];

#[test]
fn one_cpu_64_mib() {
    if has_kvm("one_cpu_64_mib") {
        take_and_check(&Load {
            guest: &["--memory", "64M", "--cpus", "1"],
            snapshots: 32,
            options: OPTIONS,
        });
    }
}

#[test]
fn two_cpus_128_mib() {
    if has_kvm("two_cpus_128_mib") {
        take_and_check(&Load {
            guest: &["--memory", "128M", "--cpus", "2"],
            snapshots: 32,
            options: OPTIONS,
        });
    }
}

#[test]
fn two_cpus_256_mib_whole_pages_in_a_memory_file() {
    if has_kvm("two_cpus_256_mib_whole_pages_in_a_memory_file") {
        let guest = &[
            "--memory",
            "256M",
            "--cpus",
            "2",
            "--words",
            "512",
            "--memory-backing",
            "memfd",
        ];
        take_and_check(&Load {
            guest,
            snapshots: 16,
            options: OPTIONS,
        });
    }
}

#[test]
fn one_cpu_512_mib_without_huge_pages() {
    if has_kvm("one_cpu_512_mib_without_huge_pages") {
        let guest = &[
            "--memory",
            "512M",
            "--cpus",
            "1",
            "--no-thp",
            "--incompressible",
            "80",
        ];
        take_and_check(&Load {
            guest,
            snapshots: 12,
            options: OPTIONS,
        });
    }
}

#[test]
fn two_cpus_1_gib() {
    if has_kvm("two_cpus_1_gib") {
        take_and_check(&Load {
            guest: &["--memory", "1G", "--cpus", "2"],
            snapshots: 8,
            options: OPTIONS,
        });
    }
}
