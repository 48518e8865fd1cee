//! The differentiated system description table: the devices that a guest cannot find by itself.
//!
//! | path | hardware id | what |
//! |---|---|---|
//! | `\_SB_.COM1` | `PNP0501` | the 16550 serial port |
//! | `\_SB_.V000` and on | `LNRO0005` | a virtio device with registers in memory |
//! | `\_SB_.VGEN` | `VMGENCTR` | the generation id |
//! | `\_SB_.GED_` | `ACPI0013` | the generic event device, which notifies the one above |
//! | `\_S5_` | | the sleep type of switching off |

use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate,
};
use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of};
use crate::device::power;
use crate::layout::{
    EVENT_GSI, GENERATION_ID, SERIAL_GSI, SERIAL_PORT, SERIAL_PORTS, VIRTIO_STRIDE, VirtioSlot,
};

const HEADER_BYTES: u32 = 36;
/// Revision 2 makes the integers of the table 64 bits wide.
const REVISION: u8 = 2;
/// The notification of a generation id that has changed.
const NOTIFY_CHANGED: u8 = 0x80;

/// Returns the whole table.
pub(super) fn table(virtio: &[VirtioSlot]) -> Vec<u8> {
    let mut table = Sdt::new(
        *b"DSDT",
        HEADER_BYTES,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    let mut definitions = serial_port();
    for (number, slot) in virtio.iter().enumerate() {
        definitions.extend(virtio_device(number, *slot));
    }
    definitions.extend(generation_id());
    definitions.extend(event_device());
    definitions.extend(switched_off());
    table.append_slice(&definitions);
    table.as_slice().to_vec()
}

/// An interrupt line of one device alone, edge-triggered.
fn line(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn serial_port() -> Vec<u8> {
    let ports = IO::new(SERIAL_PORT, SERIAL_PORT, 1, SERIAL_PORTS);
    bytes_of(&Device::new(
        Path::new("\\_SB_.COM1"),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports, &line(SERIAL_GSI)]),
            ),
        ],
    ))
}

fn virtio_device(number: usize, slot: VirtioSlot) -> Vec<u8> {
    let registers = Memory32Fixed::new(true, slot.address, VIRTIO_STRIDE);
    bytes_of(&Device::new(
        Path::new(&format!("\\_SB_.V{number:03X}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &number),
            &Name::new("_CCA".into(), &1u8), // the device's accesses are coherent with caches
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&registers, &line(slot.gsi)]),
            ),
        ],
    ))
}

/// The device of Microsoft's specification "Virtual Machine Generation ID", with the hardware id that
/// Linux also knows from QEMU.
fn generation_id() -> Vec<u8> {
    let (low, high) = (GENERATION_ID.0 & 0xffff_ffff, GENERATION_ID.0 >> 32);
    bytes_of(&Device::new(
        Path::new("\\_SB_.VGEN"),
        vec![
            &Name::new("_HID".into(), &"VMGENCTR"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    ))
}

fn event_device() -> Vec<u8> {
    let is_new_generation = Equal::new(&Arg(0), &EVENT_GSI);
    let device = Path::new("\\_SB_.VGEN");
    let notify = Notify::new(&device, &NOTIFY_CHANGED);
    let react = If::new(&is_new_generation, vec![&notify]);
    bytes_of(&Device::new(
        Path::new("\\_SB_.GED_"),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&line(EVENT_GSI)])),
            &Method::new("_EVT".into(), 1, true, vec![&react]),
        ],
    ))
}

fn switched_off() -> Vec<u8> {
    let package = Package::new(vec![&power::SLEEP_TYPE_OFF, &0u8, &0u8, &0u8]);
    bytes_of(&Name::new("_S5_".into(), &package))
}
