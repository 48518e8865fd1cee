//! ELF notes named `QEMU`, one per vCPU: the control registers and segments that no thread has.
//!
//! This is `struct QEMUCPUState`, version 1, of QEMU's `target/i386/arch_dump.c`. Debuggers of Linux
//! (`crash`) find page tables and the interrupt descriptor table by it, and with them KASLR.

use byteorder::{LittleEndian, WriteBytesExt};

use super::note::write_note;
use super::vcpu::Vcpu;

const NAME: &[u8] = b"QEMU\0";
const VERSION: u32 = 1;
const STATE_LEN: u32 = 440;

const REGISTERS: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", "rip", "rflags",
];
const SEGMENTS: [&str; 8] = ["cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr"];
const TABLES: [&str; 2] = ["gdt", "idt"];
/// There is no CR1; its place stays zero.
const CONTROL: [&str; 5] = ["cr0", "cr1", "cr2", "cr3", "cr4"];
const KERNEL_GS_BASE: &str = "msrs[0xc0000102]";

/// Where the parts of a segment's attributes stand in a descriptor's second word.
const ATTRIBUTES: [(&str, u32); 8] = [
    ("type", 8),
    ("s", 12),
    ("dpl", 13),
    ("present", 15),
    ("avl", 20),
    ("l", 21),
    ("db", 22),
    ("g", 23),
];

/// Returns the notes of all vCPUs.
pub fn vcpu_notes(vcpus: &[Vcpu]) -> anyhow::Result<Vec<u8>> {
    let mut notes = Vec::new();
    for vcpu in vcpus {
        write_note(&mut notes, NAME, 0, &state(vcpu)?)?;
    }
    Ok(notes)
}

fn state(vcpu: &Vcpu) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    out.write_u32::<LittleEndian>(VERSION)?;
    out.write_u32::<LittleEndian>(STATE_LEN)?;
    for register in REGISTERS {
        out.write_u64::<LittleEndian>(vcpu.register(&format!("regs.{register}")))?;
    }
    for name in SEGMENTS.iter().chain(&TABLES) {
        let field = |field: &str| vcpu.register(&format!("sregs.{name}.{field}"));
        let attributes = ATTRIBUTES
            .iter()
            .fold(0, |word, (part, bit)| word | (field(part) & 0xf) << bit);
        for value in [field("selector"), field("limit"), attributes, 0] {
            out.write_u32::<LittleEndian>(u32::try_from(value).unwrap_or(0))?;
        }
        out.write_u64::<LittleEndian>(field("base"))?;
    }
    for register in CONTROL {
        out.write_u64::<LittleEndian>(vcpu.register(&format!("sregs.{register}")))?;
    }
    out.write_u64::<LittleEndian>(vcpu.register(KERNEL_GS_BASE))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_laid_out_as_qemu_does() {
        let vcpu = Vcpu::with_registers(
            0,
            &[
                ("regs.rax", 1),
                ("regs.rip", 0xffff_ffff_8100_0000),
                ("sregs.cs.selector", 0x10),
                ("sregs.cs.limit", 0xffff_ffff),
                ("sregs.cs.type", 0xb),
                ("sregs.cs.s", 1),
                ("sregs.cs.present", 1),
                ("sregs.cs.l", 1),
                ("sregs.cs.g", 1),
                ("sregs.idt.base", 0xffff_fe00_0000_0000),
                ("sregs.cr3", 0x123_4000),
                (KERNEL_GS_BASE, 7),
            ],
        );
        let state = state(&vcpu).unwrap();
        assert_eq!(state.len(), STATE_LEN as usize);
        let word = |at: usize| u64::from_le_bytes(state[at..at + 8].try_into().unwrap());
        let (segments, control) = (8 + 18 * 8, 8 + 18 * 8 + 10 * 24);
        assert_eq!((word(8), word(8 + 16 * 8)), (1, 0xffff_ffff_8100_0000));
        assert_eq!(word(segments), 0xffff_ffff_0000_0010, "selector and limit");
        assert_eq!(word(segments + 8), 0x00a0_9b00, "attributes of 64-bit code");
        assert_eq!(word(segments + 9 * 24 + 16), 0xffff_fe00_0000_0000, "IDT");
        assert_eq!((word(control + 3 * 8), word(control + 5 * 8)), (0x123_4000, 7));
    }
}
