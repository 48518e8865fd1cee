//! ELF notes with the registers of the vCPUs, one thread per vCPU.
//!
//! The structures are the Linux kernel's `elf_prstatus` and `user_fpregs_struct` for x86-64, which
//! debuggers expect. Registers are taken by name from the parts `vcpu/0`, `vcpu/1`, ... of the
//! vmstate (`regs.rip`, `sregs.cs.selector`, ..., `xsave`); a vCPU without them is left out.

use std::collections::HashMap;

use anyhow::Context;
use byteorder::{LittleEndian, WriteBytesExt};
use snapfile::diff::FieldValue;
use snapfile::{SectionEntry, SectionKind, Snapshot};

use crate::vmstate;

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

/// Returns the notes of all vCPUs, by ascending number.
pub fn vcpu_notes(snapshot: &Snapshot) -> anyhow::Result<Vec<u8>> {
    let mut parts: Vec<(u32, &SectionEntry)> = vmstate::parts(snapshot, SectionKind::VmState, "vcpu/")
        .filter_map(|entry| Some((entry.name.strip_prefix("vcpu/")?.parse().ok()?, entry)))
        .collect();
    parts.sort_by_key(|(number, _)| *number);
    let mut notes = Vec::new();
    for (number, entry) in parts {
        let fields =
            snapfile::diff::fields(&snapshot.read_section(entry)?).with_context(|| entry.name.clone())?;
        let fields: HashMap<_, _> = fields
            .into_iter()
            .map(|field| (field.path, field.value))
            .collect();
        if fields.contains_key("regs.rip") {
            write_vcpu(&mut notes, number, &fields)?;
        }
    }
    Ok(notes)
}

fn write_vcpu(notes: &mut Vec<u8>, number: u32, fields: &HashMap<String, FieldValue>) -> std::io::Result<()> {
    let xsave = match fields.get("xsave") {
        Some(FieldValue::Bytes(bytes)) => bytes.get(..FPREGSET_LEN),
        _ => None,
    };
    let mut status = vec![0; PRSTATUS_PID];
    // Thread numbers begin at 1: debuggers take 0 for "no thread".
    status.write_u32::<LittleEndian>(number.saturating_add(1))?;
    status.resize(PRSTATUS_REGISTERS, 0);
    for register in REGISTERS {
        let value = match register.and_then(|path| fields.get(path)) {
            Some(FieldValue::Integer(value)) => u64::try_from(*value).unwrap_or(0),
            _ => 0,
        };
        status.write_u64::<LittleEndian>(value)?;
    }
    status.resize(PRSTATUS_FPVALID, 0);
    status.write_u32::<LittleEndian>(u32::from(xsave.is_some()))?;
    status.resize(PRSTATUS_LEN, 0);
    write_note(notes, NT_PRSTATUS, &status)?;
    xsave.map_or(Ok(()), |registers| write_note(notes, NT_FPREGSET, registers))
}

fn write_note(notes: &mut Vec<u8>, kind: u32, content: &[u8]) -> std::io::Result<()> {
    const NAME: &[u8] = b"CORE\0";
    notes.write_u32::<LittleEndian>(u32::try_from(NAME.len()).unwrap_or(0))?;
    notes.write_u32::<LittleEndian>(u32::try_from(content.len()).unwrap_or(0))?;
    notes.write_u32::<LittleEndian>(kind)?;
    for part in [NAME, content] {
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
        let fields = fields
            .map(|(path, value)| (path.to_owned(), FieldValue::Integer(value)))
            .into();
        let mut notes = Vec::new();
        write_vcpu(&mut notes, 0, &fields).unwrap();
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
