//! Disks of the guest: listed by `inspect`, their copies compared by `verify --deep`.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use ciborium::cbor;
use ciborium::value::Value;
use common::{Machine, complaint, json, run, text};
use serde_json::{Value as Json, json as value};
use snapfile::SectionKind;

const SIZE: usize = 3 << 20;

/// What the disk holds: some bytes in much that is zero.
fn content() -> Vec<u8> {
    let mut content = vec![0; SIZE];
    content[4096..4106].copy_from_slice(b"a file sys");
    content
}

/// A snapshot with a disk that was copied to the name, one that was not, and what connected them.
fn machine(directory: &Path, copy_name: &str) -> PathBuf {
    let fingerprint = Value::Bytes(blake3::hash(&content()).as_bytes().to_vec());
    let table = cbor!({ "disks" => [
        { "id" => "data", "format" => "raw", "virtual_size_bytes" => SIZE, "readonly" => false,
          "fingerprint" => fingerprint },
        { "id" => "tools", "format" => "raw", "virtual_size_bytes" => 4096, "readonly" => true,
          "fingerprint" => null },
    ] });
    let record = cbor!({
        "cpu" => "x86-64-v2",
        "devices" => { "rng" => true, "nets" => [{ "id" => "net0", "tap" => "tap0" }] },
        "disk_copies" => { "data" => copy_name },
    });
    let mut machine = Machine::new();
    machine.more_sections = vec![
        (SectionKind::DiskTable, "disks", table.unwrap()),
        (SectionKind::Provenance, "machine", record.unwrap()),
    ];
    let file = directory.join("vm.vmsnap");
    machine.write(&file);
    file
}

/// The state of the first disk, and the exit code that belongs to it.
fn state_of_copy(file: &Path, code: i32) -> Json {
    let report = json(["verify", "--deep", "--json", text(file)], code);
    assert_eq!(report["sound"], code == 0);
    assert_eq!(report["damage"], value!([]), "the snapshot file itself is sound");
    assert_eq!(report["disks"][1]["state"], "not_copied");
    report["disks"][0]["state"].clone()
}

#[test]
fn inspect_lists_disks_and_what_the_machine_was_connected_to() {
    let directory = tempfile::tempdir().unwrap();
    let file = machine(directory.path(), "vm.vmsnap.data.raw");
    let digest = blake3::hash(&content()).to_hex();
    let seen = run(["inspect", text(&file)], 0);
    for line in [
        format!("disk: data, raw, 3.0 MiB, copy vm.vmsnap.data.raw, fingerprint {digest}"),
        "disk: tools, raw, 4.0 KiB, read-only, not copied".to_owned(),
        "machine: cpu: \"x86-64-v2\"".to_owned(),
    ] {
        assert!(
            seen.lines().any(|seen| seen == line),
            "no line {line:?} in\n{seen}"
        );
    }
    let all = run(["inspect", "--sections", text(&file)], 0);
    assert!(all.contains("machine: devices.nets[0].tap: \"tap0\""), "{all}");
    let report = json(["inspect", "--json", text(&file)], 0);
    assert_eq!(
        report["disks"][0],
        value!({
            "id": "data",
            "format": "raw",
            "virtual_size_bytes": SIZE,
            "readonly": false,
            "fingerprint": digest.as_str(),
            "copy": "vm.vmsnap.data.raw",
        })
    );
    assert_eq!(report["disks"][1]["fingerprint"], Json::Null);
    assert_eq!(report["provenance"]["machine"]["state"]["cpu"], "x86-64-v2");
}

#[test]
fn a_deep_check_compares_the_copy_of_a_disk() {
    let directory = tempfile::tempdir().unwrap();
    let file = machine(directory.path(), "vm.vmsnap.data.raw");
    let copy = directory.path().join("vm.vmsnap.data.raw");
    assert_eq!(state_of_copy(&file, 0), "missing");
    fs::write(&copy, content()).unwrap();
    assert_eq!(state_of_copy(&file, 0), "matches");
    let seen = run(["verify", "--deep", text(&file)], 0);
    assert!(
        seen.contains("disk: data: copy vm.vmsnap.data.raw: sound"),
        "{seen}"
    );

    let mut other = content();
    other[SIZE - 1] ^= 1;
    fs::write(&copy, &other).unwrap();
    assert_eq!(state_of_copy(&file, 1), "differs");
    let seen = run(["verify", "--deep", text(&file)], 1);
    assert!(
        seen.contains("disk: data: copy vm.vmsnap.data.raw: damaged"),
        "{seen}"
    );
    run(["verify", text(&file)], 0);

    let mut longer = content();
    longer.push(0);
    fs::write(&copy, longer).unwrap();
    assert_eq!(state_of_copy(&file, 1), "differs");
}

#[test]
fn a_renamed_snapshot_finds_copies_that_were_renamed_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = machine(directory.path(), "before.vmsnap.data.raw");
    fs::write(directory.path().join("vm.vmsnap.data.raw"), content()).unwrap();
    assert_eq!(state_of_copy(&file, 0), "matches");
}

#[test]
fn the_name_of_a_copy_cannot_lead_elsewhere() {
    for name in ["../data.raw", "/data.raw", "..", "", "sub/data.raw"] {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("inner");
        fs::create_dir_all(inner.join("sub")).unwrap();
        for place in ["data.raw", "inner/sub/data.raw"] {
            fs::write(directory.path().join(place), content()).unwrap();
        }
        assert_eq!(state_of_copy(&machine(&inner, name), 0), "missing", "{name:?}");
    }
}

#[test]
fn a_disk_table_that_breaks_its_schema_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.vmsnap");
    let mut machine = Machine::new();
    let table = cbor!({ "disks" => [{ "id" => "data", "format" => "raw", "virtual_size_bytes" => 1,
        "fingerprint" => Value::Bytes(vec![1; 31]) }] });
    machine.more_sections = vec![(SectionKind::DiskTable, "disks", table.unwrap())];
    machine.write(&file);
    let complaint = complaint(["verify", "--deep", text(&file)], 2);
    assert!(
        complaint.contains("fingerprint of \"data\" is not 32 bytes"),
        "{complaint}"
    );
    let seen = run(["inspect", text(&file)], 0);
    assert!(seen.contains("disks: not readable"), "{seen}");
}
