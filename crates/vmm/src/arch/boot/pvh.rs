//! The PVH boot protocol: load an ELF file, leave the start info, enter in 32-bit mode without paging.

use std::io::{Read, Seek};
use std::path::Path;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, ReadVolatile};

use super::{Entry, Initrd, SEGMENT_CODE, SEGMENT_DATA, flat_segment, initrd, memory_map, task_segment};
use crate::error::{Error, Result};
use crate::layout::{ACPI_TABLES, CMDLINE, HIGH_RAM_START, MEMORY_MAP, MODULE_LIST, START_INFO};
use crate::memory::HOLE_START;
use crate::state::{DescriptorTable, Sregs};

const START_INFO_MAGIC: u32 = 0x336e_c578;
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;

/// Loads the kernel and its initial RAM disk, and writes the start info.
pub(super) fn load<F>(memory: &GuestMemoryMmap, image: &mut F, initrd: Option<&Path>) -> Result<Entry>
where
    F: Read + Seek + ReadVolatile,
{
    let loaded = Elf::load(memory, None, image, Some(HIGH_RAM_START)).map_err(|source| Error::Kernel {
        problem: source.to_string(),
    })?;
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) if memory.address_in_range(entry) => entry,
        PvhBootCapability::PvhEntryPresent(entry) => {
            return Err(Error::Kernel {
                problem: format!("entry {:#x} is outside guest memory", entry.raw_value()),
            });
        }
        _ => {
            return Err(Error::Kernel {
                problem: "no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY)".into(),
            });
        }
    };
    let initrd = initrd
        .map(|path| initrd::load(memory, path, loaded.kernel_end, HOLE_START))
        .transpose()?;
    write_start_info(memory, initrd)?;
    Ok(Entry::Pvh(entry))
}

/// Writes the start info, the memory map and the list of modules, whose only one is the initial RAM disk.
pub(super) fn write_start_info(memory: &GuestMemoryMmap, initrd: Option<Initrd>) -> Result<()> {
    let map: Vec<hvm_memmap_table_entry> = memory_map::entries(memory)
        .into_iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.end - entry.start,
            type_: entry.kind,
            reserved: 0,
        })
        .collect();
    let modules: Vec<hvm_modlist_entry> = initrd
        .into_iter()
        .map(|initrd| hvm_modlist_entry {
            paddr: initrd.address.raw_value(),
            size: initrd.len_bytes.into(),
            ..hvm_modlist_entry::default()
        })
        .collect();
    let start_info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: 1,
        nr_modules: u32::from(!modules.is_empty()),
        modlist_paddr: if modules.is_empty() {
            0
        } else {
            MODULE_LIST.raw_value()
        },
        cmdline_paddr: CMDLINE.raw_value(),
        rsdp_paddr: ACPI_TABLES.raw_value(),
        memmap_paddr: MEMORY_MAP.raw_value(),
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..hvm_start_info::default()
    };
    let mut params = BootParams::new(&start_info, START_INFO);
    params.set_sections(&map, MEMORY_MAP);
    params.set_modules(&modules, MODULE_LIST);
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(|source| Error::Memory {
        problem: source.to_string(),
    })
}

/// Protected mode, paging off, flat segments.
pub(super) fn entry_sregs(reset: &Sregs) -> Sregs {
    let data = flat_segment(0x10, SEGMENT_DATA, false);
    Sregs {
        cs: flat_segment(0x08, SEGMENT_CODE, false),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task_segment(0x18),
        gdt: DescriptorTable::default(),
        idt: DescriptorTable::default(),
        cr0: CR0_PE | CR0_ET,
        cr4: 0,
        efer: 0,
        pdptrs: None,
        ..*reset
    }
}
