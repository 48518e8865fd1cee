//! The assembled guest program as bytes, with the offsets of the instructions that the host must know.
//!
//! The program is assembled with this crate into read-only data; it is never run in this process.
#![expect(
    unsafe_code,
    reason = "the assembler's output can only be reached through extern statics"
)]

use std::ptr;

use crate::builtin::layout::{self, entry, mailbox, parameter};
use crate::builtin::sequence;

std::arch::global_asm!(
    include_str!("payload.S"),
    code = const layout::CODE,
    parameters = const layout::PARAMETERS,
    idt = const layout::IDT,
    cpu_pages = const layout::CPU_PAGES,
    page_size = const layout::PAGE_SIZE,
    pml4 = const layout::PML4,
    table = const layout::TABLE,
    source_shift = const layout::SOURCE_SHIFT,
    trampoline = const layout::TRAMPOLINE,
    lapic = const layout::LAPIC,
    timer_vector = const layout::TIMER_VECTOR,
    spurious_vector = const layout::SPURIOUS_VECTOR,
    report_shift = const layout::REPORT_SHIFT,
    strides = const layout::STRIDES,
    round_factor = const sequence::ROUND_FACTOR,
    mix_factor = const sequence::MIX_FACTOR,
    p_cpus = const parameter::CPUS,
    p_pages_per_cpu = const parameter::PAGES_PER_CPU,
    p_bytes_per_cpu = const parameter::BYTES_PER_CPU,
    p_words_after_stamp = const parameter::WORDS_AFTER_STAMP,
    p_flags = const parameter::FLAGS,
    p_credit_per_tick = const parameter::CREDIT_PER_TICK,
    p_timer_count = const parameter::TIMER_COUNT,
    p_steps_per_event = const parameter::STEPS_PER_EVENT,
    p_cpu_entries = const parameter::CPU_ENTRIES,
    p_strides = const parameter::STRIDES,
    entry_len = const parameter::ENTRY_LEN,
    flag_paced = const parameter::FLAG_PACED,
    e_part_end = const entry::PART_END,
    e_first_stamp = const entry::FIRST_STAMP,
    e_round_seed = const entry::ROUND_SEED,
    e_source_factor = const entry::SOURCE_FACTOR,
    e_may_be_zero_below = const entry::MAY_BE_ZERO_BELOW,
    m_step = const mailbox::STEP,
    m_tsc = const mailbox::TSC,
    m_longest_gap = const mailbox::LONGEST_GAP,
    m_reset = const mailbox::RESET,
    m_bad_stamps = const mailbox::BAD_STAMPS,
    m_last_report = const mailbox::LAST_REPORT,
    m_round_left = const mailbox::ROUND_LEFT,
    m_burst_left = const mailbox::BURST_LEFT,
    m_credit = const mailbox::CREDIT,
    m_serial_lock = const mailbox::SERIAL_LOCK,
    m_entry = const mailbox::ENTRY,
    options(att_syntax)
);

const LABEL_COUNT: usize = 9;

unsafe extern "C" {
    static vmsnap_guest_start: u8;
    static vmsnap_guest_end: u8;
    static vmsnap_guest_labels: [u32; LABEL_COUNT];
}

/// Offsets within [`program`], named as in the assembly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Labels {
    /// From here on the step register is valid.
    pub(crate) workload: u32,
    /// The instruction that stores the stamp, a step's first word.
    pub(crate) stamp: u32,
    /// The repeated instruction that stores the other words.
    pub(crate) copy: u32,
    /// The instruction that counts the step as done.
    pub(crate) advance: u32,
    /// Handler of the timer's interrupt.
    pub(crate) tick: u32,
    /// Handler of spurious interrupts.
    pub(crate) spurious: u32,
    /// First of 32 exception handlers, [`STUB_LEN`] bytes each.
    pub(crate) stubs: u32,
    /// The 16-bit code that is copied below 1 MiB.
    pub(crate) trampoline: u32,
    /// End of that code.
    pub(crate) trampoline_end: u32,
}

/// Bytes of one exception handler.
pub(crate) const STUB_LEN: u32 = 16;

/// Returns the guest program.
pub(crate) fn program() -> &'static [u8] {
    let start = &raw const vmsnap_guest_start;
    let end = &raw const vmsnap_guest_end;
    // SAFETY: both labels stand in the same section of this program, the end after the start.
    let len = unsafe { end.offset_from_unsigned(start) };
    // SAFETY: the bytes between the labels are initialised read-only data that lives as long as the program.
    unsafe { &*ptr::slice_from_raw_parts(start, len) }
}

/// Returns the offsets of the program's labels.
pub(crate) fn labels() -> Labels {
    // SAFETY: the label starts nine aligned words of initialised read-only data.
    let offsets = unsafe { vmsnap_guest_labels };
    let [
        workload,
        stamp,
        copy,
        advance,
        tick,
        spurious,
        stubs,
        trampoline,
        trampoline_end,
    ] = offsets;
    Labels {
        workload,
        stamp,
        copy,
        advance,
        tick,
        spurious,
        stubs,
        trampoline,
        trampoline_end,
    }
}
