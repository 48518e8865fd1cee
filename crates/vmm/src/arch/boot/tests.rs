use super::*;
use crate::config::Backing;
use crate::layout::{HIGH_RAM_START, LOW_RAM_END};
use crate::memory::{create_guest_memory_for, memory_ranges};

fn memory(bytes: u64) -> GuestMemoryMmap {
    create_guest_memory_for(&memory_ranges(bytes), Backing::Anonymous, false).unwrap()
}

fn with(kernel: Kernel) -> MachineConfig {
    MachineConfig {
        kernel: Some(kernel),
        ..MachineConfig::default()
    }
}

#[test]
fn the_memory_map_is_ordered_without_overlap_and_tells_all_memory_but_the_legacy_area() {
    for bytes in [2 << 20, 1 << 30, (3 << 30) + (64 << 20)] {
        let map = memory_map::entries(&memory(bytes));
        assert!(map.windows(2).all(|pair| pair[0].end <= pair[1].start), "{map:?}");
        let ram: u64 = map
            .iter()
            .filter(|entry| entry.kind == memory_map::RAM)
            .map(|entry| entry.end - entry.start)
            .sum();
        assert_eq!(ram, bytes - (HIGH_RAM_START.0 - LOW_RAM_END));
    }
}

#[test]
fn files_that_are_no_bootable_kernel_are_refused() {
    let memory = memory(2 << 20);
    let cases: [&[u8]; 3] = [b"", b"\x7fELF", &[0; 4096]];
    for image in cases {
        let result = load(&memory, &with(Kernel::Image(image.to_vec())));
        assert!(matches!(result, Err(Error::Kernel { .. })), "{result:?}");
    }
    let result = load(&memory, &with(Kernel::File("/nonexistent/kernel".into())));
    assert!(matches!(result, Err(Error::OpenKernel { .. })), "{result:?}");
}
