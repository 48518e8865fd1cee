//! Where everything is in the machine: low memory, ports, registers in memory, interrupt lines.
//!
//! The boot code, the ACPI tables and the buses take their numbers from here, so that a guest is never
//! told of a thing that is elsewhere. A saved machine depends on these numbers: they do not change.
//!
//! ```text
//! 0x0000_0500  global descriptor table at a 64-bit entry
//! 0x0000_6000  PVH start info, module list
//! 0x0000_7000  PVH memory map, or Linux boot parameters
//! 0x0000_8000  (the built-in guest starts its other vCPUs here)
//! 0x0000_9000  page tables at a 64-bit entry
//! 0x0002_0000  kernel command line, zero terminated
//! 0x0009_fc00  end of low RAM; reserved from here, as on a PC
//! 0x000d_ff00  generation id
//! 0x000e_0000  ACPI tables, the root pointer first
//! 0x000f_fff0  code that resets the machine
//! 0x0010_0000  kernel
//! 0xc000_0000  end of the RAM below 4 GiB
//! 0xd000_0000  virtio devices, a page each
//! 0xfec0_0000  I/O APIC
//! 0xfee0_0000  local APICs
//! 0x1_0000_0000  the rest of the RAM
//! ```

use vm_memory::GuestAddress;

pub(crate) const GDT: GuestAddress = GuestAddress(0x500);
pub(crate) const START_INFO: GuestAddress = GuestAddress(0x6000);
pub(crate) const MODULE_LIST: GuestAddress = GuestAddress(0x6100);
pub(crate) const MEMORY_MAP: GuestAddress = GuestAddress(0x7000);
pub(crate) const BOOT_PARAMETERS: GuestAddress = GuestAddress(0x7000);
/// Six pages: the root, one table of directories and four directories.
pub(crate) const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
pub(crate) const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// End of the low RAM that the guest is told of; the extended BIOS data area of a PC begins here.
pub(crate) const LOW_RAM_END: u64 = 0x9_fc00;
/// Sixteen bytes, and not where a guest looks for the signature of an option ROM.
pub(crate) const GENERATION_ID: GuestAddress = GuestAddress(0xd_ff00);
/// A guest without a boot protocol that tells the root pointer's address looks for it from here.
pub(crate) const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
pub(crate) const ACPI_TABLES_END: u64 = RESET_VECTOR.0;
/// Where a processor in 16-bit mode enters the firmware of a PC.
pub(crate) const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
pub(crate) const HIGH_RAM_START: GuestAddress = GuestAddress(0x10_0000);

pub(crate) const I8042_PORT: u64 = 0x60;
pub(crate) const I8042_PORTS: u64 = 5;
pub(crate) const DEBUG_CONSOLE_PORT: u64 = 0xe9;
pub(crate) const DEBUG_EXIT_PORT: u64 = 0xf4;
pub(crate) const DEBUG_EXIT_PORTS: u64 = 4;
pub(crate) const SERIAL_PORT: u16 = 0x3f8;
pub(crate) const SERIAL_PORTS: u8 = 8;
/// Sleep control, sleep status, reset: a byte each.
pub(crate) const POWER_PORT: u16 = 0x600;
pub(crate) const POWER_PORTS: u16 = 3;

/// Registers of the first virtio device; the next ones follow.
pub(crate) const VIRTIO_BASE: u32 = 0xd000_0000;
/// Bytes between the registers of two virtio devices.
pub(crate) const VIRTIO_STRIDE: u32 = 0x1000;
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;

pub(crate) const SERIAL_GSI: u32 = 4;
/// Line of the device that tells of ACPI events.
pub(crate) const EVENT_GSI: u32 = 5;
/// Line of the first virtio device; each has its own.
pub(crate) const VIRTIO_FIRST_GSI: u32 = 6;
/// Inputs of KVM's I/O APIC.
const IO_APIC_PINS: u32 = 24;
/// Most virtio devices: what is left of the I/O APIC's inputs.
pub(crate) const MAX_VIRTIO_DEVICES: usize = (IO_APIC_PINS - VIRTIO_FIRST_GSI) as usize;

/// A virtio device's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VirtioSlot {
    /// First guest physical address of its registers.
    pub(crate) address: u32,
    /// Its interrupt line.
    pub(crate) gsi: u32,
}

/// Returns the places of `count` virtio devices, at most [`MAX_VIRTIO_DEVICES`].
pub(crate) fn virtio_slots(count: usize) -> impl Iterator<Item = VirtioSlot> {
    (0..)
        .take(count.min(MAX_VIRTIO_DEVICES))
        .map(|index: u32| VirtioSlot {
            address: VIRTIO_BASE + index * VIRTIO_STRIDE,
            gsi: VIRTIO_FIRST_GSI + index,
        })
}
