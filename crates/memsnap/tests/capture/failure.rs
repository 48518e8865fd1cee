//! However a capture ends, the memory is free and its writers run on.

#![expect(unsafe_code, reason = "discards memory by address")]

use std::time::Duration;

use memsnap::{Capture, CaptureControl, CaptureOptions, CapturePhase, Error, Pressure, stop_and_copy};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use crate::guest::{Backing, MIB, Writers, arm_and_freeze, assert_free, can_capture, layout};
use crate::guest::{populate, two_regions, wait_for_fault};
use crate::sink::{Behaviour, MemorySink};

const CHUNK: u32 = 16 << 10;

/// Memory under full write load, captured into a sink of that behaviour; returns the error.
fn failing(behaviour: Behaviour, options: CaptureOptions) -> Error {
    let memory = two_regions(16 * MIB, Backing::Anonymous);
    populate(&memory);
    let writers = Writers::start(&memory, 2);
    let (capture, _) = arm_and_freeze(&memory, &writers, CHUNK, options);
    let control = capture.control();
    let sink = MemorySink::new(&layout(&memory, CHUNK), behaviour);
    let error = capture.drain(&sink).expect_err("the capture fails");
    assert_eq!(control.progress().phase, CapturePhase::Failed);
    writers.wait_for_progress();
    writers.end();
    assert_free(&memory);
    error
}

fn patient() -> CaptureOptions {
    CaptureOptions {
        max_stall: Duration::from_secs(60),
        ..CaptureOptions::default()
    }
}

#[test]
fn a_sink_that_refuses_ends_the_capture_with_its_own_error() {
    if !can_capture() {
        return;
    }
    for after in [0, 1, 100] {
        let error = failing(Behaviour::FailAfter(after), patient());
        let Error::Sink(cause) = error else {
            panic!("{error}")
        };
        assert_eq!(cause.to_string(), "the disk is full");
    }
}

#[test]
fn a_sink_that_panics_ends_the_capture_with_an_error() {
    if !can_capture() {
        return;
    }
    let error = failing(Behaviour::PanicAfter(10), patient());
    let Error::Panicked { message, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(message, "the encoder is broken");
}

#[test]
fn a_sink_slower_than_the_stall_limit_ends_the_capture() {
    if !can_capture() {
        return;
    }
    let options = CaptureOptions {
        buffer_bytes: u64::from(CHUNK),
        max_stall: Duration::from_millis(20),
        ..CaptureOptions::default()
    };
    let error = failing(Behaviour::Slow(Duration::from_millis(50)), options);
    assert!(matches!(error, Error::Stall { .. }), "{error}");
}

#[test]
fn full_buffers_end_the_capture_if_the_policy_is_to_fail() {
    if !can_capture() {
        return;
    }
    let options = CaptureOptions {
        buffer_bytes: u64::from(CHUNK),
        on_pressure: Pressure::Fail,
        ..CaptureOptions::default()
    };
    let error = failing(Behaviour::Slow(Duration::from_millis(5)), options);
    assert!(
        matches!(error, Error::Pressure { buffer_bytes } if buffer_bytes == u64::from(CHUNK)),
        "{error}"
    );
}

#[test]
fn cancelling_at_any_moment_leaves_the_memory_free() {
    if !can_capture() {
        return;
    }
    let memory = two_regions(16 * MIB, Backing::Anonymous);
    populate(&memory);
    let writers = Writers::start(&memory, 2);
    for delay_us in [0, 50, 200, 500, 1000, 2000, 3000, 5000, 8000, 13000, 21000] {
        let (outcome, control) = cancelled_after(&memory, &writers, Duration::from_micros(delay_us));
        if let Err(error) = outcome {
            assert!(matches!(error, Error::Cancelled), "{error}");
            assert_eq!(control.progress().phase, CapturePhase::Failed);
        }
        writers.wait_for_progress();
    }
    writers.end();
    assert_free(&memory);
}

/// Captures, with another thread cancelling after `delay`.
fn cancelled_after(
    memory: &GuestMemoryMmap<()>,
    writers: &Writers,
    delay: Duration,
) -> (Result<(), Error>, CaptureControl) {
    let control = CaptureControl::new();
    let options = CaptureOptions {
        control: control.clone(),
        ..patient()
    };
    let layout = layout(memory, CHUNK);
    let sink = MemorySink::new(&layout, Behaviour::Slow(Duration::from_micros(20)));
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(delay);
            control.cancel();
        });
        let mut capture = Capture::arm(memory, layout, options)?;
        let paused = writers.pause();
        let frozen = capture.freeze();
        drop(paused);
        frozen?;
        capture.drain(&sink).map(drop)
    });
    (outcome, control)
}

#[test]
fn a_capture_dropped_in_any_phase_leaves_the_memory_free() {
    if !can_capture() {
        return;
    }
    let memory = two_regions(16 * MIB, Backing::Anonymous);
    populate(&memory);
    let writers = Writers::start(&memory, 2);
    drop(Capture::arm(&memory, layout(&memory, CHUNK), patient()).unwrap());
    writers.wait_for_progress();
    let (capture, _) = arm_and_freeze(&memory, &writers, CHUNK, patient());
    drop(capture);
    writers.wait_for_progress();
    let (capture, _) = arm_and_freeze(&memory, &writers, CHUNK, patient());
    wait_for_fault(&capture);
    drop(capture);
    writers.wait_for_progress();
    writers.end();
    assert_free(&memory);
}

#[test]
fn memory_discarded_during_the_capture_ends_it() {
    if !can_capture() {
        return;
    }
    let memory = two_regions(16 * MIB, Backing::Anonymous);
    populate(&memory);
    let (capture, _) = arm_and_freeze(&memory, &Writers::idle(), CHUNK, patient());
    let mapping = memory.iter().next().unwrap().get_mmap();
    // SAFETY: the mapping is alive and nothing relies on what it holds.
    unsafe {
        rustix::mm::madvise(mapping.as_ptr().cast(), MIB, rustix::mm::Advice::LinuxDontNeed).unwrap();
    }
    let sink = MemorySink::new(&layout(&memory, CHUNK), Behaviour::Keep);
    let error = capture.drain(&sink).expect_err("content is lost");
    assert!(matches!(error, Error::Discarded { guest_address: 0 }), "{error}");
    assert_free(&memory);
}

#[test]
fn phases_out_of_order_are_errors() {
    if !can_capture() {
        return;
    }
    let memory = two_regions(MIB, Backing::Anonymous);
    let layout = layout(&memory, CHUNK);
    let sink = MemorySink::new(&layout, Behaviour::Keep);
    let capture = Capture::arm(&memory, layout.clone(), patient()).unwrap();
    assert!(matches!(capture.drain(&sink), Err(Error::Phase { .. })));
    let mut capture = Capture::arm(&memory, layout, patient()).unwrap();
    capture.freeze().unwrap();
    assert!(matches!(capture.freeze(), Err(Error::Phase { .. })));
    capture.drain(&sink).unwrap();
    assert_free(&memory);
}

#[test]
fn a_layout_of_other_memory_is_refused() {
    let memory = two_regions(MIB, Backing::Anonymous);
    let other = layout(&two_regions(2 * MIB, Backing::Anonymous), CHUNK);
    let sink = MemorySink::new(&other, Behaviour::Keep);
    let outcome = stop_and_copy(&memory, other, CaptureOptions::default(), &sink);
    assert!(matches!(outcome, Err(Error::MemoryMap { .. })));
}

#[test]
fn stop_and_copy_reports_a_refusing_and_a_panicking_sink() {
    let memory = two_regions(MIB, Backing::Anonymous);
    populate(&memory);
    let layout = layout(&memory, CHUNK);
    let stop = |behaviour| {
        let sink = MemorySink::new(&layout, behaviour);
        stop_and_copy(&memory, layout.clone(), CaptureOptions::default(), &sink)
    };
    assert!(matches!(stop(Behaviour::FailAfter(3)), Err(Error::Sink(_))));
    assert!(matches!(
        stop(Behaviour::PanicAfter(3)),
        Err(Error::Panicked { .. })
    ));
}
