//! Headers of version 2 and 3, whole, cut and malformed.

use std::ffi::OsString;
use std::path::PathBuf;

use proptest::prelude::*;

use crate::error::{Error, Unsupported};
use crate::format;
use crate::header::{Backing, Extension, FrozenBacking, FrozenOwner, Header};
use crate::{CreateOptions, ImageFormat, MemoryStorage, create};

/// Returns the bytes of a new image.
fn image(options: &CreateOptions) -> Vec<u8> {
    let storage = MemoryStorage::new();
    create(&storage, options).unwrap();
    storage.to_bytes()
}

fn new_image() -> Vec<u8> {
    image(&CreateOptions::new(1 << 30))
}

fn parse(bytes: &[u8]) -> crate::Result<Header> {
    Header::read(&MemoryStorage::from_bytes(bytes.to_vec()))
}

/// Returns a new image with one field of the header changed.
fn changed(at: usize, field: &[u8]) -> Vec<u8> {
    let mut bytes = new_image();
    bytes[at..at + field.len()].copy_from_slice(field);
    bytes
}

fn refused(at: usize, field: &[u8]) -> String {
    parse(&changed(at, field)).unwrap_err().to_string()
}

#[test]
fn a_header_is_written_back_as_it_was() {
    for version in [2, 3] {
        let mut options = CreateOptions::overlay(1 << 30, Backing::new("base.raw", ImageFormat::Raw));
        options.version = version;
        let header = parse(&image(&options)).unwrap();
        let bytes = header.to_bytes().unwrap();
        assert_eq!(Header::parse(&bytes, 1 << 20).unwrap(), header);
        let backing = header.backing().unwrap();
        assert_eq!(
            (backing.name, backing.format.as_deref()),
            ("base.raw".into(), Some("raw"))
        );
    }
}

#[test]
fn unknown_extensions_keep_their_bytes_and_their_order() {
    let mut header = parse(&new_image()).unwrap();
    let known = header.extensions.len();
    for (kind, data) in [(7u32, vec![1, 2, 3]), (0x1234_5678, vec![]), (7, vec![9; 17])] {
        header.extensions.push(Extension { kind, data });
    }
    let again = Header::parse(&header.to_bytes().unwrap(), 1 << 20).unwrap();
    assert_eq!(again.extensions.len(), known + 3);
    assert_eq!(again.extensions, header.extensions);
}

#[test]
fn fields_beyond_the_known_header_are_kept() {
    let mut header = parse(&new_image()).unwrap();
    header.unknown_fields = vec![0xab; 24];
    let bytes = header.to_bytes().unwrap();
    assert_eq!(bytes[100..104], 136u32.to_be_bytes());
    assert_eq!(Header::parse(&bytes, 1 << 20).unwrap(), header);
}

#[test]
fn an_old_version_3_header_without_compression_type_is_read() {
    // 104 bytes, and no extensions: what QEMU wrote before there was a compression type.
    let mut bytes = changed(100, &104u32.to_be_bytes());
    bytes[104..112].fill(0);
    let header = parse(&bytes).unwrap();
    assert_eq!((header.compression_type, header.extensions.len()), (0, 0));
}

#[test]
fn new_images_name_the_feature_bits() {
    let names = parse(&new_image()).unwrap().feature_names();
    assert!(
        names
            .iter()
            .any(|name| (name.kind, name.bit) == (0, 0) && name.name == "dirty bit")
    );
}

#[test]
fn the_owners_of_a_frozen_backing_file_are_kept() {
    let frozen = FrozenBacking {
        owners: vec![
            FrozenOwner {
                snapshot: PathBuf::from("/var/a.vmsnap"),
                file_id: [1; 16],
            },
            FrozenOwner {
                snapshot: PathBuf::from("/b"),
                file_id: [2; 16],
            },
        ],
    };
    let mut options = CreateOptions::overlay(1 << 20, Backing::new("base", ImageFormat::Qcow2));
    options.frozen_backing = Some(frozen.clone());
    let mut header = parse(&image(&options)).unwrap();
    assert_eq!(header.frozen_backing().unwrap(), Some(frozen));
    header.set_backing(None);
    assert_eq!(header.frozen_backing().unwrap(), None);
}

#[test]
fn a_cut_frozen_backing_extension_is_corrupt() {
    let mut header = parse(&new_image()).unwrap();
    let kind = format::EXTENSION_FROZEN_BACKING;
    for data in [
        vec![],
        vec![0, 0, 0, 1],
        vec![0, 0, 0, 1, 0xff, 0xff, b'/'],
        vec![0, 0, 4, 0],
    ] {
        header.extensions = vec![Extension { kind, data }];
        assert!(matches!(header.frozen_backing(), Err(Error::Corrupt(_))));
    }
    header.extensions = vec![Extension {
        kind,
        data: vec![0xff; 4],
    }];
    assert!(matches!(header.frozen_backing(), Err(Error::Limit(_))));
}

#[test]
fn unknown_features_are_refused_by_the_name_that_the_image_gives_them() {
    let mut header = parse(&new_image()).unwrap();
    let mut data = vec![0, 40];
    data.extend(b"time travel");
    data.resize(48, 0);
    header.extensions = vec![Extension {
        kind: format::EXTENSION_FEATURE_NAMES,
        data,
    }];
    header.incompatible = 1 << 40;
    let error = Header::parse(&header.to_bytes().unwrap(), 1 << 20).unwrap_err();
    assert!(error.to_string().contains("time travel"), "{error}");
}

#[test]
fn encryption_external_data_and_extended_l2_entries_are_refused() {
    for (at, field, wanted) in [
        (32, &1u32.to_be_bytes()[..], "encryption"),
        (32, &2u32.to_be_bytes()[..], "encryption"),
        (72, &4u64.to_be_bytes()[..], "an external data file"),
        (72, &16u64.to_be_bytes()[..], "extended L2 entries"),
    ] {
        let error = parse(&changed(at, field)).unwrap_err();
        let expected = Unsupported::Feature { feature: wanted };
        assert!(
            matches!(&error, Error::Unsupported(found) if *found == expected),
            "{error}"
        );
    }
}

#[test]
fn dirty_and_corrupt_images_are_read_and_not_written() {
    for bits in [1u64, 2, 3] {
        let storage = MemoryStorage::from_bytes(changed(72, &bits.to_be_bytes()));
        let metadata = crate::Metadata::open(std::sync::Arc::new(storage)).unwrap();
        assert!(metadata.ensure_writable().is_err());
    }
}

#[test]
fn fields_that_no_image_has_are_refused() {
    let cases: [(&str, usize, &[u8], &str); 17] = [
        ("magic", 0, b"QFI\xfa", "not a qcow2 image"),
        ("version", 4, &4u32.to_be_bytes(), "version 4"),
        ("small clusters", 20, &8u32.to_be_bytes(), "cluster size"),
        ("large clusters", 20, &22u32.to_be_bytes(), "cluster size"),
        ("cluster bits", 20, &u32::MAX.to_be_bytes(), "cluster size"),
        ("short header", 100, &96u32.to_be_bytes(), "header length"),
        ("long header", 100, &65_544u32.to_be_bytes(), "header length"),
        ("endless header", 100, &u32::MAX.to_be_bytes(), "header length"),
        ("refcount width", 96, &7u32.to_be_bytes(), "refcounts are wider"),
        (
            "backing file far away",
            8,
            &(1u64 << 48).to_be_bytes(),
            "not in the first cluster",
        ),
        ("no refcount table", 56, &0u32.to_be_bytes(), "no refcount table"),
        (
            "long refcount table",
            56,
            &0x81u32.to_be_bytes(),
            "bytes of the refcount table",
        ),
        (
            "refcount table off a cluster",
            48,
            &0x1_0200u64.to_be_bytes(),
            "does not begin with a cluster",
        ),
        (
            "refcount table beyond the file",
            48,
            &(1u64 << 62).to_be_bytes(),
            "not inside the file",
        ),
        (
            "long l1 table",
            36,
            &u32::MAX.to_be_bytes(),
            "bytes of the l1 table",
        ),
        ("short l1 table", 36, &1u32.to_be_bytes(), "too short"),
        (
            "many snapshots",
            60,
            &65_537u32.to_be_bytes(),
            "internal snapshots",
        ),
    ];
    for (case, at, field, wanted) in cases {
        let found = refused(at, field);
        assert!(found.contains(wanted), "{case}: {found}");
    }
}

#[test]
fn tables_on_the_header_or_past_every_offset_are_refused() {
    for at in [40, 48] {
        assert!(refused(at, &0u64.to_be_bytes()).contains("lies on the header"));
        let last = u64::MAX << 16;
        assert!(refused(at, &last.to_be_bytes()).contains("not inside the file"));
        assert!(refused(at, &0x1_0001u64.to_be_bytes()).contains("does not begin with a cluster"));
    }
    let mut bytes = changed(60, &1u32.to_be_bytes());
    for offset in [0u64, 1, 1 << 40, u64::MAX << 16] {
        bytes[64..72].copy_from_slice(&offset.to_be_bytes());
        assert!(parse(&bytes).is_err(), "{offset:#x}");
    }
}

#[test]
fn a_backing_file_name_must_be_short_and_inside_its_cluster() {
    let mut bytes = changed(8, &1024u64.to_be_bytes());
    bytes[1024..2047].fill(b'x');
    for (len, good) in [(1u32, true), (1023, true), (1024, false), (u32::MAX, false)] {
        bytes[16..20].copy_from_slice(&len.to_be_bytes());
        assert_eq!(parse(&bytes).is_ok(), good, "{len}");
    }
    bytes[8..16].copy_from_slice(&65_530u64.to_be_bytes());
    bytes[16..20].copy_from_slice(&7u32.to_be_bytes());
    assert!(parse(&bytes).is_err());
    // A zero byte would end the name for other programs.
    bytes[8..16].copy_from_slice(&1020u64.to_be_bytes());
    assert!(parse(&bytes).is_err());
}

#[test]
fn an_extension_longer_than_the_cluster_is_refused() {
    for len in [65_536u32, 0x7fff_ffff, u32::MAX] {
        let mut bytes = changed(112, &0x1234u32.to_be_bytes());
        bytes[116..120].copy_from_slice(&len.to_be_bytes());
        assert!(
            parse(&bytes)
                .unwrap_err()
                .to_string()
                .contains("extension is cut")
        );
    }
}

#[test]
fn compression_type_and_feature_bit_must_agree() {
    assert!(refused(104, &[1]).contains("disagree"));
    assert!(refused(72, &8u64.to_be_bytes()).contains("disagree"));
    let mut bytes = changed(72, &8u64.to_be_bytes());
    bytes[104] = 1;
    assert_eq!(parse(&bytes).unwrap().compression_type, 1);
    bytes[104] = 2;
    assert!(
        parse(&bytes)
            .unwrap_err()
            .to_string()
            .contains("compression type 2")
    );
}

#[test]
fn a_file_that_ends_in_its_header_is_refused() {
    let bytes = new_image();
    for len in 0..200 {
        assert!(parse(&bytes[..len]).is_err(), "{len}");
    }
    // The extensions may end with the file, but the tables may not be beyond it.
    assert!(parse(&bytes[..65_536]).is_err());
}

#[test]
fn a_header_that_does_not_fit_into_its_cluster_is_not_written() {
    let mut options = CreateOptions::overlay(1 << 20, Backing::new("x".repeat(600), ImageFormat::Raw));
    options.cluster_bits = 9;
    let storage = MemoryStorage::from_bytes(vec![7; 3]);
    assert!(matches!(create(&storage, &options), Err(Error::Usage(_))));
    assert_eq!(storage.to_bytes(), [7; 3]);
}

proptest! {
    #[test]
    fn any_header_survives_a_round_trip(
        version in 2u32..=3,
        kinds in proptest::collection::vec((1u32..=u32::MAX, proptest::collection::vec(any::<u8>(), 0..40)), 0..5),
        name in proptest::option::of("[a-z/.]{1,60}"),
    ) {
        let mut header = parse(&image(&CreateOptions { version, ..CreateOptions::new(1 << 25) })).unwrap();
        let reserved = [format::EXTENSION_ENCRYPTION];
        header.extensions = kinds
            .into_iter()
            .filter(|(kind, _)| !reserved.contains(kind))
            .map(|(kind, data)| Extension { kind, data })
            .collect();
        header.backing_name = name.map(OsString::from);
        let bytes = header.to_bytes().unwrap();
        prop_assert_eq!(Header::parse(&bytes, 1 << 20).unwrap(), header);
    }

    #[test]
    fn noise_in_a_header_never_panics(noise in proptest::collection::vec((0usize..600, any::<u8>()), 1..12)) {
        let mut bytes = new_image();
        for (at, value) in noise {
            bytes[at] = value;
        }
        let _ = crate::Metadata::open(std::sync::Arc::new(MemoryStorage::from_bytes(bytes)));
    }
}
