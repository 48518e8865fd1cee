//! Booting: loading a kernel, describing the machine to it, aiming the first vCPU at it.
//!
//! What a file holds decides how it is started, not its name:
//!
//! | contents | protocol | the guest starts in | and is given |
//! |---|---|---|---|
//! | ELF with a PVH note | PVH, as Xen defined it and Linux and QEMU speak it | 32-bit mode, paging off | start info in EBX |
//! | Linux bzImage | Linux's 64-bit boot protocol | long mode, low 4 GiB mapped | boot parameters in RSI |
//!
//! The structures lie in low memory, where the layout puts them. The ACPI tables are not this module's; it
//! only passes on where they are.

mod initrd;
mod linux;
mod memory_map;
mod pvh;
mod reset_code;

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};

use kvm_ioctls::VcpuFd;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap, ReadVolatile};

use crate::arch::platform::Capabilities;
use crate::arch::vcpu_state;
use crate::builtin;
use crate::config::{Kernel, MachineConfig};
use crate::error::{Error, Result};
use crate::layout::{CMDLINE, START_INFO};
use crate::state::Segment;

use initrd::Initrd;

const RFLAGS_FIXED: u64 = 1 << 1;
const ELF_MAGIC: &[u8] = b"\x7fELF";
/// Bytes of a file that tell what it is: up to the end of a bzImage's header.
const KERNEL_HEAD_BYTES: usize = 0x290;

/// How the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// By the PVH protocol.
    Pvh(GuestAddress),
    /// By Linux's 64-bit boot protocol.
    Linux(GuestAddress),
}

/// Loads what the configuration names, and writes all that the kernel is given but the ACPI tables.
pub(crate) fn load(memory: &GuestMemoryMmap, config: &MachineConfig) -> Result<Entry> {
    let missing = Error::InvalidConfig {
        field: "kernel",
        rule: "must be given to boot",
    };
    reset_code::write(memory)?;
    write_cmdline(memory, &config.cmdline)?;
    match config.kernel.as_ref().ok_or(missing)? {
        Kernel::File(path) => {
            let mut file = File::open(path).map_err(|source| Error::OpenKernel {
                path: path.clone(),
                source,
            })?;
            load_image(memory, config, &mut file)
        }
        Kernel::Image(bytes) => load_image(memory, config, &mut Cursor::new(bytes.as_slice())),
        Kernel::Builtin(_) if config.initrd.is_some() => Err(Error::InvalidConfig {
            field: "initrd",
            rule: "must not be given to the built-in guest",
        }),
        Kernel::Builtin(options) => {
            let entry = builtin::load(memory, config.cpus, options)?;
            pvh::write_start_info(memory, None)?;
            Ok(Entry::Pvh(entry))
        }
    }
}

/// Aims the first vCPU at the entry point.
pub(crate) fn set_entry(vcpu: &VcpuFd, capabilities: &Capabilities, entry: Entry) -> Result<()> {
    let reset = vcpu_state::get_sregs(0, vcpu, capabilities)?;
    let mut regs = kvm_bindings::kvm_regs {
        rflags: RFLAGS_FIXED,
        ..kvm_bindings::kvm_regs::default()
    };
    let sregs = match entry {
        Entry::Pvh(address) => {
            (regs.rip, regs.rbx) = (address.raw_value(), START_INFO.raw_value());
            pvh::entry_sregs(&reset)
        }
        Entry::Linux(address) => {
            (regs.rip, regs.rsi) = (address.raw_value(), linux::PARAMETERS_IN_RSI);
            linux::entry_sregs(&reset)
        }
    };
    vcpu_state::set_sregs(0, vcpu, capabilities, &sregs)?;
    vcpu.set_regs(&regs).map_err(|source| Error::Vcpu {
        vcpu: 0,
        operation: "KVM_SET_REGS",
        source,
    })
}

fn load_image<F>(memory: &GuestMemoryMmap, config: &MachineConfig, image: &mut F) -> Result<Entry>
where
    F: Read + Seek + ReadVolatile,
{
    let unreadable = |source: std::io::Error| Error::Kernel {
        problem: format!("cannot be read: {source}"),
    };
    let mut head = Vec::with_capacity(KERNEL_HEAD_BYTES);
    image
        .by_ref()
        .take(KERNEL_HEAD_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(unreadable)?;
    image.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let initrd = config.initrd.as_deref();
    if head.starts_with(ELF_MAGIC) {
        pvh::load(memory, image, initrd)
    } else if linux::is_bzimage(&head) {
        linux::load(memory, image, initrd, config.cmdline.len())
    } else {
        Err(Error::Kernel {
            problem: "neither an ELF file nor a Linux bzImage".into(),
        })
    }
}

fn write_cmdline(memory: &GuestMemoryMmap, cmdline: &str) -> Result<()> {
    memory
        .write_slice(cmdline.as_bytes(), CMDLINE)
        .map_err(memory_error)?;
    let terminator = CMDLINE.unchecked_add(cmdline.len() as u64);
    memory.write_obj(0u8, terminator).map_err(memory_error)
}

fn memory_error(source: vm_memory::GuestMemoryError) -> Error {
    Error::Memory {
        problem: source.to_string(),
    }
}

/// A segment that spans the whole address space; as code, of 64 bits if `long`.
fn flat_segment(selector: u16, type_: u8, long: bool) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        avl: 0,
        unusable: 0,
    }
}

/// A busy task state segment, which virtualization by Intel demands whatever the guest does with it.
fn task_segment(selector: u16) -> Segment {
    Segment {
        limit: 0x67,
        s: 0,
        g: 0,
        db: 0,
        ..flat_segment(selector, SEGMENT_TSS, false)
    }
}

/// Descriptor types: execute/read and accessed, read/write and accessed, busy 32-bit or 64-bit task state.
const SEGMENT_CODE: u8 = 0xb;
const SEGMENT_DATA: u8 = 0x3;
const SEGMENT_TSS: u8 = 0xb;

#[cfg(test)]
mod tests;
