//! Guest programs of a few instructions each, assembled into this binary.
//!
//! Each starts at [`LOAD_ADDRESS`] in the state that the PVH protocol promises: 32-bit protected mode,
//! paging off, EBX the address of the start info. `at(label)` in the text below is where a label lies then.

#![expect(unsafe_code, reason = "the assembled bytes are found by their linker symbols")]

use std::arch::global_asm;

/// Where every program is loaded and entered.
pub const LOAD_ADDRESS: u32 = 0x10_0000;
/// Where programs keep what tests look at.
pub const COUNTER: u64 = 0x18_0000;
/// What [`poke`] writes.
pub const POKES: u64 = 0x18_1000;
/// Number of application processors that have started, in [`SMP`].
pub const SMP_STARTED: u64 = 0x9000;
/// Counters of the boot processor and the application processor, in [`SMP`].
pub const SMP_COUNTERS: [u64; 2] = [0x9004, 0x9008];

macro_rules! payload {
    ($(#[$doc:meta])* $name:ident, $start:literal, $end:literal, $($line:literal),+ $(,)?) => {
        global_asm!(
            ".pushsection .rodata.payloads, \"a\"",
            ".code32",
            concat!(".globl ", $start),
            concat!(".globl ", $end),
            concat!($start, ":"),
            $($line,)+
            concat!($end, ":"),
            ".code64",
            ".popsection",
            options(att_syntax)
        );

        $(#[$doc])*
        pub fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = $start]
                static START: u8;
                #[link_name = $end]
                static END: u8;
            }
            let start = &raw const START;
            let end = &raw const END;
            // SAFETY: both symbols lie in the same section, START before END, with the program between them.
            unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
        }
    };
}

payload!(
    /// Prints `ok ` and the command line on the serial port if EBX points to a start info, then exits with 0x2a.
    hello, "payload_hello", "payload_hello_end",
    "cmpl $0x336ec578, (%ebx)",
    "jne 9f",
    "mov 24(%ebx), %esi", // cmdline_paddr
    "mov $0x3f8, %dx",
    "mov $'o', %al",
    "out %al, %dx",
    "mov $'k', %al",
    "out %al, %dx",
    "mov $' ', %al",
    "1: out %al, %dx",
    "lodsb",
    "test %al, %al",
    "jnz 1b",
    "mov $0x2a, %eax",
    "out %eax, $0xf4",
    "9: hlt",
    "jmp 9b",
);

payload!(
    /// Looks up the last entry of the memory map; exits with 0x4d if it is RAM of 64 MiB at 4 GiB.
    high_memory, "payload_high_memory", "payload_high_memory_end",
    "mov 40(%ebx), %esi",  // memmap_paddr
    "mov 48(%ebx), %eax",  // memmap_entries
    "dec %eax",
    "imul $24, %eax",
    "add %eax, %esi",
    "cmpl $0, (%esi)",
    "jne 1f",
    "cmpl $1, 4(%esi)",
    "jne 1f",
    "cmpl $0x4000000, 8(%esi)",
    "jne 1f",
    "cmpl $1, 16(%esi)",
    "jne 1f",
    "mov $0x4d, %al",
    "1: out %al, $0xf4",
);

payload!(
    /// Asks the keyboard controller for a reset.
    reset, "payload_reset", "payload_reset_end",
    "mov $0xfe, %al",
    "out %al, $0x64",
    "1: hlt",
    "jmp 1b",
);

payload!(
    /// Writes the value in the command line's first byte to the ACPI register whose number is the second's
    /// last decimal digit: 0 sleep control, 2 reset; then halts for ever.
    power, "payload_power", "payload_power_end",
    "mov 24(%ebx), %esi", // cmdline_paddr
    "mov 1(%esi), %dl",
    "and $0xf, %edx",
    "add $0x600, %edx",
    "mov (%esi), %al",
    "out %al, %dx",
    "out %al, $0xe9",
    "1: hlt",
    "jmp 1b",
);

payload!(
    /// Puts the number of virtio devices that a driver could take at COUNTER: those one after the other
    /// with magic value, version 2 and a device id that is not 0. Then gives signs of life for ever.
    virtio, "payload_virtio", "payload_virtio_end",
    "xor %ebx, %ebx",
    "mov $0xd0000000, %esi",
    "1: cmpl $0x74726976, (%esi)",
    "jne 2f",
    "cmpl $2, 4(%esi)",
    "jne 2f",
    "cmpl $0, 8(%esi)",
    "je 2f",
    "inc %ebx",
    "add $0x1000, %esi",
    "jmp 1b",
    "2: mov %ebx, 0x180000",
    "3: out %al, $0xe9",
    "jmp 3b",
);

payload!(
    /// Leaves protected mode and enters the firmware of a PC.
    enter_firmware, "payload_firmware", "payload_firmware_end",
    "lgdt 0x100000 + firm_gdtr - payload_firmware",
    "ljmp $8, $(firm_16 - payload_firmware)",
    ".code16",
    "firm_16:",
    "mov %cr0, %eax",
    "and $0xfe, %al",
    "mov %eax, %cr0",
    "ljmp $0xffff, $0",
    ".code32",
    ".balign 8",
    "firm_gdt: .quad 0",
    ".quad 0x00009a100000ffff", // 16-bit code from the load address on
    "firm_gdtr: .word 15",
    ".long 0x100000 + firm_gdt - payload_firmware",
);

payload!(
    /// Has no interrupt table and executes an undefined instruction.
    triple_fault, "payload_triple_fault", "payload_triple_fault_end",
    "ud2",
);

payload!(
    /// Says that it is there and halts for ever, interrupts off.
    halt, "payload_halt", "payload_halt_end",
    "out %al, $0xe9",
    "1: hlt",
    "jmp 1b",
);

payload!(
    /// Executes where there is no memory.
    lost, "payload_lost", "payload_lost_end",
    "mov $0x1234, %ecx",
    "mov $0xd0000000, %eax",
    "jmp *%eax",
);

payload!(
    /// Executes an SSE instruction, after enabling them, and exits with 1 if that works.
    sse, "payload_sse", "payload_sse_end",
    "mov %cr4, %eax",
    "or $0x600, %eax",
    "mov %eax, %cr4",
    "mov $0x5a5a, %edi",
    "addps %xmm1, %xmm0",
    "mov $1, %al",
    "out %al, $0xf4",
);

payload!(
    /// Counts in EAX and in memory at COUNTER, compares the two before each step, and tells the debug
    /// console of each. Exits with 1 on a difference, with 2 when the count reaches the number that was put
    /// at COUNTER + 4.
    count, "payload_count", "payload_count_end",
    "xor %eax, %eax",
    "1: cmp %eax, 0x180000",
    "jne 8f",
    "inc %eax",
    "mov %eax, 0x180000",
    "out %al, $0xe9",
    "cmp %eax, 0x180004",
    "jne 1b",
    "mov $2, %al",
    "out %al, $0xf4",
    "8: mov $1, %al",
    "out %al, $0xf4",
);

payload!(
    /// Writes the pairs of address and value at POKES, which end with an address of zero, then tells the debug
    /// console of its life for ever.
    poke, "payload_poke", "payload_poke_end",
    "mov $0x181000, %esi",
    "1: mov (%esi), %edi",
    "test %edi, %edi",
    "jz 2f",
    "mov 4(%esi), %eax",
    "mov %eax, (%edi)",
    "add $8, %esi",
    "jmp 1b",
    "2: out %al, $0xe9",
    "jmp 2b",
);

payload!(
    /// Halts with interrupts on; each interrupt of the source that the command line's first letter names
    /// is counted at COUNTER and told to the debug console. p: PIT, periodic. l: local APIC timer,
    /// periodic. d: local APIC timer by TSC deadline, armed anew by each interrupt. s: the serial port;
    /// its byte is the exit code.
    interrupts, "payload_interrupts", "payload_interrupts_end",
    "mov $0x200000, %esp",
    "mov 24(%ebx), %esi",
    "movzbl (%esi), %ebp", // the source, for good
    "lgdt 0x100000 + intr_gdtr - payload_interrupts",
    "lidt 0x100000 + intr_idtr - payload_interrupts",
    "ljmp $8, $(0x100000 + intr_flat - payload_interrupts)",
    "intr_flat:",
    "mov $0x10, %eax",
    "mov %eax, %ss",
    "mov %eax, %ds",
    "mov %eax, %es",
    // Gates 0x20 to 0x3f lead to the handler.
    "mov $0x20, %ecx",
    "mov $(0x17f000 + 0x20 * 8), %edi",
    "1: mov $(0x100000 + intr_handler - payload_interrupts), %eax",
    "mov %ax, (%edi)",
    "movw $8, 2(%edi)",
    "movw $0x8e00, 4(%edi)",
    "shr $16, %eax",
    "mov %ax, 6(%edi)",
    "add $8, %edi",
    "loop 1b",
    // Both PICs: vectors from 0x20, all inputs masked.
    "mov $0x11, %al", "out %al, $0x20", "out %al, $0xa0",
    "mov $0x20, %al", "out %al, $0x21",
    "mov $0x28, %al", "out %al, $0xa1",
    "mov $4, %al", "out %al, $0x21",
    "mov $2, %al", "out %al, $0xa1",
    "mov $1, %al", "out %al, $0x21", "out %al, $0xa1",
    "mov $0xff, %al", "out %al, $0x21", "out %al, $0xa1",
    // The local APIC: on, spurious vector 0x3f, LINT0 lets the PIC through.
    "movl $0x13f, 0xfee000f0",
    "movl $0x700, 0xfee00350",
    "cmp $'p', %ebp",
    "je 2f",
    "cmp $'l', %ebp",
    "je 3f",
    "cmp $'d', %ebp",
    "je 4f",
    // Serial: interrupt on received data, PIC input 4.
    "mov $0x3f9, %dx", "mov $1, %al", "out %al, %dx",
    "mov $0xef, %al", "out %al, $0x21",
    "out %al, $0xe9",
    "jmp 5f",
    // PIT counter 0 as rate generator, 4972 Hz, PIC input 0.
    "2: mov $0x34, %al", "out %al, $0x43",
    "mov $0xf0, %al", "out %al, $0x40",
    "xor %al, %al", "out %al, $0x40",
    "mov $0xfe, %al", "out %al, $0x21",
    "jmp 5f",
    // Local APIC timer, periodic, vector 0x30, divided by 1.
    "3: movl $0x20030, 0xfee00320",
    "movl $0xb, 0xfee003e0",
    "movl $1000000, 0xfee00380",
    "jmp 5f",
    // Local APIC timer, TSC deadline, vector 0x30.
    "4: movl $0x40030, 0xfee00320",
    "call intr_arm",
    "5:",
    "intr_wait: mov $0x200000, %esp",
    "6: sti",
    "hlt",
    "jmp 6b",
    "intr_arm: rdtsc",
    "add $2000000, %eax",
    "adc $0, %edx",
    "mov $0x6e0, %ecx",
    "wrmsr",
    "ret",
    // The handler does not return from the interrupt, for an instruction emulator may not know how, but
    // falls back into the loop.
    "intr_handler: incl 0x180000",
    "out %al, $0xe9",
    "cmp $'s', %ebp",
    "jne 7f",
    "mov $0x3f8, %dx", "in %dx, %al",
    "out %al, $0xf4",
    "7: cmp $'d', %ebp",
    "jne 8f",
    "call intr_arm",
    "8: cmp $'p', %ebp",
    "je 9f",
    "movl $0, 0xfee000b0", // end of interrupt
    "jmp intr_wait",
    "9: mov $0x20, %al",
    "out %al, $0x20",
    "jmp intr_wait",
    ".balign 8",
    "intr_gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff",
    "intr_gdtr: .word 23",
    ".long 0x100000 + intr_gdt - payload_interrupts",
    "intr_idtr: .word 0x3f * 8 + 7",
    ".long 0x17f000",
);

payload!(
    /// Starts processor 1 by INIT and SIPI; both then count, each in its own word of SMP_COUNTERS. The
    /// boot processor tells the debug console of every step.
    smp, "payload_smp", "payload_smp_end",
    // The other processor starts in real mode at 0x8000.
    "mov $(0x100000 + smp_trampoline - payload_smp), %esi",
    "mov $0x8000, %edi",
    "mov $(smp_trampoline_end - smp_trampoline), %ecx",
    "rep movsb",
    "movl $0x1ff, 0xfee000f0",
    "movl $0x01000000, 0xfee00310", // to APIC id 1
    "movl $0x4500, 0xfee00300",     // INIT
    "movl $0x4608, 0xfee00300",     // start-up at page 8
    "1: cmpl $0, 0x9000",
    "je 1b",
    "2: incl 0x9004",
    "out %al, $0xe9",
    "jmp 2b",
    "smp_trampoline: .code16",
    "xor %ax, %ax",
    "mov %ax, %ds",
    "lock incw 0x9000",
    "3: incl 0x9008",
    "jmp 3b",
    ".code32",
    "smp_trampoline_end:",
);
