//! Writes that the kernel does on someone's behalf wait like any other.

use std::io::{Seek, Write};

use memsnap::CaptureOptions;
use vm_memory::{Bytes, GuestAddress};

use crate::guest::{Backing, MIB, Writers, arm_and_freeze, assert_free, can_capture, layout, place};
use crate::guest::{populate, two_regions, wait_for_fault};
use crate::sink::{Behaviour, MemorySink, assert_same};

#[test]
fn reads_of_a_file_into_guest_memory_are_caught() {
    if !can_capture() {
        return;
    }
    for backing in [Backing::Anonymous, Backing::Memfd, Backing::Huge] {
        let memory = two_regions(16 * MIB, backing);
        populate(&memory);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0xEE; 4096]).unwrap();
        let mut writers = Writers::idle();
        let target = memory.clone();
        writers.add(move |step| {
            let (region, offset) = place(&target, step);
            file.rewind().unwrap();
            // Any offset, so that one read(2) often writes two pages.
            let end = offset.min((4 * MIB - 4096) as u64);
            target
                .read_exact_volatile_from(GuestAddress(region + end), &mut file, 4096)
                .unwrap();
        });
        writers.wait_for_progress();
        let options = CaptureOptions {
            max_stall: std::time::Duration::from_secs(60),
            ..CaptureOptions::default()
        };
        let (capture, expected) = arm_and_freeze(&memory, &writers, 16 << 10, options);
        wait_for_fault(&capture);
        let sink = MemorySink::new(&layout(&memory, 16 << 10), Behaviour::Keep);
        capture.drain(&sink).unwrap();
        writers.wait_for_progress();
        writers.end();
        assert_same(&sink.into_contents(), &expected);
        assert_free(&memory);
    }
}
