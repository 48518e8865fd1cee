//! The built-in guest as a kernel file: ELF64 with a PVH entry note.
//!
//! One segment holds the control area. The working set is not in the file; the guest takes it as it
//! finds it, zero. Only the fields that loaders read are meaningful: there are no section headers.

use crate::builtin::control_area::ControlArea;
use crate::builtin::layout::{CODE, PAGE_SIZE, index};
use crate::builtin::parameters::{Parameters, Room};
use crate::builtin::{BuiltinError, BuiltinOptions};

const HEADER_LEN: u16 = 64;
const PROGRAM_HEADER_LEN: u16 = 56;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY: the 32-bit entry point of the PVH boot protocol.
const PVH_ENTRY_NOTE: u32 = 18;
/// Memory above this may be taken by firmware or a device hole of the machine that boots the file.
const USABLE_END: u64 = 2 << 30;

/// Makes a PVH kernel file of the guest, for a machine with `cpus` vCPUs and `memory_bytes` of memory.
///
/// The working set lies below 2 GiB and, unless the options say otherwise, takes three quarters of it.
///
/// # Errors
///
/// The same as for [`crate::builtin::load`].
pub fn elf(options: &BuiltinOptions, cpus: u32, memory_bytes: u64) -> Result<Vec<u8>, BuiltinError> {
    let room = Room::flat(memory_bytes.min(USABLE_END));
    let parameters = Parameters::new(options, cpus, room, true)?;
    let area = ControlArea::new(&parameters);
    let note = pvh_note();
    let note_offset = u64::from(HEADER_LEN) + 2 * u64::from(PROGRAM_HEADER_LEN);
    let mut file = header();
    file.extend(program_header(
        LOAD,
        PAGE_SIZE,
        CODE,
        area.bytes().len() as u64,
        PAGE_SIZE,
    ));
    file.extend(program_header(NOTE, note_offset, 0, note.len() as u64, 4));
    file.extend(note);
    file.resize(index(PAGE_SIZE), 0);
    file.extend(area.bytes());
    Ok(file)
}

fn header() -> Vec<u8> {
    // Magic, 64-bit, little-endian, version 1.
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    bytes.extend(2_u16.to_le_bytes()); // executable
    bytes.extend(62_u16.to_le_bytes()); // x86-64
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(CODE.to_le_bytes()); // entry
    bytes.extend(u64::from(HEADER_LEN).to_le_bytes()); // offset of the program headers
    bytes.extend(0_u64.to_le_bytes()); // no section headers
    bytes.extend(0_u32.to_le_bytes()); // flags
    for field in [HEADER_LEN, PROGRAM_HEADER_LEN, 2, 0, 0, 0] {
        bytes.extend(field.to_le_bytes());
    }
    bytes
}

fn program_header(kind: u32, offset: u64, address: u64, len: u64, align: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(7_u32.to_le_bytes()); // readable, writable, executable
    for field in [offset, address, address, len, len, align] {
        bytes.extend(field.to_le_bytes());
    }
    bytes
}

fn pvh_note() -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [4_u32, 4, PVH_ENTRY_NOTE] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(b"Xen\0");
    let entry = u32::try_from(CODE).expect("the program is in low memory");
    bytes.extend(entry.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use linux_loader::loader::KernelLoader;
    use linux_loader::loader::elf::{Elf, PvhBootCapability};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    #[test]
    fn loader_finds_the_program_and_its_pvh_entry() {
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        let file = elf(&BuiltinOptions::default(), 1, 16 << 20).unwrap();
        let loaded = Elf::load(&memory, None, &mut Cursor::new(&file), None).unwrap();
        assert_eq!(
            loaded.pvh_boot_cap,
            PvhBootCapability::PvhEntryPresent(GuestAddress(CODE))
        );
        let mut start = [0; 64];
        memory.read_slice(&mut start, GuestAddress(CODE)).unwrap();
        assert_eq!(start, file[4096..4160]);
    }
}
