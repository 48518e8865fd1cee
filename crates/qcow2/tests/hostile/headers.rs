//! Headers and tables that contradict themselves, one by one; QEMU is asked whether it refuses them, too.
//!
//! The cases are those of QEMU's own test of input validation.

use std::ffi::OsStr;
use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use qcow2::{CreateOptions, Error, Image, ImageOptions, MemoryStorage, Metadata, create, snapshots};

use crate::meter::bounded;
use crate::peer;
use crate::probe;

const BACKING_OFFSET: usize = 8;
const BACKING_LEN: usize = 16;
const L1_ENTRIES: usize = 36;
const L1_OFFSET: usize = 40;
const REFCOUNT_TABLE_OFFSET: usize = 48;
const REFCOUNT_TABLE_CLUSTERS: usize = 56;
const SNAPSHOT_COUNT: usize = 60;
const SNAPSHOTS_OFFSET: usize = 64;
const HEADER_LEN: usize = 100;
const EXTENSION: usize = 112;

/// A change of bytes at an offset.
type Poke<'a> = (usize, &'a [u8]);

/// Returns an image of 64 MiB with one cluster of data, and with a snapshot if asked for.
fn image(with_snapshot: bool) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::new());
    create(storage.as_ref(), &CreateOptions::new(64 << 20)).unwrap();
    let image = Image::open(storage.clone(), None, &ImageOptions::default()).unwrap();
    image.write_at(&[1; 512], 0).unwrap();
    if with_snapshot {
        image.create_snapshot("test").unwrap();
    }
    image.close().unwrap();
    storage.to_bytes()
}

fn poked(mut bytes: Vec<u8>, pokes: &[Poke<'_>]) -> Vec<u8> {
    for (offset, field) in pokes {
        bytes[*offset..offset + field.len()].copy_from_slice(field);
    }
    bytes
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_be_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// Asserts that an image is not opened, for the reason given, by us and for any by QEMU.
fn assert_refused(pokes: &[Poke<'_>], reason: &str) {
    let bytes = poked(image(false), pokes);
    let storage = Arc::new(MemoryStorage::from_bytes(bytes.clone()));
    let error = bounded("open", || Metadata::open(storage)).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, Error::Corrupt(_) | Error::Limit(_)) && text.contains(reason),
        "{text}"
    );
    if peer::is_here("QEMU's opinion of malformed headers") {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("image.qcow2");
        fs::write(&path, bytes).unwrap();
        let arguments = ["-f", "qcow2", "-r", "-c", "read 0 512"].map(OsStr::new);
        let output = peer::run("qemu-io", arguments.into_iter().chain([path.as_os_str()]));
        assert!(!output.status.success(), "{output:?}");
    }
}

#[test]
fn a_huge_header_length_is_refused() {
    for len in [u32::MAX, 0x7fff_ffff, 65_537, 103] {
        assert_refused(&[(HEADER_LEN, &len.to_be_bytes())], "header length");
    }
}

#[test]
fn a_huge_unknown_extension_is_refused() {
    let extension: Poke<'_> = (EXTENSION, &[0x12, 0x34, 0x56, 0x78, 0x7f, 0xff, 0xff, 0xff]);
    let backing = |offset: u64| offset.to_be_bytes();
    assert_refused(&[extension], "extension is cut");
    assert_refused(
        &[extension, (BACKING_OFFSET, &backing(u64::MAX))],
        "backing file's name",
    );
    assert_refused(&[extension, (BACKING_OFFSET, &backing(0x7c))], "extension is cut");
}

#[test]
fn a_huge_refcount_table_is_refused() {
    for clusters in [u32::MAX, 0x0002_0001, 0x81] {
        let poke: Poke<'_> = (REFCOUNT_TABLE_CLUSTERS, &clusters.to_be_bytes());
        assert_refused(&[poke], "bytes of the refcount table");
    }
}

#[test]
fn a_refcount_table_off_a_cluster_is_refused() {
    let offset = 0x1234_5678_90ab_cdefu64.to_be_bytes();
    assert_refused(
        &[(REFCOUNT_TABLE_OFFSET, &offset)],
        "does not begin with a cluster",
    );
}

#[test]
fn a_refcount_table_past_every_offset_is_refused() {
    let offset = 0xffff_ffff_ffff_0000u64.to_be_bytes();
    let clusters = 0x7fu32.to_be_bytes();
    let pokes: [Poke<'_>; 2] = [
        (REFCOUNT_TABLE_OFFSET, &offset),
        (REFCOUNT_TABLE_CLUSTERS, &clusters),
    ];
    assert_refused(&pokes, "refcount table is not inside the file");
}

#[test]
fn an_image_without_refcount_table_is_refused() {
    assert_refused(&[(REFCOUNT_TABLE_CLUSTERS, &[0; 4])], "no refcount table");
}

#[test]
fn a_huge_number_of_snapshots_is_refused() {
    for count in [u32::MAX, 0x7fff_ffff, 65_537] {
        assert_refused(&[(SNAPSHOT_COUNT, &count.to_be_bytes())], "internal snapshots");
    }
}

#[test]
fn a_snapshot_table_past_every_offset_or_off_a_cluster_is_refused() {
    let count = 0xffffu32.to_be_bytes();
    for (offset, reason) in [
        (0xffff_ffff_ffff_0000u64, "not inside the file"),
        (0x1234_5678_90ab_cdefu64, "does not begin with a cluster"),
    ] {
        let pokes: [Poke<'_>; 2] = [
            (SNAPSHOTS_OFFSET, &offset.to_be_bytes()),
            (SNAPSHOT_COUNT, &count),
        ];
        assert_refused(&pokes, reason);
    }
}

#[test]
fn no_snapshot_is_made_where_there_are_too_many() {
    // The table is a hole: 65536 entries without id, name and extra data.
    let mut bytes = image(false);
    bytes.resize(32 << 20, 0);
    let pokes: [Poke<'_>; 2] = [
        (SNAPSHOTS_OFFSET, &(16u64 << 20).to_be_bytes()),
        (SNAPSHOT_COUNT, &65_536u32.to_be_bytes()),
    ];
    let storage = Arc::new(MemoryStorage::from_bytes(poked(bytes, &pokes)));
    if let Ok(mut metadata) = bounded("open", || Metadata::open(storage)) {
        assert_eq!(metadata.snapshots.len(), 65_536);
        assert!(snapshots::create(&mut metadata, "one more", SystemTime::UNIX_EPOCH).is_err());
    }
}

#[test]
fn a_huge_l1_table_is_refused() {
    for entries in [u32::MAX, 0x7fff_ffff, 0x0040_0001] {
        assert_refused(&[(L1_ENTRIES, &entries.to_be_bytes())], "bytes of the l1 table");
    }
}

#[test]
fn an_l1_table_past_every_offset_or_off_a_cluster_is_refused() {
    for (offset, entries, reason) in [
        (0x7fff_ffff_ffff_0000u64, 0xffffu32, "not inside the file"),
        (0x1234_5678_90ab_cdefu64, 1, "does not begin with a cluster"),
    ] {
        let pokes: [Poke<'_>; 2] = [
            (L1_OFFSET, &offset.to_be_bytes()),
            (L1_ENTRIES, &entries.to_be_bytes()),
        ];
        assert_refused(&pokes, reason);
    }
}

#[test]
fn an_l1_table_too_short_for_the_disk_is_refused() {
    assert_refused(&[(L1_ENTRIES, &[0; 4])], "too short");
    let storage = Arc::new(MemoryStorage::from_bytes(poked(
        image(true),
        &[(L1_ENTRIES, &[0; 4])],
    )));
    assert!(matches!(Metadata::open(storage), Err(Error::Corrupt(_))));
}

#[test]
fn nothing_is_written_where_tables_share_a_cluster() {
    let bytes = image(true);
    let [l1, refcounts] = [L1_OFFSET, REFCOUNT_TABLE_OFFSET].map(|field| u64_at(&bytes, field));
    let entry = usize::try_from(u64_at(&bytes, SNAPSHOTS_OFFSET)).unwrap();
    for (field, place) in [
        (L1_OFFSET, refcounts),
        (REFCOUNT_TABLE_OFFSET, l1),
        (SNAPSHOTS_OFFSET, l1),
        (entry, l1),
        (entry, refcounts),
        (entry, 0),
    ] {
        let bytes = poked(bytes.clone(), &[(field, &place.to_be_bytes())]);
        let storage = Arc::new(MemoryStorage::from_bytes(bytes.clone()));
        let opened = Image::open(storage.clone(), None, &ImageOptions::default());
        assert!(opened.is_err(), "{field}");
        if let Ok(mut metadata) = Metadata::open(storage.clone()) {
            let made = snapshots::create(&mut metadata, "new", SystemTime::UNIX_EPOCH);
            assert!(made.is_err(), "{field}");
        }
        assert!(storage.to_bytes() == bytes, "{field}");
        assert!(
            !probe::check(&bytes).is_ok_and(|report| report.is_clean()),
            "{field}"
        );
    }
}

#[test]
fn a_huge_backing_file_name_is_refused() {
    let pokes: [Poke<'_>; 2] = [
        (BACKING_OFFSET, &0x1000u64.to_be_bytes()),
        (BACKING_LEN, &u32::MAX.to_be_bytes()),
    ];
    assert_refused(&pokes, "backing file's name");
}

#[test]
fn data_past_the_end_of_the_file_is_an_error_and_no_snapshot_is_made_of_it() {
    let bytes = image(false);
    let l1 = usize::try_from(u64_at(&bytes, L1_OFFSET)).unwrap();
    let l2 = usize::try_from(u64_at(&bytes, l1) & !(1 << 63)).unwrap();
    for entry in [0xbfff_ffff_ffff_0000u64, 0x8000_00ff_ffff_0000] {
        let bytes = poked(bytes.clone(), &[(l2, &entry.to_be_bytes())]);
        let report = probe::check(&bytes).unwrap();
        assert!(report.corruptions > 0, "{entry:#x}");
        let mut metadata = Metadata::open(Arc::new(MemoryStorage::from_bytes(bytes))).unwrap();
        let made = bounded("snapshot", || {
            snapshots::create(&mut metadata, "test", SystemTime::UNIX_EPOCH)
        });
        assert!(made.is_err(), "{entry:#x}");
    }
}

/// Changes the first entry of the snapshot table, and asserts that nothing is done with the snapshot.
fn assert_snapshot_unusable(at: usize, field: &[u8]) {
    let bytes = image(true);
    let entry = usize::try_from(u64_at(&bytes, SNAPSHOTS_OFFSET)).unwrap();
    let bytes = poked(bytes, &[(entry + at, field)]);
    let storage = || Arc::new(MemoryStorage::from_bytes(bytes.clone()));
    let Ok(mut metadata) = Metadata::open(storage()) else {
        return;
    };
    // The disk itself is not concerned.
    let disk = Image::open(storage(), None, &ImageOptions::read_only()).unwrap();
    let mut sector = [0; 512];
    disk.read_at(&mut sector, 0).unwrap();
    assert_eq!(sector, [1; 512]);
    assert!(snapshots::fingerprint(&metadata, "test").is_err());
    let view = Image::open_snapshot(storage(), None, "1", &ImageOptions::read_only());
    assert!(view.is_err());
    assert!(bounded("apply", || snapshots::apply(&mut metadata, "test")).is_err());
    assert!(bounded("delete", || snapshots::delete(&mut metadata, "test")).is_err());
    assert!(!probe::check(&bytes).is_ok_and(|report| report.is_clean()));
}

#[test]
fn a_snapshot_with_an_l1_table_off_a_cluster_is_not_used() {
    assert_snapshot_unusable(0, &0x0040_0200u64.to_be_bytes());
}

#[test]
fn a_snapshot_with_a_huge_l1_table_is_not_used() {
    assert_snapshot_unusable(8, &0x1000_0000u32.to_be_bytes());
}

#[test]
fn a_snapshot_with_its_l1_table_past_every_offset_is_not_used() {
    assert_snapshot_unusable(0, &0xffff_ffff_ffff_0000u64.to_be_bytes());
}

#[test]
fn a_snapshot_with_too_much_extra_data_is_not_used() {
    assert_snapshot_unusable(36, &u32::MAX.to_be_bytes());
    assert_snapshot_unusable(36, &1025u32.to_be_bytes());
}
