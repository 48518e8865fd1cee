//! Where the built-in guest's parts stand in guest memory, and the shape of its two shared pages.
//!
//! The assembly takes every number of this file as an operand, so there is one source for both
//! sides. Everything below [`CONTROL_END`] is at a fixed address; the working set follows.

/// Bytes of a page.
pub(crate) const PAGE_SIZE: u64 = 4096;
/// The same, as the length of an array.
pub(crate) const PAGE_LEN: usize = 4096;
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
/// Maps the first 4 GiB to themselves, in 2 MiB pages: four directories follow the table.
pub(crate) const IDENTITY_TABLES: u64 = PML4 + PAGE_SIZE;
/// Bytes that those tables map.
pub(crate) const IDENTITY_LEN: u64 = 4 << 30;
/// Maps the working set at [`WINDOW`], in 2 MiB pages: as many directories as it needs follow.
pub(crate) const WINDOW_TABLES: u64 = IDENTITY_TABLES + 5 * PAGE_SIZE;
/// Guest virtual address where the working set is contiguous, whatever holes guest memory has.
pub(crate) const WINDOW: u64 = 512 << 30;
/// Most bytes of a working set.
pub(crate) const MAX_WORKING_SET: u64 = 128 << 30;
/// Bytes mapped by one entry of a page directory.
pub(crate) const LARGE_PAGE: u64 = 2 << 20;

/// The pattern table: what steps write. Its first part is incompressible, the rest is like text.
pub(crate) const TABLE: u64 = 0x1b_0000;
/// Bytes of the pattern table where a step's source may start.
pub(crate) const TABLE_STARTS: u64 = 2 << 20;
/// Bytes of the pattern table; the last page serves sources that start near its end.
pub(crate) const TABLE_LEN: u64 = TABLE_STARTS + PAGE_SIZE;
/// A step's hash is shifted right by this to give the word of the table where its source starts.
pub(crate) const SOURCE_SHIFT: u32 = 64 - (TABLE_STARTS / 8).ilog2();
/// End of the control area.
pub(crate) const CONTROL_END: u64 = TABLE + TABLE_LEN;
/// Guest physical address of the working set's first page; it goes on in the next memory region.
pub(crate) const WORKING_SET: u64 = 0x40_0000;

/// The local APIC of whichever vCPU looks.
pub(crate) const LAPIC: u64 = 0xfee0_0000;
/// Interrupt vector of the local APIC's timer.
pub(crate) const TIMER_VECTOR: u8 = 0x20;
/// Interrupt vector of spurious interrupts.
pub(crate) const SPURIOUS_VECTOR: u8 = 0xff;

/// A vCPU reports its step on the serial port every two to this power ticks of the time-stamp counter,
/// which is about once a second.
pub(crate) const REPORT_SHIFT: u32 = 31;

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
    pub(crate) const INCOMPRESSIBLE_PERCENT: u64 = 64;
    pub(crate) const FLAGS: u64 = 68;
    pub(crate) const CREDIT_PER_TICK: u64 = 72;
    pub(crate) const TIMER_COUNT: u64 = 80;
    pub(crate) const STEPS_PER_EVENT: u64 = 84;
    pub(crate) const CHECKSUM: u64 = 88;
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
    /// Virtual address where steps write, taken one page after the vCPU's part.
    pub(crate) const PART_END: u64 = 0;
    pub(crate) const FIRST_STAMP: u64 = 8;
    pub(crate) const ROUND_SEED: u64 = 16;
    pub(crate) const SOURCE_FACTOR: u64 = 24;
    /// A page may hold zero instead of its stamp while the step is below this.
    pub(crate) const MAY_BE_ZERO_BELOW: u64 = 32;
}

/// Offsets of fields at the start of a vCPU's own page; its stack grows down from the end.
pub(crate) mod mailbox {
    pub(crate) const STEP: u64 = 0;
    pub(crate) const TSC: u64 = 8;
    pub(crate) const LONGEST_GAP: u64 = 16;
    pub(crate) const RESET: u64 = 24;
    pub(crate) const BAD_STAMPS: u64 = 32;
    pub(crate) const LAST_REPORT: u64 = 40;
    pub(crate) const ROUND_LEFT: u64 = 48;
    pub(crate) const BURST_LEFT: u64 = 56;
    pub(crate) const CREDIT: u64 = 64;
    /// Only the first vCPU's counts: the serial port is one for all.
    pub(crate) const SERIAL_LOCK: u64 = 72;
    pub(crate) const ENTRY: u64 = 80;
}

const _: () = {
    assert!(WINDOW_TABLES + (1 + (MAX_WORKING_SET >> 30)) * PAGE_SIZE <= TABLE);
    assert!(CONTROL_END <= WORKING_SET && WORKING_SET.is_multiple_of(LARGE_PAGE));
    assert!(parameter::END <= PAGE_SIZE && PAGE_LEN as u64 == PAGE_SIZE);
    assert!(parameter::CHECKSUM + 8 <= parameter::CPU_ENTRIES);
    assert!(TABLE_STARTS.is_power_of_two() && STRIDES.is_power_of_two());
};

/// Narrows a size or offset of guest memory to a host index.
pub(crate) fn index(value: u64) -> usize {
    usize::try_from(value).expect("x86-64 hosts index with 64 bits")
}
