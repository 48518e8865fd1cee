use super::*;
use crate::config::{Backing, MAX_CPUS};
use crate::layout::{MAX_VIRTIO_DEVICES, virtio_slots};
use crate::memory::{create_guest_memory_for, memory_ranges};

/// The tables of a machine, as a guest finds them from the root pointer.
struct Found {
    block: Vec<u8>,
}

impl Found {
    fn new(cpus: u32, virtio: usize) -> Self {
        let slots: Vec<_> = virtio_slots(virtio).collect();
        let block = build(cpus, &slots);
        assert!(
            block.len() as u64 <= ACPI_TABLES_END - ACPI_TABLES.0,
            "{}",
            block.len()
        );
        Self { block }
    }

    fn word<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.block[offset..offset + N].try_into().unwrap()
    }

    fn offset_of(&self, address: u64) -> usize {
        usize::try_from(address - ACPI_TABLES.0).unwrap()
    }

    /// The table at an address, its signature and checksum checked.
    fn table(&self, address: u64, signature: &[u8; 4]) -> &[u8] {
        let offset = self.offset_of(address);
        let len = u32::from_le_bytes(self.word::<4>(offset + 4)) as usize;
        let table = &self.block[offset..offset + len];
        assert_eq!(&table[..4], signature);
        assert_eq!(sum(table), 0, "checksum");
        table
    }

    /// The tables that the XSDT names, in its order.
    fn entries(&self) -> Vec<u64> {
        let xsdt = self.table(u64::from_le_bytes(self.word(24)), b"XSDT");
        let entry = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        xsdt[36..].chunks_exact(8).map(entry).collect()
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[test]
fn every_table_is_found_from_the_root_pointer_and_sums_to_zero() {
    for (cpus, virtio) in [(1, 0), (2, 3), (MAX_CPUS, MAX_VIRTIO_DEVICES)] {
        let found = Found::new(cpus, virtio);
        assert_eq!(found.word::<8>(0), *b"RSD PTR ");
        assert_eq!(sum(&found.block[..20]), 0);
        assert_eq!(sum(&found.block[..36]), 0);
        let [fadt, madt] = found.entries()[..] else {
            panic!("{:?}", found.entries())
        };
        let fadt = found.table(fadt, b"FACP");
        found.table(u64::from_le_bytes(fadt[140..148].try_into().unwrap()), b"DSDT");
        found.table(madt, b"APIC");
    }
}

#[test]
fn the_machine_is_hardware_reduced_and_tells_how_to_end_it() {
    let found = Found::new(1, 0);
    let fadt = found.table(found.entries()[0], b"FACP");
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
    // Generic addresses: port space, 8 bits wide, byte access, address.
    let register = |port: u16| [&[1, 8, 0, 1][..], &u64::from(port).to_le_bytes()].concat();
    assert_eq!(fadt[116..128], register(power::RESET_PORT));
    assert_eq!(fadt[128], power::RESET_VALUE);
    assert_eq!(fadt[244..256], register(power::SLEEP_CONTROL_PORT));
    assert_eq!(fadt[256..268], register(power::SLEEP_STATUS_PORT));
}

#[test]
fn every_vcpu_has_its_local_apic() {
    for cpus in [1, 2, MAX_CPUS] {
        let found = Found::new(cpus, 0);
        let madt = found.table(found.entries()[1], b"APIC");
        let mut rest = &madt[44..];
        let mut ids = Vec::new();
        let mut io_apics = 0;
        while let [kind, len, ..] = *rest {
            match kind {
                0 => ids.push((u32::from(rest[2]), u32::from(rest[3]))),
                1 => io_apics += 1,
                _ => panic!("structure {kind}"),
            }
            rest = &rest[usize::from(len)..];
        }
        assert_eq!(ids, (0..cpus).map(|id| (id, id)).collect::<Vec<_>>());
        assert_eq!(io_apics, 1);
    }
}

#[test]
fn each_virtio_device_has_its_registers_and_its_own_line() {
    let slots: Vec<_> = virtio_slots(MAX_VIRTIO_DEVICES).collect();
    assert_eq!(slots.len(), 18);
    let dsdt = dsdt::table(&slots);
    for (number, slot) in slots.iter().enumerate() {
        let name = format!("V{number:03X}");
        assert!(contains(&dsdt, name.as_bytes()), "{name}");
        // Memory32Fixed, read and write; extended interrupt: consumer, edge, active high, exclusive.
        let memory = [
            &[0x86, 9, 0, 1][..],
            &slot.address.to_le_bytes(),
            &0x1000u32.to_le_bytes(),
        ]
        .concat();
        let line = [&[0x89, 6, 0, 3, 1][..], &slot.gsi.to_le_bytes()].concat();
        assert!(contains(&dsdt, &[memory, line].concat()), "{slot:?}");
    }
    assert!(!contains(&dsdt::table(&slots[..2]), b"V002"));
    let last = slots.last().unwrap();
    assert!(last.gsi < 24 && u64::from(last.address) < u64::from(IO_APIC));
}

#[test]
fn the_tables_are_where_the_boot_protocols_say() {
    let memory = create_guest_memory_for(&memory_ranges(2 << 20), Backing::Anonymous, false).unwrap();
    write(&memory, 2, &[]).unwrap();
    let root: [u8; 8] = memory.read_obj(ACPI_TABLES).unwrap();
    assert_eq!(root, *b"RSD PTR ");
}
