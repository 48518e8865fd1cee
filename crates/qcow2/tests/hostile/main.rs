//! Images that were made to hurt.
//!
//! Valid images, QEMU's and ours, are changed in the fields that have a meaning. Whatever comes out, nothing may
//! panic, run without end or take memory without bound; and what `qemu-img check` calls clean is opened and read
//! as QEMU reads it. `QCOW2_HOSTILE_COUNT` sets the number of images that are made, `QCOW2_HOSTILE_SEED` the first
//! seed; a failure names the one seed that shows it again.

mod headers;
mod images;
mod meter;
mod mutate;
#[path = "../peer/mod.rs"]
mod peer;
mod probe;

use std::env;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use images::Seed;
use mutate::Mutant;
use qcow2::check::{CheckReport, FindingKind};

/// Images that are probed unless the environment says otherwise.
const PROBED: u64 = 3000;
/// Of them, how many QEMU is asked about: two processes for each.
const COMPARED: u64 = 240;
/// Longest time for one image; what takes longer hangs, even on a slow machine.
const HANG: Duration = Duration::from_secs(120);

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect(variable))
}

/// Counts what a test came across, on every thread.
#[derive(Clone, Debug, Default)]
struct Counter {
    found: Arc<AtomicU64>,
    all: Arc<AtomicU64>,
}

impl Counter {
    fn add(&self, found: bool) {
        self.found.fetch_add(u64::from(found), Ordering::Relaxed);
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    /// Prints what was found, and asserts that the test had something to judge.
    fn print(&self, what: &str) {
        let [found, all] = [&self.found, &self.all].map(|count| count.load(Ordering::Relaxed));
        println!("{what}: {found} of {all}");
        assert!(found > 0 || all < 100, "{what}: none of {all}");
    }
}

/// Returns the seeds to run, as many as asked for or `count`.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let first = number("QCOW2_HOSTILE_SEED").unwrap_or(1);
    first..first + number("QCOW2_HOSTILE_COUNT").unwrap_or(count)
}

/// Runs `judge` on the mutant of every seed, and names all seeds and changes where it panics or hangs.
fn for_each_mutant(count: u64, judge: impl Fn(&Mutant) + Send + 'static) {
    let (tell, told) = mpsc::channel();
    let worker = thread::spawn(move || {
        let images = images::all();
        let mut failed = Vec::new();
        for seed in seeds(count) {
            let mutant = Mutant::new(&images, seed);
            let about = format!("seed {seed}: {}: {:?}", mutant.name, mutant.changes);
            if tell.send(about.clone()).is_err() {
                break;
            }
            if panic::catch_unwind(AssertUnwindSafe(|| judge(&mutant))).is_err() {
                eprintln!("{about}");
                failed.push(seed);
            }
        }
        failed
    });
    let mut current = None;
    loop {
        match told.recv_timeout(HANG) {
            Ok(next) => current = Some(next),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("no end in sight: {current:?}"),
        }
    }
    let failed = worker.join().expect("valid images and their mutants are made");
    assert!(failed.is_empty(), "seeds {failed:?} failed");
}

#[test]
fn nothing_panics_hangs_or_takes_memory_without_bound() {
    let opened = Counter::default();
    let counted = opened.clone();
    for_each_mutant(PROBED, move |mutant| {
        probe::everything(&mutant.bytes);
        counted.add(probe::check(&mutant.bytes).is_ok());
    });
    opened.print("images opened");
}

#[test]
fn chains_of_files_do_neither() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let opened = Counter::default();
    let counted = opened.clone();
    for_each_mutant(PROBED / 4, move |mutant| {
        let path = directory.path().join("image.qcow2");
        fs::write(&path, &mutant.bytes).unwrap();
        counted.add(probe::chains(&path).is_ok());
    });
    opened.print("chains opened");
}

#[test]
fn what_is_good_stays_good() {
    let good = Counter::default();
    let counted = good.clone();
    for_each_mutant(PROBED / 4, move |mutant| {
        let Ok(before) = probe::check(&mutant.bytes) else {
            return;
        };
        let is_good = before.corruptions == 0 && before.check_errors == 0;
        counted.add(is_good);
        if is_good {
            for (step, bytes) in probe::use_image(&mutant.bytes) {
                let after = probe::check(&bytes).unwrap_or_else(|error| panic!("{step}: {error}"));
                let kept = after.leaks <= before.leaks || mutant.hides_leaks();
                assert!(
                    kept && after.corruptions == 0,
                    "{step}: {}",
                    probe::summary(&after)
                );
            }
        }
    });
    good.print("images without corruptions");
}

#[test]
fn the_images_are_good_before_they_are_changed() {
    for Seed { name, bytes } in images::all() {
        let report = probe::check(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(report.is_clean(), "{name}: {}", probe::summary(&report));
    }
}

#[test]
fn what_qemu_calls_clean_is_read_as_qemu_reads_it() {
    let test = "what_qemu_calls_clean_is_read_as_qemu_reads_it";
    if !peer::is_here(test) {
        return;
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (compared, corrupt) = (Counter::default(), Counter::default());
    let (counted, counted_corrupt) = (compared.clone(), corrupt.clone());
    for_each_mutant(COMPARED, move |mutant| {
        let image = directory.path().join("image.qcow2");
        fs::write(&image, &mutant.bytes).unwrap();
        let verdict = peer::run(
            "qemu-img",
            ["check", "-q", "-f", "qcow2", image.to_str().unwrap()],
        );
        let ours = probe::check(&mutant.bytes);
        counted_corrupt.add(verdict.status.code() == Some(2));
        match verdict.status.code() {
            Some(code @ (0 | 3)) => {
                let report = ours.unwrap_or_else(|error| panic!("qemu-img check opens it: {error}"));
                assert_agrees(&report, code == 3);
                let damaged = mutant.is_damaged();
                counted.add(probe::compare_with_qemu(&image, &mutant.bytes, damaged));
                if !damaged && mutant.concerns_snapshots() {
                    counted.add(probe::compare_snapshot_with_qemu(&image, &mutant.bytes, "1"));
                }
            }
            Some(2) => {
                // Corruptions that QEMU finds are not overlooked.
                let clean = ours.as_ref().is_ok_and(|report| report.is_clean());
                assert!(!clean, "qemu-img check finds corruptions: {verdict:?}");
            }
            _ => {}
        }
    });
    compared.print("disks compared, of those without corruptions");
    corrupt.print("images that qemu-img check calls corrupt");
}

#[test]
fn what_is_used_after_it_was_changed_is_clean_to_qemu() {
    let test = "what_is_used_after_it_was_changed_is_clean_to_qemu";
    if !peer::is_here(test) {
        return;
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let used = Counter::default();
    let counted = used.clone();
    for_each_mutant(COMPARED / 2, move |mutant| {
        let clean = probe::check(&mutant.bytes).is_ok_and(|report| report.is_clean());
        counted.add(clean);
        if !clean {
            return;
        }
        let image = directory.path().join("image.qcow2");
        let check = |bytes: &[u8]| {
            fs::write(&image, bytes).unwrap();
            peer::run("qemu-img", ["check", "-f", "qcow2", image.to_str().unwrap()])
        };
        if check(&mutant.bytes).status.code() == Some(1) {
            // QEMU does not open what its version does not expect, in an extension that nobody knows.
            return;
        }
        let (step, bytes) = probe::use_image(&mutant.bytes).pop().unwrap();
        let verdict = check(&bytes);
        let good = if mutant.hides_leaks() {
            [Some(0), Some(3)]
        } else {
            [Some(0); 2]
        };
        assert!(good.contains(&verdict.status.code()), "{step}: {verdict:?}");
        probe::compare_with_qemu(&image, &bytes, mutant.is_damaged());
    });
    used.print("clean images that were used");
}

/// Asserts that a report finds no corruptions where QEMU finds none, and leaks where QEMU finds some.
///
/// What lies on something else is a corruption for us; QEMU looks for that only before it writes.
fn assert_agrees(report: &CheckReport, leaks: bool) {
    let findings = report.findings.iter().map(|finding| finding.kind);
    let overlaps = findings
        .filter(|kind| matches!(kind, FindingKind::Overlap { .. }))
        .count() as u64;
    let found = (report.corruptions.saturating_sub(overlaps) > 0, report.leaks > 0);
    assert_eq!(found, (false, leaks), "{}", probe::summary(report));
}

#[test]
fn a_repaired_image_is_clean() {
    let repaired = Counter::default();
    let counted = repaired.clone();
    for_each_mutant(PROBED / 4, move |mutant| {
        let result = probe::repair(&mutant.bytes);
        counted.add(result.is_some());
        if let Some(repaired) = result {
            let report = probe::check(&repaired).unwrap();
            assert!(report.is_clean(), "{}", probe::summary(&report));
        }
    });
    repaired.print("images repaired or clean");
}
