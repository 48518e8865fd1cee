use std::collections::BTreeSet;

use ciborium::Value;
use vmm::DevicesConfig;

use super::*;
use crate::disk::{DiskEntry, DisksMode, Fingerprint, InternalEntry};
use crate::machine_record::LayerRecord;
use crate::report::{CaptureFigures, DiskFigures, SaveMode, StallFigures};

const SPECIFICATION: &str = include_str!("../../../../fmt-spec/sections-v1.md");

/// The names in backquotes in the first cells of the tables below the headings that begin with `from`, up to `to`.
fn specified(from: &str, to: &str) -> BTreeSet<String> {
    let text = SPECIFICATION.split_once(from).unwrap().1;
    let text = text.split_once(to).map_or(text, |(text, _)| text);
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.flat_map(|row| {
        row.split('|')
            .nth(1)
            .unwrap()
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
    })
    .collect()
}

fn fields(value: &impl Serialize) -> BTreeSet<String> {
    let Value::Map(fields) = Value::serialized(value).unwrap() else {
        panic!("not a map")
    };
    fields
        .into_iter()
        .map(|(name, _)| name.into_text().unwrap())
        .collect()
}

fn disk() -> DiskEntry {
    DiskEntry {
        id: "data".to_owned(),
        format: "raw".to_owned(),
        virtual_size_bytes: 4096,
        readonly: false,
        mode: DisksMode::Internal,
        internal: Some(InternalEntry {
            id: "1".to_owned(),
            name: "out.vmsnap".to_owned(),
        }),
        layers: vec![Fingerprint([7; 32])],
    }
}

fn statistics() -> Statistics {
    Statistics {
        mode: SaveMode::Async,
        was_paused: false,
        command_to_capture_point_us: 1,
        downtime_us: 2,
        drain_us: 24,
        park_us: 3,
        state_us: 4,
        freeze_us: 5,
        resume_us: 6,
        capture: CaptureFigures {
            kernel_path: None,
            memory_bytes: 7,
            chunk_bytes: 8,
            chunks: 9,
            walkers: 10,
            arm_us: 11,
            arm_rounds: 12,
            chunks_touched_at_freeze: 13,
            bytes_unarmed_at_freeze: 14,
            faults_arming: 15,
            faults_draining: 16,
            stall_arming: StallFigures::default(),
            stall_draining: StallFigures::default(),
            faults_throttled: 17,
            copied_bytes: 18,
            discarded_bytes: 23,
            buffer_high_water_bytes: 19,
            chunks_unpopulated: 20,
            encoded_bytes: 21,
            drain_us: 22,
        },
        disks: DiskFigures::default(),
    }
}

#[test]
fn the_fields_are_those_of_the_specification() {
    assert_eq!(fields(&DiskTable::default()), specified("## 4 ", "4.1 "));
    assert_eq!(fields(&disk()), specified("4.1 ", "4.2 "));
    assert_eq!(fields(&disk().internal), specified("4.5 ", "4.6 "));
    assert_eq!(fields(&Provenance::default()), specified("## 5 ", "## 6 "));
    assert_eq!(fields(&statistics()), specified("## 6 ", "6.1 Fields"));
    assert_eq!(
        fields(&statistics().capture),
        specified("6.1 Fields", "6.2 Fields")
    );
    assert_eq!(fields(&statistics().disks), specified("6.2 Fields", "\n>"));
    assert_eq!(
        fields(&MachineRecord::without_devices()),
        specified("## 7 ", "7.1 Fields")
    );
    assert_eq!(
        fields(&DevicesConfig::none()),
        specified("7.1 Fields", "7.2 Each")
    );
    let layer = LayerRecord {
        path: "out.vmsnap.data.qcow2".into(),
        format: "qcow2".to_owned(),
        length_bytes: 1,
        mtime_ns: 2,
    };
    assert_eq!(fields(&layer), specified("7.2 Each", "7.3 A"));
}

#[test]
fn a_payload_comes_back_as_it_was() {
    let provenance = Provenance {
        vm_name: "web".to_owned(),
        ..Provenance::new(SystemTime::now(), "", "vmsnap 1")
    };
    let section = provenance_section(&provenance).unwrap();
    assert_eq!(
        ciborium::from_reader::<Provenance, _>(section.payload.as_slice()).unwrap(),
        provenance
    );
    let section = statistics_section(&statistics()).unwrap();
    assert_eq!(
        ciborium::from_reader::<Statistics, _>(section.payload.as_slice()).unwrap(),
        statistics()
    );
}

#[test]
fn fields_of_later_versions_are_ignored_outside_the_state() {
    let extended = [
        ("captured_unix_ns", Value::from(1)),
        ("vm_name", "".into()),
        ("producer", "x".into()),
    ]
    .into_iter()
    .chain([
        ("host_kernel", "".into()),
        ("labels", Value::Map(Vec::new())),
        ("moon_phase", 3.into()),
    ]);
    let map = extended.map(|(name, value)| (Value::from(name), value)).collect();
    let mut payload = Vec::new();
    ciborium::into_writer(&Value::Map(map), &mut payload).unwrap();
    assert!(ciborium::from_reader::<Provenance, _>(payload.as_slice()).is_ok());
    assert!(ciborium::from_reader::<DiskTable, _>(payload.as_slice()).is_err());
}

#[test]
fn a_disk_table_of_an_earlier_version_is_refused_by_its_number() {
    let version = |section: Section| (section.name, section.version);
    let table = state_sections(Vec::new(), &DiskTable::default()).unwrap();
    let disks = table.into_iter().map(version).next().unwrap();
    assert_eq!(disks, (DISKS.to_owned(), 2));
    let machine = machine_section(&MachineRecord::without_devices()).unwrap();
    assert_eq!(version(machine), (MACHINE.to_owned(), 2));
    let statistics = statistics_section(&statistics()).unwrap();
    assert_eq!(version(statistics), (STATISTICS.to_owned(), 1));
}

#[test]
fn the_platform_has_a_kind_of_its_own() {
    let part = |name: &str| StatePart {
        name: name.to_owned(),
        version: 1,
        cbor: vec![0xa0],
    };
    let kinds: Vec<_> = state_sections(vec![part("vm"), part("platform")], &DiskTable::default())
        .unwrap()
        .into_iter()
        .map(|section| section.kind)
        .collect();
    assert_eq!(
        kinds,
        [
            SectionKind::VmState,
            SectionKind::Platform,
            SectionKind::DiskTable
        ]
    );
}
