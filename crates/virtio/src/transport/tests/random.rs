//! Whatever a driver writes into registers and rings, nothing panics, hangs or grows without bound.

use std::io::Write;

use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::block::{Block, Disk};
use crate::config::DiskConfig;
use crate::driver::{copy, decode, encode};
use crate::rng::Rng;

/// One access of a random driver.
#[derive(Clone, Debug)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    /// A write of a register that matters, with a value that may.
    Register(u32, u32),
    Pause,
    Resume,
}

fn access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![0..0x200u64, any::<u64>()];
    let registers = prop_oneof![
        Just(VIRTIO_MMIO_STATUS),
        Just(VIRTIO_MMIO_QUEUE_SEL),
        Just(VIRTIO_MMIO_QUEUE_READY),
        Just(VIRTIO_MMIO_QUEUE_NUM),
        Just(VIRTIO_MMIO_QUEUE_NOTIFY),
        Just(VIRTIO_MMIO_DRIVER_FEATURES),
        Just(VIRTIO_MMIO_DRIVER_FEATURES_SEL),
        (0..0x40u32).prop_map(|index| index * 4),
    ];
    let values = prop_oneof![0..16u32, Just(0xb), Just(0xf), Just(0x1_0000), any::<u32>()];
    prop_oneof![
        1 => (offset.clone(), 0..10usize).prop_map(|(offset, len)| Access::Read(offset, len)),
        1 => (offset, proptest::collection::vec(any::<u8>(), 0..10))
            .prop_map(|(offset, data)| Access::Write(offset, data)),
        8 => (registers, values).prop_map(|(register, value)| Access::Register(register, value)),
        1 => Just(Access::Pause),
        1 => Just(Access::Resume),
    ]
}

fn apply(driver: &mut Driver, access: &Access) {
    match access {
        Access::Read(offset, len) => driver.transport.read(*offset, &mut vec![0; *len]),
        Access::Write(offset, data) => driver.transport.write(*offset, data),
        Access::Register(register, value) => driver.write(*register, *value),
        Access::Pause => driver.transport.pause().unwrap(),
        Access::Resume => driver.transport.resume(),
    }
}

/// A chain of the ring: address, length, flags, next.
type RandomDescriptor = (u64, u32, u16, u16);

fn descriptor() -> impl Strategy<Value = RandomDescriptor> {
    let address = prop_oneof![4 => 0..0x8_0000u64, 1 => any::<u64>()];
    let len = prop_oneof![4 => 0..2000u32, 2 => Just(16), 2 => Just(1), 1 => any::<u32>()];
    let next = prop_oneof![8 => 0..16u16, 1 => any::<u16>()];
    (address, len, 0..8u16, next)
}

fn image() -> (NamedTempFile, Disk) {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&[0x77; 65536]).unwrap();
    let path = file.path().to_owned();
    let disk = Disk::open(&DiskConfig::new("disk", path)).unwrap();
    (file, disk)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_register_accesses_is_survived(accesses in proptest::collection::vec(access(), 1..200)) {
        let (_file, disk) = image();
        for device in [Box::new(Rng::new()) as Box<dyn VirtioDevice>, Box::new(Block::new(disk))] {
            let transport = MmioTransport::new("test".to_owned(), device, memory()).unwrap();
            let mut driver = Driver::new(Rng::new(), &memory());
            driver.transport = transport;
            for access in &accesses {
                apply(&mut driver, access);
            }
            driver.transport.pause().unwrap();
            let state = encode(&driver.transport.save().unwrap());
            driver.transport.resume();
            driver.probe(0);
            prop_assert_eq!(driver.status(), WORKING);
            prop_assert!(state.len() < 4096);
        }
    }

    #[test]
    fn any_rings_are_survived(
        descriptors in proptest::collection::vec(descriptor(), 1..32),
        heads in proptest::collection::vec(0..40u16, 1..64),
        junk in proptest::collection::vec(any::<u8>(), 0..2048),
        index in prop_oneof![4 => Just(None), 1 => any::<u16>().prop_map(Some)],
    ) {
        let (_file, disk) = image();
        let mut driver = Driver::new(Block::new(disk), &memory());
        driver.probe(0);
        driver.memory.write_slice(&junk, GuestAddress(0x4_0000)).unwrap();
        let ring = &mut driver.rings[0];
        for (at, &(address, len, flags, next)) in (0u64..).zip(&descriptors) {
            let bytes = [
                &address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes(),
            ];
            driver.memory.write_slice(&bytes.concat(), GuestAddress(ring.descriptors + 16 * at)).unwrap();
        }
        for &head in &heads {
            ring.offer(head, &driver.memory);
        }
        if let Some(index) = index {
            ring.set_avail_index(index, &driver.memory);
        }
        driver.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        // Comes to rest whatever it met, and can be reset and used.
        driver.transport.pause().unwrap();
        driver.transport.save().unwrap();
        driver.transport.resume();
        driver.transport.pause().unwrap();
        driver.transport.resume();
        driver.probe(0);
        prop_assert_eq!(driver.status(), WORKING);
    }

    #[test]
    fn any_damage_to_a_saved_state_is_survived(
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let (_file, disk) = image();
        let mut driver = Driver::new(Block::new(disk.clone()), &memory());
        driver.probe(0);
        driver.transport.pause().unwrap();
        let mut bytes = encode(&driver.transport.save().unwrap());
        let at = at.index(bytes.len());
        bytes[at] = value;
        if cut {
            bytes.truncate(at);
        }
        if let Ok(state) = ciborium::from_reader::<Value, _>(bytes.as_slice()) {
            let mut other = Driver::new(Block::new(disk), &copy(&driver.memory));
            if other.transport.restore(1, &state).is_ok() {
                let again = encode(&other.transport.save().unwrap());
                prop_assert_eq!(decode(&again), state);
            }
            other.transport.resume();
            other.probe(0);
        }
    }
}
