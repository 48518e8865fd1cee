//! Booting by the PVH entry point: load the ELF file, leave the start info, aim the first vCPU.
//!
//! The protocol is the one that Xen defined and that Linux and QEMU speak: 32-bit protected mode, paging
//! off, flat segments, EBX the address of `hvm_start_info`. Low memory holds what the guest is given:
//!
//! ```text
//! 0x0000_6000  hvm_start_info
//! 0x0000_7000  memory map entries
//! 0x0002_0000  command line, zero terminated
//! 0x0009_fc00  end of low RAM in the memory map (the legacy area up to 1 MiB is left out)
//! 0x0010_0000  kernel segments, from here
//! ```

use std::fs::File;
use std::io::{Cursor, Read, Seek};

use kvm_ioctls::VcpuFd;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, ReadVolatile};

use crate::arch::platform::Capabilities;
use crate::arch::vcpu_state;
use crate::builtin;
use crate::config::{Kernel, MachineConfig};
use crate::error::{Error, Result};
use crate::memory::{HOLE_END, HOLE_START, ranges_of};
use crate::state::{DescriptorTable, Segment, Sregs};

const START_INFO: GuestAddress = GuestAddress(0x6000);
const MEMORY_MAP: GuestAddress = GuestAddress(0x7000);
const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// End of the low RAM that the guest is told of; the extended BIOS data area of a PC begins here.
const LOW_RAM_END: u64 = 0x9_fc00;
const HIGH_RAM_START: GuestAddress = GuestAddress(0x10_0000);

const START_INFO_MAGIC: u32 = 0x336e_c578;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const RFLAGS_FIXED: u64 = 1 << 1;
/// Descriptor types: execute/read and accessed, read/write and accessed, busy 32-bit task state.
const SEGMENT_CODE: u8 = 0xb;
const SEGMENT_DATA: u8 = 0x3;
const SEGMENT_TSS: u8 = 0xb;

/// Loads what the configuration names, writes the start info, and returns the entry point.
pub(crate) fn load(memory: &GuestMemoryMmap, config: &MachineConfig) -> Result<GuestAddress> {
    let missing = Error::InvalidConfig {
        field: "kernel",
        rule: "must be given to boot",
    };
    let entry = match config.kernel.as_ref().ok_or(missing)? {
        Kernel::Elf(path) => {
            let mut file = File::open(path).map_err(|source| Error::OpenKernel {
                path: path.clone(),
                source,
            })?;
            load_elf(memory, &mut file)?
        }
        Kernel::Image(bytes) => load_elf(memory, &mut Cursor::new(bytes.as_slice()))?,
        Kernel::Builtin(options) => builtin::load(memory, config.cpus, options)?,
    };
    write_start_info(memory, &config.cmdline)?;
    Ok(entry)
}

/// Aims the first vCPU at the entry point.
pub(crate) fn set_entry(vcpu: &VcpuFd, capabilities: &Capabilities, entry: GuestAddress) -> Result<()> {
    let sregs = entry_sregs(&vcpu_state::get_sregs(0, vcpu, capabilities)?);
    vcpu_state::set_sregs(0, vcpu, capabilities, &sregs)?;
    let regs = kvm_bindings::kvm_regs {
        rip: entry.raw_value(),
        rbx: START_INFO.raw_value(),
        rflags: RFLAGS_FIXED,
        ..kvm_bindings::kvm_regs::default()
    };
    vcpu.set_regs(&regs).map_err(|source| Error::Vcpu {
        vcpu: 0,
        operation: "KVM_SET_REGS",
        source,
    })
}

fn load_elf<F: Read + Seek + ReadVolatile>(memory: &GuestMemoryMmap, image: &mut F) -> Result<GuestAddress> {
    let loaded = Elf::load(memory, None, image, Some(HIGH_RAM_START)).map_err(|source| Error::Kernel {
        problem: source.to_string(),
    })?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) if memory.address_in_range(entry) => Ok(entry),
        PvhBootCapability::PvhEntryPresent(entry) => Err(Error::Kernel {
            problem: format!("entry {:#x} is outside guest memory", entry.raw_value()),
        }),
        _ => Err(Error::Kernel {
            problem: "no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY)".into(),
        }),
    }
}

fn entry_sregs(reset: &Sregs) -> Sregs {
    let flat = |selector, type_| Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
    };
    let data = flat(0x10, SEGMENT_DATA);
    Sregs {
        cs: flat(0x08, SEGMENT_CODE),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: Segment {
            limit: 0x67,
            s: 0,
            g: 0,
            db: 0,
            ..flat(0x18, SEGMENT_TSS)
        },
        gdt: DescriptorTable::default(),
        idt: DescriptorTable::default(),
        cr0: CR0_PE | CR0_ET,
        cr4: 0,
        efer: 0,
        pdptrs: None,
        ..*reset
    }
}

fn write_start_info(memory: &GuestMemoryMmap, cmdline: &str) -> Result<()> {
    let failed = |source: vm_memory::GuestMemoryError| Error::Memory {
        problem: source.to_string(),
    };
    memory.write_slice(cmdline.as_bytes(), CMDLINE).map_err(failed)?;
    let terminator = CMDLINE.unchecked_add(cmdline.len() as u64);
    memory.write_obj(0u8, terminator).map_err(failed)?;

    let map = memory_map(memory);
    let start_info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: 1,
        cmdline_paddr: CMDLINE.raw_value(),
        memmap_paddr: MEMORY_MAP.raw_value(),
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..hvm_start_info::default()
    };
    let mut params = BootParams::new(&start_info, START_INFO);
    params.set_sections(&map, MEMORY_MAP);
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(|source| Error::Memory {
        problem: source.to_string(),
    })
}

/// Guest memory as an E820 map: the legacy area and the hole are no RAM.
fn memory_map(memory: &GuestMemoryMmap) -> Vec<hvm_memmap_table_entry> {
    let entry = |start: u64, end: u64, type_| hvm_memmap_table_entry {
        addr: start,
        size: end - start,
        type_,
        reserved: 0,
    };
    let mut map = vec![
        entry(0, LOW_RAM_END, E820_RAM),
        entry(LOW_RAM_END, HIGH_RAM_START.raw_value(), E820_RESERVED),
    ];
    for range in ranges_of(memory) {
        let start = range.guest_address.max(HIGH_RAM_START.raw_value());
        let end = range.guest_address + range.len_bytes;
        if start < end {
            map.push(entry(start, end, E820_RAM));
        }
    }
    map.push(entry(HOLE_START, HOLE_END, E820_RESERVED));
    map.sort_by_key(|entry| entry.addr);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Backing;
    use crate::memory::{create_guest_memory_for, memory_ranges};

    #[test]
    fn the_memory_map_is_ordered_without_overlap_and_tells_all_memory_but_the_legacy_area() {
        for bytes in [2 << 20, 1 << 30, (3 << 30) + (64 << 20)] {
            let memory = create_guest_memory_for(&memory_ranges(bytes), Backing::Anonymous, false).unwrap();
            let map = memory_map(&memory);
            assert!(
                map.windows(2)
                    .all(|pair| pair[0].addr + pair[0].size <= pair[1].addr),
                "{map:?}"
            );
            let ram: u64 = map
                .iter()
                .filter(|entry| entry.type_ == E820_RAM)
                .map(|entry| entry.size)
                .sum();
            assert_eq!(ram, bytes - (0x10_0000 - LOW_RAM_END));
        }
    }

    #[test]
    fn files_that_are_no_bootable_kernel_are_refused() {
        let memory = create_guest_memory_for(&memory_ranges(2 << 20), Backing::Anonymous, false).unwrap();
        let with = |kernel| MachineConfig {
            kernel: Some(kernel),
            ..MachineConfig::default()
        };
        let cases: [&[u8]; 3] = [b"", b"\x7fELF", &[0; 4096]];
        for image in cases {
            let result = load(&memory, &with(Kernel::Image(image.to_vec())));
            assert!(matches!(result, Err(Error::Kernel { .. })), "{result:?}");
        }
        let result = load(&memory, &with(Kernel::Elf("/nonexistent/kernel".into())));
        assert!(matches!(result, Err(Error::OpenKernel { .. })), "{result:?}");
    }
}
