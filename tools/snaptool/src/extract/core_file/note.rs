//! ELF notes with the registers of the vCPUs, one thread per vCPU.
//!
//! The structures are the Linux kernel's `elf_prstatus` and `user_fpregs_struct` for x86-64, which
//! debuggers expect.

use byteorder::{LittleEndian, WriteBytesExt};

use super::vcpu::Vcpu;

const NAME: &[u8] = b"CORE\0";

const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;

/// Offset of the process id in `elf_prstatus`; debuggers take it for the thread's number.
const PRSTATUS_PID: usize = 32;
/// Offset of the registers in `elf_prstatus`.
const PRSTATUS_REGISTERS: usize = 112;
/// Offset of `pr_fpvalid`: floating point registers follow in a note of their own.
const PRSTATUS_FPVALID: usize = 328;
const PRSTATUS_LEN: usize = 336;

/// The legacy area of XSAVE has the format of `user_fpregs_struct`.
const FPREGSET_LEN: usize = 512;

/// The registers in the order of `user_regs_struct`, and where the vmstate has them. The number of
/// the system call under way has no equal in a vCPU.
const REGISTERS: [Option<&str>; 27] = [
    Some("regs.r15"),
    Some("regs.r14"),
    Some("regs.r13"),
    Some("regs.r12"),
    Some("regs.rbp"),
    Some("regs.rbx"),
    Some("regs.r11"),
    Some("regs.r10"),
    Some("regs.r9"),
    Some("regs.r8"),
    Some("regs.rax"),
    Some("regs.rcx"),
    Some("regs.rdx"),
    Some("regs.rsi"),
    Some("regs.rdi"),
    None,
    Some("regs.rip"),
    Some("sregs.cs.selector"),
    Some("regs.rflags"),
    Some("regs.rsp"),
    Some("sregs.ss.selector"),
    Some("sregs.fs.base"),
    Some("sregs.gs.base"),
    Some("sregs.ds.selector"),
    Some("sregs.es.selector"),
    Some("sregs.fs.selector"),
    Some("sregs.gs.selector"),
];

/// Returns the notes of all vCPUs.
pub fn vcpu_notes(vcpus: &[Vcpu]) -> anyhow::Result<Vec<u8>> {
    let mut notes = Vec::new();
    for vcpu in vcpus {
        write_vcpu(&mut notes, vcpu)?;
    }
    Ok(notes)
}

fn write_vcpu(notes: &mut Vec<u8>, vcpu: &Vcpu) -> anyhow::Result<()> {
    let xsave = vcpu.bytes("xsave").and_then(|bytes| bytes.get(..FPREGSET_LEN));
    let mut status = vec![0; PRSTATUS_PID];
    // Thread numbers begin at 1: debuggers take 0 for "no thread".
    status.write_u32::<LittleEndian>(vcpu.number.saturating_add(1))?;
    status.resize(PRSTATUS_REGISTERS, 0);
    for register in REGISTERS {
        status.write_u64::<LittleEndian>(register.map_or(0, |path| vcpu.register(path)))?;
    }
    status.resize(PRSTATUS_FPVALID, 0);
    status.write_u32::<LittleEndian>(u32::from(xsave.is_some()))?;
    status.resize(PRSTATUS_LEN, 0);
    write_note(notes, NAME, NT_PRSTATUS, &status)?;
    xsave.map_or(Ok(()), |registers| {
        write_note(notes, NAME, NT_FPREGSET, registers)
    })
}

/// Appends a note; the name ends in one zero, and more that are there do not count.
pub fn write_note(notes: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) -> anyhow::Result<()> {
    let name_len = 1 + name.iter().take_while(|byte| **byte != 0).count();
    notes.write_u32::<LittleEndian>(u32::try_from(name_len)?)?;
    notes.write_u32::<LittleEndian>(u32::try_from(content.len())?)?;
    notes.write_u32::<LittleEndian>(kind)?;
    for part in [name.get(..name_len).unwrap_or(name), content] {
        notes.extend_from_slice(part);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_stand_where_the_kernel_puts_them() {
        let fields = [
            ("regs.rip", 0x1234_5678_9abc),
            ("regs.rsp", 0x8000),
            ("sregs.cs.selector", 0x10),
        ];
        let mut notes = Vec::new();
        write_vcpu(&mut notes, &Vcpu::with_registers(0, &fields)).unwrap();
        assert_eq!(notes.len(), 12 + 8 + PRSTATUS_LEN);
        let status = &notes[20..];
        let word = |at: usize| u64::from_le_bytes(status[at..at + 8].try_into().unwrap());
        assert_eq!(word(PRSTATUS_REGISTERS + 16 * 8), 0x1234_5678_9abc);
        assert_eq!(word(PRSTATUS_REGISTERS + 17 * 8), 0x10);
        assert_eq!(word(PRSTATUS_REGISTERS + 19 * 8), 0x8000);
        assert_eq!(status[PRSTATUS_PID], 1);
        assert_eq!(status[PRSTATUS_FPVALID], 0);
    }
}
