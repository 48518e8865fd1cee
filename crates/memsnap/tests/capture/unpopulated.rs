//! Memory that is not there is captured as zero, is not brought into being, and is protected all the same.

use memsnap::{CaptureOptions, KernelPath, stop_and_copy};
use uffd::{Features, Uffd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::guest::{Backing, MIB, PAGE, Writers, arm_and_freeze, can_capture, layout, two_regions};
use crate::sink::{Behaviour, MemorySink};

const CHUNK: u32 = 64 << 10;

/// Pages that are there.
fn present_pages(memory: &GuestMemoryMmap<()>) -> usize {
    let count = |region: &vm_memory::GuestRegionMmap<()>| {
        let mapping = region.get_mmap();
        let mut pages = vec![0; mapping.size() / PAGE];
        uffd::residency(mapping.as_ptr() as usize, mapping.size(), &mut pages).unwrap();
        pages.iter().filter(|page| **page == 1).count()
    };
    memory.iter().map(count).sum()
}

#[test]
fn absent_chunks_are_zero_and_stay_absent() {
    if !can_capture() {
        return;
    }
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let memory = two_regions(16 * MIB, backing);
        memory.write_obj(7u64, GuestAddress(3 * 1024 * 1024)).unwrap();
        let before = present_pages(&memory);
        let writers = Writers::idle();
        let (capture, _) = arm_and_freeze(&memory, &writers, CHUNK, CaptureOptions::default());
        let sink = MemorySink::new(&layout(&memory, CHUNK), Behaviour::Keep);
        let report = capture.drain(&sink).unwrap();
        assert_eq!(
            present_pages(&memory),
            before,
            "{backing:?}: nothing was brought into being"
        );
        if report.kernel_path == Some(KernelPath::WpUnpopulated) {
            assert_eq!(report.chunks_unpopulated, report.chunks - 1, "{backing:?}");
        }
        let captured = sink.into_contents();
        assert_eq!(captured[3 * MIB], 7);
        assert_eq!(captured.iter().filter(|byte| **byte != 0).count(), 1);
    }
}

#[test]
fn a_first_write_after_the_freeze_is_not_captured() {
    let lacking = || {
        !Uffd::supported_features()
            .unwrap()
            .contains(Features::WP_UNPOPULATED)
    };
    if !can_capture() || lacking() {
        eprintln!("SKIPPED: needs WP_UNPOPULATED");
        return;
    }
    for backing in [Backing::Anonymous, Backing::Huge, Backing::Memfd] {
        let memory = two_regions(16 * MIB, backing);
        let writers = Writers::idle();
        let (capture, _) = arm_and_freeze(&memory, &writers, CHUNK, CaptureOptions::default());
        for offset in (0..16 * MIB).step_by(96 << 10) {
            memory.write_obj(u64::MAX, GuestAddress(offset as u64)).unwrap();
        }
        let sink = MemorySink::new(&layout(&memory, CHUNK), Behaviour::Keep);
        let report = capture.drain(&sink).unwrap();
        assert!(report.faults_draining > 0);
        assert_eq!(report.copied_bytes, 0, "{backing:?}: absent chunks need no copy");
        assert!(sink.into_contents().iter().all(|byte| *byte == 0), "{backing:?}");
    }
}

#[test]
fn stop_and_copy_passes_over_absent_memory_too() {
    let memory = two_regions(16 * MIB, Backing::Anonymous);
    memory.write_obj(1u8, GuestAddress(0)).unwrap();
    let layout = layout(&memory, CHUNK);
    let sink = MemorySink::new(&layout, Behaviour::Keep);
    let report = stop_and_copy(&memory, layout, CaptureOptions::default(), &sink).unwrap();
    assert_eq!(report.bytes_encoded, u64::from(CHUNK));
    assert_eq!(present_pages(&memory), 1);
}
