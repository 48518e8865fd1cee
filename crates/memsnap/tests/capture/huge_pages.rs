//! Transparent huge pages that the guest does not write during a capture stay whole.

use memsnap::CaptureOptions;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use crate::guest::{Backing, MIB, Writers, arm_and_freeze, can_capture, layout, populate, two_regions};
use crate::sink::{Behaviour, MemorySink};

/// Bytes of the first region that are mapped by huge pages.
fn huge_bytes(memory: &GuestMemoryMmap<()>) -> usize {
    let start = memory.iter().next().unwrap().get_mmap().as_ptr() as usize;
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        if let Some((first, _)) = line.split_once('-') {
            inside = usize::from_str_radix(first, 16).map_or(inside, |first| first == start);
        }
        if let Some(size) = line.strip_prefix("AnonHugePages:").filter(|_| inside) {
            return size.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10;
        }
    }
    panic!("the region is not mapped")
}

#[test]
fn huge_pages_stay_whole_where_nobody_writes() {
    if !can_capture() {
        return;
    }
    let memory = two_regions(32 * MIB, Backing::Huge);
    populate(&memory);
    let before = huge_bytes(&memory);
    if before == 0 {
        return eprintln!("SKIPPED: no transparent huge pages on this machine");
    }
    for chunk in [4 << 10, 64 << 10, 2 << 20] {
        let options = CaptureOptions::default();
        let (capture, _) = arm_and_freeze(&memory, &Writers::idle(), chunk, options);
        capture
            .drain(&MemorySink::new(&layout(&memory, chunk), Behaviour::Keep))
            .unwrap();
        assert_eq!(huge_bytes(&memory), before, "chunks of {chunk}");
    }
}
