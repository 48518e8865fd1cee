//! Every crash that guest I/O can meet: without any repair the image has no corruption, everything flushed is there,
//! and the rest is as it was or as it was to become.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread;

use qcow2::replay::{Crash, Random, Recorder};
use qcow2::{CreateOptions, Image, ImageOptions, Layer, MemoryStorage};

use crate::driver::{Below, Driver, Lower, Options, Step, checked};

/// What was recorded.
struct Recording {
    recorder: Recorder,
    options: Options,
    below: Option<Arc<dyn Layer>>,
    /// The array after each step.
    history: Vec<Vec<u8>>,
    /// A snapshot that was there from the beginning, and what it reads as.
    snapshot: Option<(String, Vec<u8>)>,
}

fn record(options: Options, seed: u64, steps: usize) -> Recording {
    let storage = Arc::new(MemoryStorage::new());
    options.create(storage.as_ref());
    let Lower {
        layer: below,
        shown: shadow,
        ..
    } = options.lower_layer();
    let mut driver = Driver::new(
        Options {
            snapshots: false,
            ..options
        },
        storage.clone(),
        below.clone(),
        shadow,
        seed,
    );
    for _ in 0..steps / 2 {
        driver.step();
    }
    let snapshot = options.snapshots.then(|| {
        let entry = driver.image.create_snapshot("before").unwrap();
        (entry.id().into_owned(), driver.shadow.clone())
    });
    driver.verify();
    let shadow = driver.shadow.clone();
    drop(driver);

    let recorder = Recorder::new();
    let file = recorder.existing("disk", storage.to_bytes());
    let mut driver = Driver::new(
        Options {
            snapshots: false,
            ..options
        },
        file,
        below.clone(),
        shadow.clone(),
        seed ^ 0xabcd,
    );
    let mut history = vec![shadow];
    for step in 1..=steps {
        let done = driver.step();
        history.push(driver.shadow.clone());
        if done == Step::Flushed {
            recorder.mark(step.to_string());
        }
    }
    driver.image.settle().unwrap();
    recorder.mark(steps.to_string());
    drop(driver);
    Recording {
        recorder,
        options,
        below,
        history,
        snapshot,
    }
}

impl Recording {
    fn verify(&self, crash: &Crash) {
        let what = format!("{:?}: {}", self.options, crash.description());
        let storage = Arc::new(crash.storage("disk").unwrap());
        let report = checked(storage.clone());
        assert_eq!(
            (report.corruptions, report.check_errors),
            (0, 0),
            "{what}: {report:?}"
        );

        let flushed: usize = crash.marks().last().map_or(0, |step| step.parse().unwrap());
        let image = Image::open(storage.clone(), self.below.clone(), &ImageOptions::read_only()).unwrap();
        let mut read = vec![0; self.history[0].len()];
        image.read_at(&mut read, 0).unwrap();
        let versions = &self.history[flushed..];
        for (sector, content) in read.chunks(512).enumerate() {
            let range = sector * 512..sector * 512 + content.len();
            let known = versions.iter().any(|version| &version[range.clone()] == content);
            assert!(
                known,
                "{what}: sector {sector} is what it never was since step {flushed}"
            );
        }
        if let Some((id, content)) = &self.snapshot {
            let view =
                Image::open_snapshot(storage, self.below.clone(), id, &ImageOptions::read_only()).unwrap();
            crate::driver::assert_reads(&view, content, &what);
        }
    }

    fn verify_all(&self, seed: u64) -> usize {
        let mut seen = HashSet::new();
        let mut crashes = 0;
        for crash in self
            .recorder
            .kills()
            .chain(self.recorder.power_losses(seed, samples()))
        {
            crashes += 1;
            seen.insert(crash.marks().len());
            self.verify(&crash);
        }
        assert!(seen.len() > 3, "there were crashes between flushes");
        crashes
    }
}

/// Power losses for each stretch between two syncs; more with the environment variable.
fn samples() -> usize {
    std::env::var("QCOW2_CRASH_SAMPLES")
        .ok()
        .and_then(|samples| samples.parse().ok())
        .unwrap_or(6)
}

fn no_crash_corrupts(sets: &[(u32, u32, u32)], below: Below, snapshots: bool) {
    for (&(version, cluster_bits, refcount_bits), seed) in sets.iter().zip(100..) {
        let options = Options {
            version,
            cluster_bits,
            refcount_bits,
            below,
            snapshots,
        };
        let crashes = record(options, seed, 40).verify_all(seed);
        assert!(crashes > 100, "{options:?}: only {crashes} crashes");
    }
}

#[test]
fn no_crash_corrupts_an_image() {
    no_crash_corrupts(
        &[(3, 9, 16), (3, 12, 1), (2, 10, 16), (3, 14, 64)],
        Below::Nothing,
        false,
    );
}

#[test]
fn no_crash_corrupts_an_image_with_a_snapshot() {
    no_crash_corrupts(
        &[(3, 9, 16), (3, 12, 8), (2, 10, 16), (3, 13, 64)],
        Below::Nothing,
        true,
    );
}

#[test]
fn no_crash_corrupts_an_overlay() {
    no_crash_corrupts(&[(3, 9, 32), (2, 12, 16)], Below::Raw, true);
    no_crash_corrupts(&[(3, 12, 16), (2, 9, 16)], Below::Qcow2, false);
}

#[test]
fn no_crash_corrupts_an_image_that_many_threads_write_and_flush() {
    const PART: usize = 48 << 10;
    let storage = MemoryStorage::new();
    let options = CreateOptions {
        cluster_bits: 9,
        ..CreateOptions::new(4 * PART as u64)
    };
    qcow2::create(&storage, &options).unwrap();
    let recorder = Recorder::new();
    let file = recorder.existing("disk", storage.to_bytes());
    let image = &Image::open(file, None, &ImageOptions::default()).unwrap();
    thread::scope(|scope| {
        for number in 0..4u64 {
            scope.spawn(move || {
                let mut random = Random::new(number);
                for _ in 0..60 {
                    let start = random.below(PART as u64 / 512) * 512;
                    let len = (512 * (1 + random.below(12))).min(PART as u64 - start);
                    let offset = number * PART as u64 + start;
                    match random.below(6) {
                        0 => image.discard(offset, len).unwrap(),
                        1 => image.write_zeroes(offset, len, true).unwrap(),
                        2 => image.flush().unwrap(),
                        _ => image.write_at(&vec![7; len as usize], offset).unwrap(),
                    }
                }
            });
        }
    });
    image.settle().unwrap();
    let mut crashes = 0;
    for crash in recorder.kills().chain(recorder.power_losses(3, 2)) {
        crashes += 1;
        let report = checked(Arc::new(crash.storage("disk").unwrap()));
        assert_eq!(
            (report.corruptions, report.check_errors),
            (0, 0),
            "{}: {report:?}",
            crash.description()
        );
    }
    assert!(crashes > 200, "only {crashes} crashes");
}
