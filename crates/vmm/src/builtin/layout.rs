//! Where the built-in guest's parts stand in guest memory, and the shape of its two shared pages.
//!
//! The assembly takes every number of this file as an operand, so there is one source for both
//! sides. Everything below [`CONTROL_END`] is at a fixed address; the working set follows.

/// Bytes of a page.
pub(crate) const PAGE_SIZE: u64 = 4096;
/// Guest memory below this address belongs to the machine's boot code.
pub(crate) const BOOT_AREA_END: u64 = 0x10_0000;
/// The page where application processors start, in 16-bit mode; its number is the SIPI vector.
pub(crate) const TRAMPOLINE: u64 = 0x8000;

/// First byte of the control area: the program, whose first instruction is the entry point.
pub(crate) const CODE: u64 = 0x10_0000;
/// The page of settings that the loader writes and nobody changes.
pub(crate) const PARAMETERS: u64 = 0x10_2000;
/// The interrupt descriptor table, one page.
pub(crate) const IDT: u64 = 0x10_3000;
/// One page for each vCPU: mailbox at the start, stack at the end.
pub(crate) const CPU_PAGES: u64 = 0x10_4000;
/// Most vCPUs that the guest can use.
pub(crate) const MAX_CPUS: u32 = 32;
/// Root of the page tables.
pub(crate) const PML4: u64 = CPU_PAGES + MAX_CPUS as u64 * PAGE_SIZE;
/// The page directory pointer table.
pub(crate) const PDPT: u64 = PML4 + PAGE_SIZE;
/// Page directories, each mapping 1 GiB in 2 MiB pages.
pub(crate) const PAGE_DIRECTORIES: u64 = PDPT + PAGE_SIZE;
/// End of the guest physical addresses that the page tables can map.
pub(crate) const MAX_ADDRESS: u64 = 128 << 30;

/// The pattern table: what steps write. First an incompressible half, then a half like text.
pub(crate) const TABLE: u64 = 0x1b_0000;
/// Bytes of one half of the pattern table.
pub(crate) const TABLE_HALF: u64 = 1 << 20;
/// Bytes of the pattern table; the last page serves sources near the end of the second half.
pub(crate) const TABLE_LEN: u64 = 2 * TABLE_HALF + PAGE_SIZE;
/// A step's hash is shifted right by this to give a word offset within one half of the table.
pub(crate) const SOURCE_SHIFT: u32 = 64 - (TABLE_HALF / 8).ilog2();
/// End of the control area.
pub(crate) const CONTROL_END: u64 = TABLE + TABLE_LEN;
/// First page of the working set.
pub(crate) const WORKING_SET: u64 = 0x40_0000;

/// The local APIC of whichever vCPU looks.
pub(crate) const LAPIC: u64 = 0xfee0_0000;
/// Interrupt vector of the local APIC's timer.
pub(crate) const TIMER_VECTOR: u8 = 0x20;
/// Interrupt vector of spurious interrupts.
pub(crate) const SPURIOUS_VECTOR: u8 = 0xff;

/// Number of strides in the parameter page, a power of two.
pub(crate) const STRIDES: usize = 32;

/// Offsets of fields in the parameter page.
pub(crate) mod parameter {
    pub(crate) const MAGIC: u64 = 0;
    pub(crate) const VERSION: u64 = 8;
    pub(crate) const CPUS: u64 = 12;
    pub(crate) const SEED: u64 = 16;
    pub(crate) const PAGES_PER_CPU: u64 = 24;
    pub(crate) const BYTES_PER_CPU: u64 = 32;
    pub(crate) const LOW_PAGES: u64 = 40;
    pub(crate) const HIGH_ADDRESS: u64 = 48;
    pub(crate) const WORDS_AFTER_STAMP: u64 = 56;
    pub(crate) const PAGES_PER_SECOND: u64 = 60;
    pub(crate) const INCOMPRESSIBLE_BELOW: u64 = 64;
    pub(crate) const FLAGS: u64 = 68;
    pub(crate) const CREDIT_PER_TICK: u64 = 72;
    pub(crate) const TIMER_COUNT: u64 = 80;
    pub(crate) const STEPS_PER_EVENT: u64 = 84;
    pub(crate) const STEPS_PER_REPORT: u64 = 88;
    pub(crate) const CHECK_ZERO_BELOW: u64 = 96;
    /// One [`ENTRY_LEN`] record for each vCPU.
    pub(crate) const CPU_ENTRIES: u64 = 256;
    pub(crate) const ENTRY_LEN: u64 = 64;
    /// Pairs of stride and inverse, 8 bytes each.
    pub(crate) const STRIDES: u64 = CPU_ENTRIES + super::MAX_CPUS as u64 * ENTRY_LEN;
    pub(crate) const END: u64 = STRIDES + super::STRIDES as u64 * 16;

    /// Flag: wait for the timer between bursts.
    pub(crate) const FLAG_PACED: u32 = 1;
    /// Flag: nobody filled the working set, it starts as zero.
    pub(crate) const FLAG_STARTS_ZERO: u32 = 2;
}

/// Offsets of fields in a vCPU's record of the parameter page.
pub(crate) mod entry {
    pub(crate) const BASE: u64 = 0;
    pub(crate) const HOLE_AT: u64 = 8;
    pub(crate) const HOLE_LEN: u64 = 16;
    pub(crate) const STAMP_BASE: u64 = 24;
    pub(crate) const ROUND_SEED: u64 = 32;
    pub(crate) const SOURCE_FACTOR: u64 = 40;
}

/// Offsets of fields at the start of a vCPU's own page; its stack grows down from the end.
pub(crate) mod mailbox {
    pub(crate) const STEP: u64 = 0;
    pub(crate) const TSC: u64 = 8;
    pub(crate) const LONGEST_GAP: u64 = 16;
    pub(crate) const RESET: u64 = 24;
    pub(crate) const BAD_STAMPS: u64 = 32;
    pub(crate) const NEXT_REPORT: u64 = 40;
    pub(crate) const ROUND_LEFT: u64 = 48;
    pub(crate) const BURST_LEFT: u64 = 56;
    pub(crate) const CREDIT: u64 = 64;
    /// Only the first vCPU's counts: the serial port is one for all.
    pub(crate) const SERIAL_LOCK: u64 = 72;
}

const _: () = {
    assert!(PAGE_DIRECTORIES + (MAX_ADDRESS >> 30) * PAGE_SIZE <= TABLE);
    assert!(CONTROL_END <= WORKING_SET);
    assert!(parameter::END <= PAGE_SIZE);
    assert!(parameter::CHECK_ZERO_BELOW + 8 <= parameter::CPU_ENTRIES);
    assert!(TABLE_HALF.is_power_of_two() && STRIDES.is_power_of_two());
};

/// Narrows a size or offset of guest memory to a host index.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).expect("x86-64 hosts index with 64 bits")
}
