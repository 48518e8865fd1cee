//! Memory that its owner gives back during a capture is captured as it was at the point in time.

#![expect(unsafe_code, reason = "discards memory by address")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use memsnap::{Capture, CaptureControl, CaptureOptions, Discards, Error, KernelPath, stop_and_copy};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::guest::{Backing, MIB, PAGE, Writers, arm_and_freeze, assert_free, can_capture, contents, layout};
use crate::guest::{place, populate, two_regions, wait_for_fault};
use crate::sink::{Behaviour, MemorySink, assert_same};

const CHUNK: u32 = 64 << 10;
const BACKINGS: [Backing; 3] = [Backing::Anonymous, Backing::Huge, Backing::Memfd];
const PATHS: [KernelPath; 2] = [KernelPath::Auto, KernelPath::PopulateFirst];

fn options(kernel: KernelPath) -> CaptureOptions {
    CaptureOptions {
        max_stall: Duration::from_secs(60),
        kernel,
        ..CaptureOptions::default()
    }
}

/// Adds a thread to `writers` that gives back one to sixteen pages anywhere, again and again.
fn add_discarder(writers: &mut Writers, memory: &GuestMemoryMmap<()>, discards: Discards) {
    let memory = memory.clone();
    writers.add(move |step| {
        let (region, offset) = place(&memory, step);
        let first = offset & !(PAGE as u64 - 1);
        let len = memory.find_region(GuestAddress(region)).unwrap().len();
        let pages = (1 + step % 16) * PAGE as u64;
        discards
            .discard(&memory, region + first, pages.min(len - first))
            .unwrap();
    });
}

/// Captures while two threads write and one discards, and compares.
fn capture_beside_discards(backing: Backing, chunk: u32, options: CaptureOptions) {
    let memory = two_regions(24 * MIB, backing);
    populate(&memory);
    let layout = layout(&memory, chunk);
    let mut writers = Writers::start(&memory, 2);
    add_discarder(&mut writers, &memory, options.control.discards());
    writers.wait_for_progress();
    let (capture, expected) = arm_and_freeze(&memory, &writers, chunk, options);
    wait_for_fault(&capture);
    let sink = MemorySink::new(&layout, Behaviour::Keep);
    let report = capture.drain(&sink).unwrap();
    writers.wait_for_progress();
    writers.end();
    assert_same(&sink.into_contents(), &expected);
    assert!(report.discarded_bytes > 0, "pages were given back meanwhile");
    assert_free(&memory);
}

#[test]
fn memory_is_as_of_the_freeze_beside_discards_for_every_backing_and_chunk_size() {
    if !can_capture() {
        return;
    }
    for backing in BACKINGS {
        for kernel in PATHS {
            for chunk in [4 << 10, CHUNK, 2 << 20] {
                capture_beside_discards(backing, chunk, options(kernel));
            }
        }
    }
}

#[test]
fn discards_do_not_need_copy_buffers() {
    if !can_capture() {
        return;
    }
    let options = CaptureOptions {
        buffer_bytes: 1,
        ..options(KernelPath::Auto)
    };
    capture_beside_discards(Backing::Anonymous, CHUNK, options);
}

#[test]
fn a_discard_that_races_every_phase_is_before_or_after_the_point_in_time() {
    if !can_capture() {
        return;
    }
    for kernel in PATHS {
        let memory = two_regions(64 * MIB, Backing::Anonymous);
        memory.write_slice(&vec![1; 64 * MIB], GuestAddress(0)).unwrap();
        let options = options(kernel);
        let discards = options.control.discards();
        let done = AtomicU64::new(0);
        let captured = thread::scope(|scope| {
            scope.spawn(|| {
                for page in 0..64 * MIB / PAGE {
                    discards
                        .discard(&memory, (page * PAGE) as u64, PAGE as u64)
                        .unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
            while done.load(Ordering::Relaxed) < 100 {
                thread::yield_now();
            }
            let layout = layout(&memory, CHUNK);
            let mut capture = Capture::arm(&memory, layout.clone(), options).unwrap();
            // Nobody holds the discarder off.
            capture.freeze().unwrap();
            let sink = MemorySink::new(&layout, Behaviour::Keep);
            capture.drain(&sink).unwrap();
            sink.into_contents()
        });
        let pages = captured[..64 * MIB].chunks(PAGE);
        let whole: Vec<u8> = pages
            .map(|page| {
                assert!(page.iter().all(|byte| *byte == page[0]), "no page is torn");
                page[0]
            })
            .collect();
        // Pages went in ascending order, so at any instant the first ones are gone and the others are not.
        let gone = whole.iter().take_while(|byte| **byte == 0).count();
        assert!(
            gone >= 100 && whole[gone..].iter().all(|byte| *byte == 1),
            "{gone}"
        );
        assert_free(&memory);
    }
}

#[test]
fn what_is_discarded_before_the_freeze_is_captured_as_zero_and_protected_again() {
    if !can_capture() {
        return;
    }
    for backing in BACKINGS {
        for kernel in PATHS {
            let memory = two_regions(16 * MIB, backing);
            populate(&memory);
            let layout = layout(&memory, CHUNK);
            let options = options(kernel);
            let discards = options.control.discards();
            let mut capture = Capture::arm(&memory, layout.clone(), options).unwrap();
            let (start, len) = (3 * PAGE, 5 * MIB);
            discards.discard(&memory, start as u64, len as u64).unwrap();
            let mut expected = contents(&memory);
            assert!(expected[start..start + len].iter().all(|byte| *byte == 0));
            capture.freeze().unwrap();
            for offset in (start..start + len).step_by(PAGE) {
                memory.write_obj(u64::MAX, GuestAddress(offset as u64)).unwrap();
            }
            let sink = MemorySink::new(&layout, Behaviour::Keep);
            let report = capture.drain(&sink).unwrap();
            expected[start..start + len].fill(0);
            assert_same(&sink.into_contents(), &expected);
            assert_eq!(report.discarded_bytes, len as u64);
            assert_free(&memory);
        }
    }
}

#[test]
fn what_is_discarded_after_the_freeze_is_copied_first() {
    if !can_capture() {
        return;
    }
    for backing in BACKINGS {
        let memory = two_regions(16 * MIB, backing);
        populate(&memory);
        let options = options(KernelPath::Auto);
        let discards = options.control.discards();
        let (capture, expected) = arm_and_freeze(&memory, &Writers::idle(), CHUNK, options);
        // There are buffers enough that this need not wait for the walkers.
        discards.discard(&memory, PAGE as u64, 3 * MIB as u64).unwrap();
        assert!(
            contents(&memory)[PAGE..PAGE + 3 * MIB]
                .iter()
                .all(|byte| *byte == 0)
        );
        let sink = MemorySink::new(&layout(&memory, CHUNK), Behaviour::Keep);
        let report = capture.drain(&sink).unwrap();
        assert_same(&sink.into_contents(), &expected);
        assert_eq!(report.discarded_bytes, 3 * MIB as u64);
        assert!(report.copied_bytes >= 3 * MIB as u64);
        assert_free(&memory);
    }
}

/// Freezes with next to no buffers, lets a thread discard all of the first region, and does `end` to the
/// capture; returns only if the discard does.
fn with_waiting_discard(end: impl FnOnce(Capture, &GuestMemoryMmap<()>)) {
    let memory = two_regions(16 * MIB, Backing::Anonymous);
    populate(&memory);
    let options = CaptureOptions {
        buffer_bytes: 4 * u64::from(CHUNK),
        ..options(KernelPath::Auto)
    };
    let discards = options.control.discards();
    let (capture, _) = arm_and_freeze(&memory, &Writers::idle(), CHUNK, options);
    let begun = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            discards.discard(&memory, 0, PAGE as u64).unwrap();
            begun.store(true, Ordering::SeqCst);
            discards.discard(&memory, 0, 16 * MIB as u64).unwrap();
        });
        while !begun.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        end(capture, &memory);
    });
    assert!(contents(&memory)[..16 * MIB].iter().all(|byte| *byte == 0));
    assert_free(&memory);
}

#[test]
fn a_waiting_discard_ends_when_its_capture_is_dropped() {
    if can_capture() {
        with_waiting_discard(|capture, _| drop(capture));
    }
}

#[test]
fn a_waiting_discard_ends_when_its_capture_is_cancelled() {
    if !can_capture() {
        return;
    }
    with_waiting_discard(|capture, memory| {
        capture.control().cancel();
        let sink = MemorySink::new(&layout(memory, CHUNK), Behaviour::Keep);
        assert!(matches!(capture.drain(&sink), Err(Error::Cancelled)));
    });
}

#[test]
fn a_waiting_discard_ends_when_the_sink_refuses() {
    if !can_capture() {
        return;
    }
    with_waiting_discard(|capture, memory| {
        let sink = MemorySink::new(&layout(memory, CHUNK), Behaviour::FailAfter(2));
        assert!(matches!(capture.drain(&sink), Err(Error::Sink(_))));
    });
}

#[test]
fn a_waiting_discard_goes_on_as_the_walkers_do() {
    if !can_capture() {
        return;
    }
    with_waiting_discard(|capture, memory| {
        let sink = MemorySink::new(&layout(memory, CHUNK), Behaviour::Slow(Duration::from_micros(50)));
        capture.drain(&sink).unwrap();
        assert!(
            sink.into_contents()[..16 * MIB]
                .chunks(PAGE)
                .all(|page| page[0] != 0)
        );
    });
}

#[test]
fn discards_behind_the_captures_back_are_still_noticed_in_every_phase() {
    if !can_capture() {
        return;
    }
    let foreign = |memory: &GuestMemoryMmap<()>| {
        let mapping = memory.iter().next().unwrap().get_mmap();
        // SAFETY: the mapping is alive and nothing relies on what it holds.
        unsafe { rustix::mm::madvise(mapping.as_ptr().cast(), MIB, rustix::mm::Advice::LinuxDontNeed) }
            .unwrap();
    };
    for frozen in [false, true] {
        let memory = two_regions(16 * MIB, Backing::Anonymous);
        populate(&memory);
        let layout = layout(&memory, CHUNK);
        let options = options(KernelPath::Auto);
        let discards = options.control.discards();
        let mut capture = Capture::arm(&memory, layout.clone(), options).unwrap();
        if frozen {
            capture.freeze().unwrap();
        }
        // The same range, announced, is no excuse.
        discards.discard(&memory, 0, MIB as u64).unwrap();
        foreign(&memory);
        let outcome = if frozen {
            capture
                .drain(&MemorySink::new(&layout, Behaviour::Keep))
                .map(drop)
        } else {
            capture.freeze()
        };
        let error = outcome.expect_err("content is lost");
        assert!(matches!(error, Error::Discarded { guest_address: 0 }), "{error}");
        // The capture is gone, the route is not.
        discards.discard(&memory, 0, MIB as u64).unwrap();
        assert_free(&memory);
    }
}

#[test]
fn discards_are_plain_again_once_the_capture_has_ended() {
    if !can_capture() {
        return;
    }
    for backing in BACKINGS {
        let memory = two_regions(16 * MIB, backing);
        populate(&memory);
        let options = options(KernelPath::Auto);
        let discards = options.control.discards();
        let (capture, _) = arm_and_freeze(&memory, &Writers::idle(), CHUNK, options);
        let sink = MemorySink::new(&layout(&memory, CHUNK), Behaviour::Keep);
        assert_eq!(capture.drain(&sink).unwrap().discarded_bytes, 0);
        discards.discard(&memory, 0, 16 * MIB as u64).unwrap();
        assert!(
            contents(&memory)[..16 * MIB].iter().all(|byte| *byte == 0),
            "{backing:?}"
        );
        assert_free(&memory);
    }
}

#[test]
fn stop_and_copy_has_what_is_discarded_meanwhile() {
    let memory = two_regions(16 * MIB, Backing::Anonymous);
    populate(&memory);
    let expected = contents(&memory);
    let layout = layout(&memory, CHUNK);
    let control = CaptureControl::new();
    let options = CaptureOptions {
        control: control.clone(),
        ..CaptureOptions::default()
    };
    let sink = MemorySink::new(&layout, Behaviour::Slow(Duration::from_micros(100)));
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            while control.progress().chunks_done == 0 {
                thread::yield_now();
            }
            control.discards().discard(&memory, 0, 16 * MIB as u64).unwrap();
        });
        stop_and_copy(&memory, layout.clone(), options, &sink).unwrap()
    });
    assert_same(&sink.into_contents(), &expected);
    assert_eq!(report.bytes_encoded, expected.len() as u64);
    assert!(contents(&memory)[..16 * MIB].iter().all(|byte| *byte == 0));
}
