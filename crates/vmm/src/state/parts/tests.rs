//! Round trips, and every way in which parts can be wrong.

use std::collections::BTreeMap;

use ciborium::Value;
use proptest::prelude::*;

use super::*;
use crate::config::Backing;
use crate::config::SerialOutput;
use crate::device::{DebugConsole, DebugExit, Device, GenerationId, I8042, Power, Serial};
use crate::memory::MemoryRange;
use crate::memory::{create_guest_memory_for, memory_ranges};
use crate::state::{
    ByteString, Clock, CpuidLeaf, DebugRegs, IoApic, Pic, Pit, PitChannel, Regs, Sregs, VcpuEvents,
};

fn vcpu(id: u32) -> VcpuState {
    VcpuState {
        id,
        mp_state: 0,
        regs: Regs {
            rax: 0x1234,
            rip: u64::MAX,
            ..Regs::default()
        },
        sregs: Sregs {
            cr3: 0x1000,
            pdptrs: Some([1, 2, 3, 4]),
            ..Sregs::default()
        },
        xsave: ByteString(vec![7; 4096]),
        xcrs: BTreeMap::from([(0, 7)]),
        debug_regs: DebugRegs {
            db: [1, 2, 3, 4],
            dr6: 5,
            dr7: 6,
        },
        lapic: ByteString(vec![9; LAPIC_BYTES]),
        tsc_khz: 2_000_000,
        tsc_offset: Some(u64::MAX - 5),
        cpuid: vec![CpuidLeaf {
            function: 1,
            ebx: id << 24,
            ..CpuidLeaf::default()
        }],
        msrs: BTreeMap::from([(0x10, 99), (0xc000_0080, 0x500)]),
        events: VcpuEvents {
            nmi_masked: 1,
            ..VcpuEvents::default()
        },
    }
}

fn state() -> VmState {
    let channel = PitChannel {
        count: 65536,
        count_load_time: -5,
        ..PitChannel::default()
    };
    VmState {
        vm: VmSection {
            memory: vec![MemoryRange {
                guest_address: 0,
                len_bytes: 2 << 20,
            }],
            cpus: 12,
            devices: vec!["serial0".into(), "a".into()],
            pit: Pit {
                channels: [channel.clone(), channel.clone(), channel],
                flags: 2,
            },
            clock: Clock {
                clock_ns: 1,
                flags: 2,
                realtime_ns: 3,
                host_tsc: 4,
            },
            pics: [
                Pic {
                    irr: 1,
                    ..Pic::default()
                },
                Pic {
                    imr: 2,
                    ..Pic::default()
                },
            ],
            ioapic: IoApic {
                base_address: 0xfec0_0000,
                ioregsel: 1,
                id: 2,
                irr: 3,
                redirection: [4; 24],
            },
        },
        vcpus: (0..12).map(vcpu).collect(),
        devices: vec![
            DeviceState {
                name: "serial0".into(),
                version: 3,
                state: Value::Map(vec![("scratch".into(), 5.into())]),
            },
            DeviceState {
                name: "a".into(),
                version: 1,
                state: Value::Map(vec![]),
            },
        ],
        platform: PlatformState {
            vendor: "AuthenticAMD".into(),
            family: 25,
            model: 1,
            stepping: 0,
            features: vec!["avx2".into()],
            cpuid: vec![],
            xsave_bytes: 4096,
            msr_indices: vec![0x10],
            tsc_khz: 2_000_000,
            kvm_api_version: 12,
            kvm_capabilities: vec!["KVM_CAP_IRQCHIP".into()],
        },
    }
}

fn part_mut<'a>(parts: &'a mut [StatePart], name: &str) -> &'a mut StatePart {
    parts.iter_mut().find(|part| part.name == name).unwrap()
}

/// Decodes the state after `change` was made to the CBOR value of one part.
fn with_changed(name: &str, change: impl FnOnce(&mut Vec<(Value, Value)>)) -> Result<VmState> {
    let mut parts = state().to_parts().unwrap();
    let part = part_mut(&mut parts, name);
    let Value::Map(mut fields) = ciborium::from_reader(part.cbor.as_slice()).unwrap() else {
        panic!("{name}")
    };
    change(&mut fields);
    part.cbor.clear();
    ciborium::into_writer(&Value::Map(fields), &mut part.cbor).unwrap();
    VmState::from_parts(&parts)
}

fn set(fields: &mut [(Value, Value)], field: &str, value: Value) {
    fields
        .iter_mut()
        .find(|(key, _)| key.as_text() == Some(field))
        .unwrap()
        .1 = value;
}

#[test]
fn a_state_survives_encoding_in_any_order_of_parts() {
    let state = state();
    let mut parts = state.to_parts().unwrap();
    assert_eq!(
        parts,
        state.to_parts().unwrap(),
        "the encoding is a function of the state"
    );
    parts.reverse();
    assert_eq!(VmState::from_parts(&parts).unwrap(), state);
}

#[test]
fn parts_have_the_documented_names() {
    let names: Vec<String> = state()
        .to_parts()
        .unwrap()
        .into_iter()
        .map(|part| part.name)
        .collect();
    assert_eq!(names[..3], ["vm", "vcpu/0", "vcpu/1"]);
    assert_eq!(names[12..], ["vcpu/11", "device/serial0", "device/a", "platform"]);
}

#[test]
fn registers_are_found_by_name_without_this_crate() {
    let parts = state().to_parts().unwrap();
    let vcpu: Value = ciborium::from_reader(parts[1].cbor.as_slice()).unwrap();
    let field = |value: &Value, name: &str| -> Value {
        let map = value.as_map().unwrap();
        map.iter()
            .find(|(key, _)| key.as_text() == Some(name))
            .unwrap()
            .1
            .clone()
    };
    assert_eq!(field(&field(&vcpu, "regs"), "rax"), Value::from(0x1234));
    assert_eq!(field(&vcpu, "lapic"), Value::Bytes(vec![9; LAPIC_BYTES]));
    assert_eq!(
        field(&vcpu, "msrs").as_map().unwrap()[1],
        (Value::from(0xc000_0080u32), Value::from(0x500))
    );
}

#[test]
fn missing_unknown_and_repeated_parts_are_told_by_name() {
    let parts = state().to_parts().unwrap();
    for (index, part) in parts.iter().enumerate() {
        let mut without = parts.clone();
        without.remove(index);
        match VmState::from_parts(&without) {
            Err(StateError::MissingPart { name }) => assert_eq!(name, part.name),
            other => panic!("{}: {other:?}", part.name),
        }
        let mut twice = parts.clone();
        twice.push(part.clone());
        assert!(
            matches!(VmState::from_parts(&twice), Err(StateError::DuplicatePart { name }) if name == part.name)
        );
    }
    for name in ["vcpu/12", "vcpu/01", "device/b", "", "VM"] {
        let mut more = parts.clone();
        more.push(StatePart {
            name: name.into(),
            ..parts[0].clone()
        });
        let result = VmState::from_parts(&more);
        assert!(
            matches!(&result, Err(StateError::UnknownPart { name: told }) if told == name),
            "{result:?}"
        );
    }
}

#[test]
fn another_version_is_refused_except_a_devices_which_the_device_judges() {
    for name in ["vm", "vcpu/3", "platform"] {
        let mut parts = state().to_parts().unwrap();
        part_mut(&mut parts, name).version = 2;
        let result = VmState::from_parts(&parts);
        assert!(
            matches!(
                result,
                Err(StateError::Version {
                    found: 2,
                    known: 1,
                    ..
                })
            ),
            "{result:?}"
        );
    }
    assert_eq!(
        VmState::from_parts(&state().to_parts().unwrap()).unwrap().devices[0].version,
        3
    );
}

#[test]
fn unknown_missing_and_repeated_fields_are_errors() {
    for name in ["vm", "vcpu/0", "platform"] {
        let more = with_changed(name, |fields| fields.push(("surplus".into(), 1.into())));
        let fewer = with_changed(name, |fields| drop(fields.pop()));
        let twice = with_changed(name, |fields| fields.push(fields[0].clone()));
        for result in [more, fewer, twice] {
            assert!(
                matches!(result, Err(StateError::Schema { .. })),
                "{name}: {result:?}"
            );
        }
    }
}

#[test]
fn fields_that_break_a_rule_are_told() {
    let bytes = |len| Value::Bytes(vec![0; len]);
    let many = |count: u32| Value::Map((0..count).map(|key| (key.into(), 0.into())).collect());
    let cases: [(&str, &str, Value); 9] = [
        ("vm", "cpus", 0.into()),
        ("vm", "cpus", 255.into()),
        ("vm", "memory", Value::Array(vec![])),
        ("vm", "devices", Value::Array(vec!["a".into(), "a".into()])),
        ("vcpu/1", "id", 0.into()),
        ("vcpu/1", "lapic", bytes(1023)),
        ("vcpu/1", "xsave", bytes(4094)),
        ("vcpu/1", "xcrs", many(17)),
        ("vcpu/1", "msrs", many(4097)),
    ];
    for (name, field, value) in cases {
        match with_changed(name, |fields| set(fields, field, value)) {
            Err(StateError::Field {
                name: part,
                field: told,
                ..
            }) => assert_eq!((&*part, told), (name, field)),
            other => panic!("{name} {field}: {other:?}"),
        }
    }
}

#[test]
fn surplus_bytes_and_oversized_parts_are_refused() {
    let mut parts = state().to_parts().unwrap();
    parts[0].cbor.push(0);
    assert!(matches!(
        VmState::from_parts(&parts),
        Err(StateError::Schema { .. })
    ));
    parts[0].cbor = vec![0; MAX_PART_BYTES + 1];
    assert!(matches!(
        VmState::from_parts(&parts),
        Err(StateError::TooLarge { .. })
    ));
}

#[test]
fn claimed_lengths_and_depths_are_not_believed() {
    let hostile: [&[u8]; 5] = [
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", // an array of 2^64 - 1 items
        b"\xbb\x7f\xff\xff\xff\xff\xff\xff\xff", // a map of 2^63 - 1 pairs
        b"\x5b\x00\x00\xff\xff\xff\xff\xff\xff\x00", // a byte string of 2^48 bytes
        &[0x81; 100_000],                        // arrays in arrays
        &[0xa1; 100_000],                        // maps as keys of maps
    ];
    for cbor in hostile {
        for name in ["vm", "vcpu/0", "device/a", "platform"] {
            let mut parts = state().to_parts().unwrap();
            part_mut(&mut parts, name).cbor = cbor.to_vec();
            let result = VmState::from_parts(&parts);
            assert!(
                matches!(result, Err(StateError::Schema { .. })),
                "{name}: {result:?}"
            );
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(which in 0usize..16, cbor in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut parts = state().to_parts().unwrap();
        parts[which].cbor = cbor;
        let _ = VmState::from_parts(&parts);
    }

    #[test]
    fn flipped_bits_never_panic_and_what_decodes_encodes_again(
        which in 0usize..16,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4),
    ) {
        let mut parts = state().to_parts().unwrap();
        for (position, bit) in flips {
            let len = parts[which].cbor.len();
            parts[which].cbor[position.index(len)] ^= 1 << bit;
        }
        if let Ok(decoded) = VmState::from_parts(&parts) {
            let again = VmState::from_parts(&decoded.to_parts().unwrap()).unwrap();
            // Compared as bytes: a flipped bit may have made a float that is not equal to itself.
            prop_assert_eq!(again.to_parts().unwrap(), decoded.to_parts().unwrap());
        }
    }

    #[test]
    fn truncations_are_errors(which in 0usize..16, cut in any::<prop::sample::Index>()) {
        let mut parts = state().to_parts().unwrap();
        let len = parts[which].cbor.len();
        parts[which].cbor.truncate(cut.index(len));
        prop_assert!(VmState::from_parts(&parts).is_err());
    }
}

/// The document that defines the parts.
const SPECIFICATION: &str = include_str!("../../../../../fmt-spec/vmstate-v1.md");

/// The tables of the specification: for each structure the names and types of its fields, in order.
fn specified() -> BTreeMap<String, Vec<(String, String)>> {
    let mut tables = BTreeMap::new();
    let mut current: Vec<String> = Vec::new();
    for line in SPECIFICATION.lines() {
        if let Some(names) = line.strip_prefix("Fields of ") {
            current = names.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            tables.extend(current.iter().map(|name| (name.clone(), Vec::new())));
        } else if let Some(row) = line.strip_prefix("| `") {
            let mut cells = row.split(" | ");
            let field = cells.next().unwrap().trim_end_matches('`');
            let kind = cells.next().unwrap();
            for name in &current {
                tables
                    .get_mut(name)
                    .unwrap()
                    .push((field.to_owned(), kind.to_owned()));
            }
        } else if line.starts_with('#') {
            current.clear();
        }
    }
    tables
}

fn has_type(value: &Value, kind: &str) -> bool {
    match value {
        Value::Integer(number) => {
            let number = i128::from(*number);
            let unsigned = kind.split(' ').next().and_then(|kind| kind.strip_prefix("uint"));
            unsigned.map_or(kind == "int64", |bits| {
                (0..1 << bits.parse::<u32>().unwrap()).contains(&number)
            })
        }
        Value::Text(_) => kind == "text",
        Value::Bytes(_) => kind == "bytes",
        Value::Array(_) => kind.starts_with("array"),
        Value::Map(_) => kind.starts_with("map"),
        Value::Null => kind.ends_with("or null"),
        _ => false,
    }
}

/// Compares a value with the table of its structure, and those inside it with theirs.
fn compare(
    name: &str,
    value: &Value,
    tables: &mut BTreeMap<String, Vec<(String, String)>>,
    seen: &mut Vec<String>,
) {
    match value {
        Value::Array(items) => items
            .iter()
            .for_each(|item| compare(&format!("{name}[]"), item, tables, seen)),
        Value::Map(fields) if fields.iter().all(|(key, _)| key.is_text()) => {
            let table = tables
                .get(name)
                .unwrap_or_else(|| panic!("{name} is not in the specification"))
                .clone();
            let names: Vec<&str> = fields.iter().filter_map(|(key, _)| key.as_text()).collect();
            assert_eq!(
                names,
                table.iter().map(|(field, _)| field).collect::<Vec<_>>(),
                "{name}"
            );
            seen.push(name.to_owned());
            for ((field, kind), (_, value)) in table.iter().zip(fields) {
                assert!(has_type(value, kind), "{name}.{field}: {value:?} is no {kind}");
                compare(&format!("{name}.{field}"), value, tables, seen);
            }
        }
        _ => {}
    }
}

#[test]
fn the_specification_lists_every_field_in_order_with_its_type_and_no_other() {
    let memory = create_guest_memory_for(&memory_ranges(2 << 20), Backing::Anonymous, false).unwrap();
    let devices: [Box<dyn Device>; 6] = [
        Box::new(Serial::new(&SerialOutput::Null).unwrap()),
        Box::new(I8042::new()),
        Box::new(DebugConsole::default()),
        Box::new(DebugExit::default()),
        Box::new(Power::default()),
        Box::new(GenerationId::new(memory).unwrap()),
    ];
    let mut state = state();
    state.platform.cpuid = state.vcpus[0].cpuid.clone();
    state.vcpus.truncate(1);
    state.vm.devices.clear();
    state.devices = devices
        .iter()
        .map(|device| DeviceState {
            name: device.name().into(),
            version: device.version(),
            state: device.save().unwrap(),
        })
        .collect();
    let mut tables = specified();
    let mut seen = Vec::new();
    for part in state.to_parts().unwrap() {
        let value = ciborium::from_reader(part.cbor.as_slice()).unwrap();
        let name = if part.name == "vcpu/0" { "vcpu" } else { &part.name };
        compare(name, &value, &mut tables, &mut seen);
    }
    tables.retain(|name, _| !seen.contains(name));
    assert!(
        tables.is_empty(),
        "only the specification has {:?}",
        tables.keys()
    );
}
