//! Disks of the guest: listed by `inspect`, their files followed by `verify --deep`.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use ciborium::cbor;
use ciborium::value::Value;
use common::{Machine, alone, complaint, json, run, text};
use qcow2::{Access, Backing, Cache, CreateOptions, FileStorage, ImageFormat, Metadata};
use serde_json::{Value as Json, json as value};
use snapfile::SectionKind;

const SIZE: usize = 3 << 20;

/// What the raw files hold: some bytes in much that is zero.
fn content() -> Vec<u8> {
    let mut content = vec![0; SIZE];
    content[4096..4106].copy_from_slice(b"a file sys");
    content
}

fn fingerprint(bytes: &[u8]) -> Value {
    Value::Bytes(blake3::hash(bytes).as_bytes().to_vec())
}

/// A layer as the machine's record has it.
fn record(path: &str, format: &str, length: usize) -> Value {
    cbor!({ "path" => path, "format" => format, "length_bytes" => length, "mtime_ns" => 0 }).unwrap()
}

/// A disk as the table has it.
fn disk(id: &str, format: &str, mode: &str, internal: Value, layers: Vec<Value>) -> Value {
    cbor!({
        "id" => id, "format" => format, "virtual_size_bytes" => SIZE, "readonly" => mode == "none",
        "mode" => mode, "internal" => internal, "layers" => layers,
    })
    .unwrap()
}

/// A snapshot with these disks and, by disk, these files.
fn machine(directory: &Path, disks: Vec<Value>, records: Vec<(&str, Vec<Value>)>) -> PathBuf {
    let text = |text: &str| Value::Text(text.to_owned());
    let records = records
        .into_iter()
        .map(|(id, layers)| (text(id), Value::Array(layers)))
        .collect();
    let mut machine = Machine::new();
    machine.version_2 = vec![
        (
            SectionKind::DiskTable,
            "disks",
            Value::Map(vec![(text("disks"), Value::Array(disks))]),
        ),
        (
            SectionKind::Provenance,
            "machine",
            Value::Map(vec![
                (text("cpu"), text("x86-64-v2")),
                (text("disk_layers"), Value::Map(records)),
            ]),
        ),
    ];
    let file = directory.join("vm.vmsnap");
    machine.write(&file);
    file
}

/// A snapshot with a raw disk that was copied to the name, and one of which nothing is kept.
fn copied(directory: &Path, copy_name: &str) -> PathBuf {
    machine(
        directory,
        vec![
            disk("data", "raw", "copy", Value::Null, vec![fingerprint(&content())]),
            disk("tools", "raw", "none", Value::Null, Vec::new()),
        ],
        vec![("data", vec![record(copy_name, "raw", SIZE)])],
    )
}

/// Makes a qcow2 image.
fn image(path: &Path, backing: Option<&str>) {
    let storage = FileStorage::from_file(fs::File::create_new(path).unwrap(), Access::ReadWrite);
    let mut options = CreateOptions::new(SIZE as u64);
    options.backing = backing.map(|name| Backing::new(name, ImageFormat::Raw));
    qcow2::create(&storage, &options).unwrap();
}

/// A snapshot whose disk is a frozen image over a raw base, in a directory of disks.
fn overlay(directory: &Path) -> (PathBuf, PathBuf, PathBuf) {
    fs::create_dir(directory.join("disks")).unwrap();
    let (base, frozen) = (
        directory.join("disks/base.raw"),
        directory.join("disks/frozen.qcow2"),
    );
    fs::write(&base, content()).unwrap();
    image(&frozen, Some("base.raw"));
    let bytes = fs::read(&frozen).unwrap();
    let file = machine(
        directory,
        vec![disk(
            "data",
            "qcow2",
            "overlay",
            Value::Null,
            vec![fingerprint(&bytes), fingerprint(&content())],
        )],
        vec![(
            "data",
            vec![
                record("disks/frozen.qcow2", "qcow2", bytes.len()),
                record("disks/base.raw", "raw", SIZE),
            ],
        )],
    );
    (file, frozen, base)
}

/// What a deep check says of the first disk, with the exit code that belongs to it.
#[track_caller]
fn checked(file: &Path, code: i32) -> Json {
    let report = json(["verify", "--deep", "--json", text(file)], code);
    assert_eq!(report["sound"], code == 0);
    assert_eq!(report["damage"], value!([]), "the snapshot file itself is sound");
    report["disks"][0].clone()
}

#[test]
fn inspect_lists_disks_with_their_chains_and_modes() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let (file, frozen, _) = overlay(directory.path());
    let digest = blake3::hash(&content()).to_hex();
    let top = blake3::hash(&fs::read(&frozen).unwrap()).to_hex();
    let seen = run(["inspect", text(&file)], 0);
    let length = fs::metadata(&frozen).unwrap().len();
    for line in [
        "disk: data, qcow2, 3.0 MiB, overlay".to_owned(),
        format!("disk data layer 0: disks/frozen.qcow2, qcow2, 256.0 KiB, fingerprint {top}"),
        format!("disk data layer 1: disks/base.raw, raw, 3.0 MiB, fingerprint {digest}"),
        "machine: cpu: \"x86-64-v2\"".to_owned(),
    ] {
        assert!(
            seen.lines().any(|seen| seen == line),
            "no line {line:?} in\n{seen}"
        );
    }
    let report = json(["inspect", "--json", text(&file)], 0);
    assert_eq!(
        report["disks"][0],
        value!({
            "id": "data",
            "format": "qcow2",
            "virtual_size_bytes": SIZE,
            "readonly": false,
            "mode": "overlay",
            "internal": null,
            "layers": [
                { "fingerprint": top.as_str(), "file": "disks/frozen.qcow2", "format": "qcow2", "file_bytes": length },
                { "fingerprint": digest.as_str(), "file": "disks/base.raw", "format": "raw", "file_bytes": SIZE },
            ],
        })
    );
}

#[test]
fn a_deep_check_follows_the_chain_of_a_frozen_image() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let (file, frozen, base) = overlay(directory.path());
    let disk = checked(&file, 0);
    assert_eq!(disk["state"], "matches");
    assert_eq!(disk["layers"][1]["state"], "matches");

    let mut other = content();
    other[SIZE - 1] ^= 1;
    fs::write(&base, &other).unwrap();
    let disk = checked(&file, 1);
    assert_eq!(disk["state"], "differs");
    assert_eq!(disk["layers"][0]["state"], "matches");
    let seen = run(["verify", "--deep", text(&file)], 1);
    assert!(
        seen.contains("base.raw: damaged: not as of the snapshot"),
        "{seen}"
    );
    run(["verify", text(&file)], 0);

    fs::remove_file(&base).unwrap();
    assert_eq!(checked(&file, 0)["layers"][1]["state"], "missing");
    fs::remove_file(&frozen).unwrap();
    assert_eq!(checked(&file, 0)["state"], "missing");
}

#[test]
fn images_that_were_moved_beside_the_snapshot_are_found() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let (file, frozen, base) = overlay(directory.path());
    for path in [frozen, base] {
        fs::rename(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    assert_eq!(checked(&file, 0)["state"], "matches");
}

#[test]
fn a_frozen_image_that_never_was_sound_is_damage() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let frozen = directory.path().join("frozen.qcow2");
    image(&frozen, None);
    let mut bytes = fs::read(&frozen).unwrap();
    // The L1 table maps the first 512 MiB by the header, which is no L2 table.
    let l1 = usize::try_from(u64::from_be_bytes(bytes[40..48].try_into().unwrap())).unwrap();
    bytes[l1..l1 + 8].copy_from_slice(&(1u64 << 63 | 0x10_0000_0000).to_be_bytes());
    fs::write(&frozen, &bytes).unwrap();
    let file = machine(
        directory.path(),
        vec![disk(
            "data",
            "qcow2",
            "overlay",
            Value::Null,
            vec![fingerprint(&bytes)],
        )],
        vec![("data", vec![record("frozen.qcow2", "qcow2", bytes.len())])],
    );
    let disk = checked(&file, 1);
    assert_eq!(disk["state"], "corrupt");
    assert_ne!(disk["layers"][0]["corruptions"], 0);
}

#[test]
fn a_deep_check_knows_an_internal_snapshot_from_one_made_anew() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.qcow2");
    image(&path, None);
    let open = || {
        let storage = FileStorage::open(&path, Access::ReadWrite, Cache::Writeback).unwrap();
        Metadata::open(Arc::new(storage)).unwrap()
    };
    let mut metadata = open();
    let made = qcow2::snapshots::create(&mut metadata, "vm", SystemTime::now()).unwrap();
    let bytes = qcow2::snapshots::fingerprint(&metadata, &made.id()).unwrap();
    drop(metadata);
    let internal = cbor!({ "id" => made.id().into_owned(), "name" => "vm" }).unwrap();
    let file = machine(
        directory.path(),
        vec![disk(
            "data",
            "qcow2",
            "internal",
            internal,
            vec![Value::Bytes(bytes.to_vec())],
        )],
        vec![("data", vec![record("data.qcow2", "qcow2", 0)])],
    );
    assert_eq!(checked(&file, 0)["state"], "matches");
    let seen = run(["inspect", text(&file)], 0);
    assert!(seen.contains("internal, internal snapshot 1 (vm)"), "{seen}");

    // A machine that writes to the image does not change its snapshots.
    let held = open();
    assert_eq!(checked(&file, 0)["state"], "in_use");
    drop(held);

    qcow2::snapshots::delete(&mut open(), "1").unwrap();
    assert_eq!(checked(&file, 1)["state"], "differs");
    qcow2::snapshots::create(&mut open(), "other", SystemTime::now()).unwrap();
    assert_eq!(checked(&file, 1)["state"], "differs");
}

#[test]
fn a_deep_check_compares_the_copy_of_a_disk() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let file = copied(directory.path(), "vm.vmsnap.data.raw");
    let copy = directory.path().join("vm.vmsnap.data.raw");
    assert_eq!(checked(&file, 0)["state"], "missing");
    fs::write(&copy, content()).unwrap();
    assert_eq!(checked(&file, 0)["state"], "matches");
    let seen = run(["verify", "--deep", text(&file)], 0);
    assert!(seen.contains("vm.vmsnap.data.raw: sound"), "{seen}");
    assert!(
        seen.contains("disk: tools: none of its content was recorded"),
        "{seen}"
    );

    let mut longer = content();
    longer.push(0);
    fs::write(&copy, longer).unwrap();
    assert_eq!(checked(&file, 1)["state"], "differs");
}

#[test]
fn a_renamed_snapshot_finds_copies_that_were_renamed_with_it() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let file = copied(directory.path(), "before.vmsnap.data.raw");
    fs::write(directory.path().join("vm.vmsnap.data.raw"), content()).unwrap();
    assert_eq!(checked(&file, 0)["state"], "matches");
}

#[test]
fn the_name_of_a_copy_cannot_lead_elsewhere() {
    let _alone = alone();
    for name in ["../data.raw", "/data.raw", "..", "", "sub/data.raw"] {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("inner");
        fs::create_dir_all(inner.join("sub")).unwrap();
        for place in ["data.raw", "inner/sub/data.raw"] {
            fs::write(directory.path().join(place), content()).unwrap();
        }
        assert_eq!(checked(&copied(&inner, name), 0)["state"], "missing", "{name:?}");
    }
}

#[test]
fn a_disk_table_that_breaks_its_schema_is_named() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let short = disk(
        "data",
        "raw",
        "copy",
        Value::Null,
        vec![Value::Bytes(vec![1; 31])],
    );
    let file = machine(directory.path(), vec![short], Vec::new());
    let complaint = complaint(["verify", "--deep", text(&file)], 2);
    assert!(
        complaint.contains("a fingerprint of \"data\" is not 32 bytes"),
        "{complaint}"
    );
    let seen = run(["inspect", text(&file)], 0);
    assert!(seen.contains("disks: not readable"), "{seen}");
}

/// Two snapshots whose disks are frozen images over the same base.
fn two_overlays(directory: &Path) -> [PathBuf; 2] {
    fs::write(directory.join("base.raw"), content()).unwrap();
    [("a", 1u8), ("b", 2)].map(|(name, byte)| {
        let frozen = directory.join(format!("{name}.qcow2"));
        image(&frozen, Some("base.raw"));
        let disk_image = qcow2::Image::open_chain(&frozen, &qcow2::ImageOptions::default()).unwrap();
        disk_image.write_at(&[byte; 512], 1 << 20).unwrap();
        disk_image.write_at(&[9; 512], 2 << 20).unwrap();
        drop(disk_image);
        let bytes = fs::read(&frozen).unwrap();
        let prints = vec![fingerprint(&bytes), fingerprint(&content())];
        let records = vec![
            record(&format!("{name}.qcow2"), "qcow2", bytes.len()),
            record("base.raw", "raw", SIZE),
        ];
        let file = machine(
            directory,
            vec![disk("data", "qcow2", "overlay", Value::Null, prints)],
            vec![("data", records)],
        );
        let named = directory.join(format!("{name}.vmsnap"));
        fs::rename(file, &named).unwrap();
        named
    })
}

#[test]
fn a_diff_of_snapshots_tells_which_ranges_of_a_disk_differ() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = two_overlays(directory.path());
    let found = json(["diff", "--json", text(&first), text(&second)], 1);
    assert_eq!(
        found["disks"],
        value!([{
            "id": "data", "state": "differs", "differing_bytes": 4096,
            // The two clusters that the images have of their own; the base is not read for it.
            "compared_bytes": 2 * 65536,
            "ranges": [{ "offset": 1 << 20, "len_bytes": 4096 }], "range_count": 1,
        }])
    );
    let seen = run(["diff", text(&first), text(&second)], 1);
    assert!(
        seen.contains("disk data: 0x100000-0x100fff (4.0 KiB) differs"),
        "{seen}"
    );
    let found = json(["diff", "--json", "--no-disks", text(&first), text(&second)], 1);
    assert_eq!(found["disks"], Json::Null);
    let found = json(["diff", "--json", text(&first), text(&first)], 0);
    assert_eq!(found["disks"][0]["state"], "same");

    fs::remove_file(directory.path().join("b.qcow2")).unwrap();
    let found = json(["diff", "--json", text(&first), text(&second)], 1);
    assert_eq!(found["disks"][0]["state"], "not_compared");
    assert!(
        found["disks"][0]["reason"].as_str().unwrap().contains("b.qcow2"),
        "{found}"
    );
}

#[test]
fn a_diff_of_internal_snapshots_goes_by_the_tables_of_their_image() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.qcow2");
    image(&path, None);
    let take = |byte: u8, name: &str| {
        let live = qcow2::Image::open_chain(&path, &qcow2::ImageOptions::default()).unwrap();
        live.write_at(&[byte; 512], 65536).unwrap();
        live.write_at(&[3; 512], 1 << 20).unwrap();
        let made = live.create_snapshot(name).unwrap();
        drop(live);
        let storage = FileStorage::open(&path, Access::ReadOnly, Cache::Writeback).unwrap();
        let metadata = Metadata::open(Arc::new(storage)).unwrap();
        let bytes = qcow2::snapshots::fingerprint(&metadata, &made.id()).unwrap();
        let internal = cbor!({ "id" => made.id().into_owned(), "name" => name }).unwrap();
        let file = machine(
            directory.path(),
            vec![disk(
                "data",
                "qcow2",
                "internal",
                internal,
                vec![Value::Bytes(bytes.to_vec())],
            )],
            vec![("data", vec![record("data.qcow2", "qcow2", 0)])],
        );
        let named = directory.path().join(format!("{name}.vmsnap"));
        fs::rename(file, &named).unwrap();
        named
    };
    let (first, second) = (take(1, "a"), take(2, "b"));
    let live = qcow2::Image::open_chain(&path, &qcow2::ImageOptions::default()).unwrap();
    live.write_at(&[7; 512], 65536).unwrap();
    let found = json(["diff", "--json", text(&first), text(&second)], 1);
    assert_eq!(found["disks"][0]["state"], "differs", "{found}");
    assert_eq!(
        found["disks"][0]["ranges"],
        value!([{ "offset": 65536, "len_bytes": 512 }])
    );
}
