//! Linux's 64-bit boot protocol: load a bzImage, fill the boot parameters, enter in long mode.
//!
//! The authority is the kernel's `Documentation/arch/x86/boot.rst`. The protected-mode part is loaded at
//! 1 MiB, and entered 0x200 bytes behind its start with the low 4 GiB mapped to themselves. The kernel then
//! unpacks itself to its preferred address, over as many bytes as its header says.

use std::io::{Read, Seek};
use std::path::Path;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{XLF_KERNEL_64, boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap, ReadVolatile};

use super::{
    Entry, Initrd, SEGMENT_CODE, SEGMENT_DATA, flat_segment, initrd, memory_error, memory_map, task_segment,
};
use crate::error::{Error, Result};
use crate::layout::{ACPI_TABLES, BOOT_PARAMETERS, CMDLINE, GDT, HIGH_RAM_START, PAGE_TABLES};
use crate::memory::PAGE_SIZE;
use crate::state::{DescriptorTable, Sregs};

/// What RSI holds at the entry.
pub(super) const PARAMETERS_IN_RSI: u64 = BOOT_PARAMETERS.0;

/// Offset of the header's signature in the file, and the signature.
const SIGNATURE_OFFSET: usize = 0x202;
const SIGNATURE: &[u8] = b"HdrS";
/// First version of the protocol that tells of a 64-bit entry.
const FIRST_64_BIT_VERSION: u16 = 0x020c;
/// Distance of the 64-bit entry from the start of the protected-mode part.
const ENTRY_64_OFFSET: u64 = 0x200;
/// Type of a boot loader that has no number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// Selectors that the protocol asks for: `__BOOT_CS` and `__BOOT_DS`.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
/// Null, null, 64-bit code, data, and the two halves of the task state segment.
const DESCRIPTORS: [u64; 6] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x0000_8b00_0000_0067,
    0,
];

/// Offset of the last byte of the descriptors.
const GDT_LIMIT: u16 = 6 * 8 - 1;
const _: () = assert!(size_of_val(&DESCRIPTORS) == GDT_LIMIT as usize + 1);

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const PTE_PRESENT: u64 = 1;
const PTE_WRITABLE: u64 = 1 << 1;
const PTE_LARGE: u64 = 1 << 7;
const LARGE_PAGE: u64 = 2 << 20;
const ENTRIES_PER_TABLE: u64 = 512;
/// Page directories, each mapping 1 GiB.
const DIRECTORIES: u64 = 4;

/// Tells a bzImage by the first bytes of a file.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.get(SIGNATURE_OFFSET..)
        .is_some_and(|rest| rest.starts_with(SIGNATURE))
}

/// Loads the kernel and its initial RAM disk, and writes boot parameters, descriptors and page tables.
pub(super) fn load<F>(
    memory: &GuestMemoryMmap,
    image: &mut F,
    initrd: Option<&Path>,
    cmdline_len: usize,
) -> Result<Entry>
where
    F: Read + Seek + ReadVolatile,
{
    let problem = |problem: String| Error::Kernel { problem };
    let loaded = BzImage::load(memory, Some(HIGH_RAM_START), image, Some(HIGH_RAM_START))
        .map_err(|source| problem(source.to_string()))?;
    let header = loaded
        .setup_header
        .ok_or_else(|| problem("bzImage without a setup header".into()))?;
    check_header(&header, cmdline_len)?;
    let kernel_end = unpacked_end(&header).max(loaded.kernel_end);
    let ram_end = memory_map::low_ram_end(memory);
    if kernel_end > ram_end {
        return Err(problem(format!(
            "needs memory up to {kernel_end:#x} to unpack itself, the machine's ends at {ram_end:#x}"
        )));
    }
    let limit = u64::from(header.initrd_addr_max) + 1;
    let initrd = initrd
        .map(|path| initrd::load(memory, path, kernel_end, limit))
        .transpose()?;
    write_parameters(memory, header, initrd)?;
    write_descriptors(memory)?;
    write_page_tables(memory)?;
    Ok(Entry::Linux(loaded.kernel_load.unchecked_add(ENTRY_64_OFFSET)))
}

fn check_header(header: &setup_header, cmdline_len: usize) -> Result<()> {
    let problem = |problem: String| Err(Error::Kernel { problem });
    let (version, flags) = ({ header.version }, { header.xloadflags });
    if version < FIRST_64_BIT_VERSION || flags & XLF_KERNEL_64 == 0 {
        return problem(format!(
            "bzImage without a 64-bit entry (boot protocol {}.{:02})",
            version >> 8,
            version & 0xff
        ));
    }
    let most = { header.cmdline_size };
    if u32::try_from(cmdline_len).is_ok_and(|len| len > most) {
        return problem(format!("takes a command line of at most {most} bytes"));
    }
    Ok(())
}

/// End of the memory that the kernel uses before it knows the memory map.
fn unpacked_end(header: &setup_header) -> u64 {
    let start = { header.pref_address }.max(HIGH_RAM_START.raw_value());
    start.saturating_add(u64::from(header.init_size))
}

fn write_parameters(memory: &GuestMemoryMmap, header: setup_header, initrd: Option<Initrd>) -> Result<()> {
    let mut parameters = boot_params {
        hdr: header,
        acpi_rsdp_addr: ACPI_TABLES.raw_value(),
        ..boot_params::default()
    };
    parameters.hdr.type_of_loader = LOADER_UNDEFINED;
    parameters.hdr.cmd_line_ptr = low_address(CMDLINE);
    if let Some(initrd) = initrd {
        parameters.hdr.ramdisk_image = low_address(initrd.address);
        parameters.hdr.ramdisk_size = initrd.len_bytes;
    }
    let map = memory_map::entries(memory);
    let mut table = parameters.e820_table;
    for (slot, entry) in table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.end - entry.start,
            r#type: entry.kind,
        };
    }
    parameters.e820_table = table;
    parameters.e820_entries = u8::try_from(map.len().min(table.len())).unwrap_or(0);
    let parameters = BootParams::new(&parameters, BOOT_PARAMETERS);
    LinuxBootConfigurator::write_bootparams(&parameters, memory).map_err(|source| Error::Memory {
        problem: source.to_string(),
    })
}

/// An address of the layout or below the hole, which 32 bits hold.
fn low_address(address: GuestAddress) -> u32 {
    u32::try_from(address.raw_value()).unwrap_or(u32::MAX)
}

fn write_descriptors(memory: &GuestMemoryMmap) -> Result<()> {
    let bytes = DESCRIPTORS.map(u64::to_le_bytes).concat();
    memory.write_slice(&bytes, GDT).map_err(memory_error)
}

/// Maps the low 4 GiB to themselves, in 2 MiB pages.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<()> {
    let root = PAGE_TABLES.raw_value();
    let pointers = root + PAGE_SIZE;
    let directories = pointers + PAGE_SIZE;
    let entry = |address: u64, flags: u64| (address | PTE_PRESENT | PTE_WRITABLE | flags).to_le_bytes();
    let write = |bytes: &[u8], address| {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(memory_error)
    };
    write(&entry(pointers, 0), root)?;
    let tables = (0..DIRECTORIES).flat_map(|index| entry(directories + index * PAGE_SIZE, 0));
    write(&tables.collect::<Vec<u8>>(), pointers)?;
    let pages = (0..DIRECTORIES * ENTRIES_PER_TABLE).flat_map(|index| entry(index * LARGE_PAGE, PTE_LARGE));
    write(&pages.collect::<Vec<u8>>(), directories)
}

/// Long mode with paging, flat segments, interrupts off.
pub(super) fn entry_sregs(reset: &Sregs) -> Sregs {
    let data = flat_segment(DATA_SELECTOR, SEGMENT_DATA, false);
    Sregs {
        cs: flat_segment(CODE_SELECTOR, SEGMENT_CODE, true),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task_segment(TASK_SELECTOR),
        gdt: DescriptorTable {
            base: GDT.raw_value(),
            limit: GDT_LIMIT,
        },
        idt: DescriptorTable::default(),
        cr0: CR0_PE | CR0_ET | CR0_PG,
        cr3: PAGE_TABLES.raw_value(),
        cr4: CR4_PAE,
        efer: EFER_LME | EFER_LMA,
        pdptrs: None,
        ..*reset
    }
}
