//! The ACPI tables: how a guest learns of processors, devices and the way to switch the machine off.
//!
//! The machine is *hardware-reduced* (ACPI 6.5, 4.1): it has none of ACPI's fixed hardware, and a guest
//! does not look for an RTC, a PS/2 controller or a VGA, which are not there either. It ends by the sleep
//! control and reset registers. What happens to the machine as a whole is told by a generic event device,
//! whose only event is a new generation id. Linux leaves the 8254 timer and the 8259 interrupt controllers
//! alone on such a machine; they remain for guests that look for neither.
//!
//! The tables lie in reserved memory and are written by a boot only: a restored guest has them in its
//! memory.

mod dsdt;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestMemoryMmap};

use crate::device::power;
use crate::error::{Error, Result};
use crate::layout::{ACPI_TABLES, ACPI_TABLES_END, IO_APIC, LOCAL_APIC, VirtioSlot};

const OEM_ID: [u8; 6] = *b"VMSNAP";
const OEM_TABLE_ID: [u8; 8] = *b"VMSNAP  ";
const OEM_REVISION: u32 = 1;

/// IA-PC boot architecture flags (ACPI 6.5, 5.2.9.3): no VGA, no PCIe ASPM control, no CMOS RTC. The flag
/// of the keyboard controller is left out: the one that is there knows nothing but the reset command.
const NO_VGA: u16 = 1 << 2;
const NO_ASPM: u16 = 1 << 4;
const NO_RTC: u16 = 1 << 5;

/// Where tables start: whole lines of a cache.
const ALIGNMENT: usize = 64;

/// Writes the tables of a machine with `cpus` vCPUs and virtio devices at the given places.
pub(crate) fn write(memory: &GuestMemoryMmap, cpus: u32, virtio: &[VirtioSlot]) -> Result<()> {
    let tables = build(cpus, virtio);
    let problem = |problem: String| Error::Memory { problem };
    let room = ACPI_TABLES_END - ACPI_TABLES.0;
    if tables.len() as u64 > room {
        return Err(problem(format!(
            "ACPI tables of {} bytes, there is room for {room}",
            tables.len()
        )));
    }
    memory
        .write_slice(&tables, ACPI_TABLES)
        .map_err(|source| problem(source.to_string()))
}

/// All tables as one block of memory, the root pointer at its start.
fn build(cpus: u32, virtio: &[VirtioSlot]) -> Vec<u8> {
    let mut block = vec![0; Rsdp::len()];
    let dsdt = append(&mut block, &dsdt::table(virtio));
    let fadt = append(&mut block, &bytes_of(&fadt(dsdt)));
    let madt = append(&mut block, &bytes_of(&madt(cpus)));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = append(&mut block, &bytes_of(&xsdt));
    let root = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    block[..root.len()].copy_from_slice(&root);
    block
}

/// Puts a table behind the others; returns its guest physical address.
fn append(block: &mut Vec<u8>, table: &[u8]) -> u64 {
    block.resize(block.len().next_multiple_of(ALIGNMENT), 0);
    let address = ACPI_TABLES.0 + block.len() as u64;
    block.extend_from_slice(table);
    address
}

fn bytes_of(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> FADT {
    let register = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut builder = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::PwrButton) // no fixed power button, no fixed sleep button
        .flag(Flags::SlpButton);
    builder.iapc_boot_arch = (NO_VGA | NO_ASPM | NO_RTC).into();
    builder.sleep_control_reg = register(power::SLEEP_CONTROL_PORT);
    builder.sleep_status_reg = register(power::SLEEP_STATUS_PORT);
    builder.reset_reg = register(power::RESET_PORT);
    builder.reset_value = power::RESET_VALUE;
    builder.finalize()
}

fn madt(cpus: u32) -> MADT {
    let interrupts = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, interrupts);
    for id in (0..cpus).filter_map(|id| u8::try_from(id).ok()) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

#[cfg(test)]
mod tests;
