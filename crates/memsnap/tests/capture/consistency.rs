//! What is captured is what memory was at the freeze, whoever wrote before and after.

use std::time::Duration;

use memsnap::{CaptureMode, CaptureOptions, CaptureReport, KernelPath, Pressure, stop_and_copy};

use crate::guest::{Backing, MIB, Writers, arm_and_freeze, assert_free, can_capture, contents, layout};
use crate::guest::{populate, two_regions, wait_for_fault};
use crate::sink::{Behaviour, MemorySink, assert_same};

const CHUNK_SIZES: [u32; 6] = [4 << 10, 8 << 10, 16 << 10, 64 << 10, 256 << 10, 2 << 20];

/// Captures `len` bytes while `writers` threads write, and compares.
fn capture(backing: Backing, len: usize, writers: u64, chunk: u32, options: CaptureOptions) -> CaptureReport {
    let memory = two_regions(len, backing);
    populate(&memory);
    let layout = layout(&memory, chunk);
    let writers = Writers::start(&memory, writers);
    writers.wait_for_progress();
    let (capture, expected) = arm_and_freeze(&memory, &writers, chunk, options);
    wait_for_fault(&capture);
    let sink = MemorySink::new(&layout, Behaviour::Keep);
    let report = capture.drain(&sink).unwrap();
    writers.wait_for_progress();
    writers.end();
    assert_same(&sink.into_contents(), &expected);
    assert_free(&memory);
    report
}

fn options() -> CaptureOptions {
    CaptureOptions {
        max_stall: Duration::from_secs(60),
        ..CaptureOptions::default()
    }
}

#[test]
fn anonymous_memory_is_as_of_the_freeze_for_every_chunk_size_and_number_of_writers() {
    if !can_capture() {
        return;
    }
    for chunk in CHUNK_SIZES {
        for writers in [1, 2, 4] {
            let report = capture(Backing::Anonymous, 24 * MIB, writers, chunk, options());
            assert_eq!(report.mode, CaptureMode::Async);
        }
    }
}

#[test]
fn memory_files_are_as_of_the_freeze_for_every_chunk_size() {
    if !can_capture() {
        return;
    }
    for chunk in CHUNK_SIZES {
        capture(Backing::Memfd, 24 * MIB, 2, chunk, options());
    }
}

#[test]
fn huge_pages_are_as_of_the_freeze_for_every_chunk_size() {
    if !can_capture() {
        return;
    }
    for chunk in CHUNK_SIZES {
        capture(Backing::Huge, 32 * MIB, 2, chunk, options());
    }
}

#[test]
fn protecting_everything_in_the_pause_gives_the_same_guarantee() {
    if !can_capture() {
        return;
    }
    for backing in [Backing::Anonymous, Backing::Memfd, Backing::Huge] {
        let options = CaptureOptions {
            max_arm: Duration::ZERO,
            ..options()
        };
        let report = capture(backing, 24 * MIB, 2, 64 << 10, options);
        assert_eq!(report.bytes_unarmed_at_freeze, report.memory_bytes);
        assert_eq!(report.faults_arming, 0);
    }
}

#[test]
fn kernels_that_pass_over_unpopulated_memory_are_served_by_populating_first() {
    if !can_capture() {
        return;
    }
    for max_arm in [Duration::ZERO, Duration::from_secs(1)] {
        for backing in [Backing::Anonymous, Backing::Memfd, Backing::Huge] {
            let memory = two_regions(24 * MIB, backing);
            let layout = layout(&memory, 64 << 10);
            // Nothing is populated: the writers find out whether protection covers it.
            let writers = Writers::start(&memory, 2);
            let options = CaptureOptions {
                kernel: KernelPath::PopulateFirst,
                max_arm,
                ..options()
            };
            let (capture, expected) = arm_and_freeze(&memory, &writers, 64 << 10, options);
            let sink = MemorySink::new(&layout, Behaviour::Keep);
            let report = capture.drain(&sink).unwrap();
            writers.end();
            assert_eq!(report.kernel_path, Some(KernelPath::PopulateFirst));
            assert_same(&sink.into_contents(), &expected);
            assert_free(&memory);
        }
    }
}

#[test]
fn a_single_copy_buffer_throttles_and_stays_within_its_bound() {
    if !can_capture() {
        return;
    }
    for chunk in [4 << 10, 64 << 10] {
        let options = CaptureOptions {
            buffer_bytes: 1,
            on_pressure: Pressure::Throttle,
            ..options()
        };
        let report = capture(Backing::Anonymous, 16 * MIB, 4, chunk, options);
        assert!(report.buffer_high_water_bytes <= u64::from(chunk));
    }
}

#[test]
fn many_captures_of_one_memory_do_not_disturb_each_other() {
    if !can_capture() {
        return;
    }
    let memory = two_regions(16 * MIB, Backing::Anonymous);
    populate(&memory);
    let layout = layout(&memory, 64 << 10);
    let writers = Writers::start(&memory, 2);
    for _ in 0..20 {
        let (capture, expected) = arm_and_freeze(&memory, &writers, 64 << 10, options());
        let sink = MemorySink::new(&layout, Behaviour::Keep);
        capture.drain(&sink).unwrap();
        assert_same(&sink.into_contents(), &expected);
    }
    writers.end();
    assert_free(&memory);
}

#[test]
fn stop_and_copy_takes_the_same_chunks_without_protection() {
    for chunk in CHUNK_SIZES {
        let memory = two_regions(8 * MIB, Backing::Anonymous);
        populate(&memory);
        let layout = layout(&memory, chunk);
        let sink = MemorySink::new(&layout, Behaviour::Keep);
        let report = stop_and_copy(&memory, layout, CaptureOptions::default(), &sink).unwrap();
        assert_eq!((report.mode, report.kernel_path), (CaptureMode::Stop, None));
        assert_same(&sink.into_contents(), &contents(&memory));
    }
}
