//! Headers and new images, against QEMU's.

#[path = "peer/mod.rs"]
mod peer;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use qcow2::{
    Access, Backing, Cache, CreateOptions, Error, Extension, FileStorage, FrozenBacking, FrozenOwner, Header,
    ImageFormat, Metadata, Storage, create, info,
};
use serde_json::Value;
use tempfile::TempDir;

/// Type of an extension that nobody knows.
const UNKNOWN_EXTENSION: u32 = 0x1234_5678;

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn open(path: &Path, access: Access) -> qcow2::Result<FileStorage> {
    FileStorage::open(path, access, Cache::Writeback)
}

/// Makes an image at `path`; its file is closed afterwards.
fn make(path: &Path, options: &CreateOptions) {
    fs::File::create(path).unwrap();
    create(&open(path, Access::ReadWrite).unwrap(), options).unwrap();
}

fn metadata(path: &Path) -> qcow2::Result<Metadata> {
    Metadata::open(Arc::new(open(path, Access::ReadOnly)?))
}

fn qemu_info(path: &Path) -> Value {
    let text = peer::good("qemu-img", ["info", "--output=json", path.to_str().unwrap()]);
    serde_json::from_str(&text).unwrap()
}

/// Makes an image with `qemu-img create -o OPTIONS`.
fn qemu_make(path: &Path, options: &str, size: &str) {
    let path = path.to_str().unwrap();
    peer::good(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", "-o", options, path, size],
    );
}

#[test]
fn qemu_finds_new_images_clean_and_as_they_were_meant() {
    if !peer::is_here("qemu_finds_new_images_clean_and_as_they_were_meant") {
        return;
    }
    let directory = directory();
    let path = directory.path().join("new.qcow2");
    let mut cases: Vec<(u32, u32, u32)> = (0..=6).map(|order| (3, 16, 1 << order)).collect();
    cases.extend([9, 12, 18, 21].map(|cluster_bits| (3, cluster_bits, 16)));
    cases.extend([(3, 9, 1), (3, 9, 64), (3, 21, 64)]);
    cases.extend([9, 12, 16, 21].map(|cluster_bits| (2, cluster_bits, 16)));
    for (version, cluster_bits, refcount_bits) in cases {
        let options = CreateOptions {
            version,
            cluster_bits,
            refcount_bits,
            ..CreateOptions::new(3 << 30)
        };
        make(&path, &options);
        peer::assert_clean(&path);
        let found = qemu_info(&path);
        assert_eq!(found["virtual-size"], 3u64 << 30, "{options:?}");
        assert_eq!(found["cluster-size"], 1 << cluster_bits, "{options:?}");
        let specific = &found["format-specific"]["data"];
        assert_eq!(specific["refcount-bits"], refcount_bits, "{options:?}");
        assert_eq!(specific["compat"], if version == 2 { "0.10" } else { "1.1" });
        assert_eq!(specific["corrupt"].as_bool(), (version == 3).then_some(false));
        // And QEMU can use it.
        let written = peer::io(
            &path,
            &["write -P 7 1g 100k", "read -P 7 1g 100k", "read -P 0 0 64k"],
        );
        assert!(written.status.success(), "{written:?}");
        peer::assert_clean(&path);
        assert!(
            metadata(&path)
                .unwrap()
                .l1
                .iter()
                .any(|entry| !entry.is_unallocated())
        );
    }
}

#[test]
fn a_huge_disk_has_a_small_image() {
    if !peer::is_here("a_huge_disk_has_a_small_image") {
        return;
    }
    let directory = directory();
    let path = directory.path().join("huge.qcow2");
    make(&path, &CreateOptions::new(1 << 50));
    peer::assert_clean(&path);
    assert_eq!(qemu_info(&path)["virtual-size"], 1u64 << 50);
    assert!(fs::metadata(&path).unwrap().len() < 64 << 20);
}

#[test]
fn an_overlay_shows_its_backing_file_to_qemu() {
    if !peer::is_here("an_overlay_shows_its_backing_file_to_qemu") {
        return;
    }
    let directory = directory();
    let (base, path) = (
        directory.path().join("base.raw"),
        directory.path().join("top.qcow2"),
    );
    fs::write(&base, vec![0x5a; 3 << 20]).unwrap();
    for (version, cluster_bits) in [(2, 16), (3, 16), (3, 9), (3, 21)] {
        let mut options = CreateOptions::overlay(3 << 20, Backing::new("base.raw", ImageFormat::Raw));
        (options.version, options.cluster_bits) = (version, cluster_bits);
        if cluster_bits > 9 {
            options.frozen_backing = Some(FrozenBacking {
                owners: vec![FrozenOwner {
                    snapshot: "/tmp/a.vmsnap".into(),
                    file_id: [3; 16],
                }],
            });
        }
        make(&path, &options);
        peer::assert_clean(&path);
        let found = qemu_info(&path);
        assert_eq!(found["backing-filename"], "base.raw");
        assert_eq!(found["backing-filename-format"], "raw");
        let (top, below) = (path.to_str().unwrap(), base.to_str().unwrap());
        peer::good("qemu-img", ["compare", "-f", "qcow2", "-F", "raw", top, below]);
    }
}

#[test]
fn headers_of_qemu_are_written_back_byte_for_byte() {
    if !peer::is_here("headers_of_qemu_are_written_back_byte_for_byte") {
        return;
    }
    let directory = directory();
    let path = directory.path().join("theirs.qcow2");
    peer::good(
        "qemu-img",
        [
            "create",
            "-q",
            "-f",
            "raw",
            directory.path().join("b.raw").to_str().unwrap(),
            "1M",
        ],
    );
    for options in [
        "compat=0.10",
        "compat=1.1",
        "compat=1.1,cluster_size=512",
        "compat=1.1,cluster_size=2M,refcount_bits=1",
        "compat=1.1,refcount_bits=64,lazy_refcounts=on",
        "compat=1.1,compression_type=zstd",
        "compat=1.1,preallocation=metadata",
        "compat=0.10,backing_file=b.raw,backing_fmt=raw",
        "compat=1.1,backing_file=b.raw,backing_fmt=raw",
    ] {
        qemu_make(&path, options, "64M");
        let metadata = metadata(&path).unwrap();
        let bytes = metadata.header.to_bytes().unwrap();
        let theirs = fs::read(&path).unwrap();
        assert!(theirs.starts_with(&bytes), "{options}");
        assert_eq!(info(&metadata).unwrap().virtual_size_bytes, 64 << 20);
    }
}

#[test]
fn what_is_unknown_survives_us_and_qemu() {
    if !peer::is_here("what_is_unknown_survives_us_and_qemu") {
        return;
    }
    let directory = directory();
    let path = directory.path().join("image.qcow2");
    let base = directory.path().join("b.raw");
    fs::write(&base, [1; 512]).unwrap();
    for compat in ["0.10", "1.1"] {
        qemu_make(&path, &format!("compat={compat}"), "1M");
        let storage = open(&path, Access::ReadWrite).unwrap();
        let mut header = Header::read(&storage).unwrap();
        let extension = Extension {
            kind: UNKNOWN_EXTENSION,
            data: b"not ours".to_vec(),
        };
        header.extensions.push(extension.clone());
        header.write(&storage).unwrap();
        drop(storage);
        // QEMU rewrites the header with a backing file, and we without one.
        let image = path.to_str().unwrap();
        peer::good(
            "qemu-img",
            ["rebase", "-q", "-u", "-b", "b.raw", "-F", "raw", image],
        );
        let storage = open(&path, Access::ReadWrite).unwrap();
        let mut header = Header::read(&storage).unwrap();
        assert_eq!(header.backing().unwrap().name, "b.raw");
        assert!(header.extensions.contains(&extension));
        header.set_backing(None);
        header.write(&storage).unwrap();
        drop(storage);
        let again = metadata(&path).unwrap().header;
        assert!(again.extensions.contains(&extension) && again.backing().is_none());
        assert!(qemu_info(&path).get("backing-filename").is_none());
        peer::assert_clean(&path);
    }
}

#[test]
fn what_cannot_be_read_rightly_is_refused_by_name() {
    if !peer::is_here("what_cannot_be_read_rightly_is_refused_by_name") {
        return;
    }
    let directory = directory();
    let path = directory.path().join("image.qcow2");
    let image = path.to_str().unwrap();
    let data_file = format!("data_file={}", directory.path().join("data").display());
    for (options, wanted) in [
        ("extended_l2=on", "extended L2 entries"),
        (data_file.as_str(), "an external data file"),
    ] {
        qemu_make(&path, options, "1M");
        let error = metadata(&path).unwrap_err();
        assert!(matches!(&error, Error::Unsupported(_)), "{error}");
        assert!(error.to_string().contains(wanted), "{error}");
    }
    let secret = "secret,id=s,data=secret";
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let arguments = [
        "create", "-q", "--object", secret, "-f", "qcow2", "-o", luks, image, "1M",
    ];
    peer::good("qemu-img", arguments);
    let error = metadata(&path).unwrap_err();
    assert!(error.to_string().contains("encryption"), "{error}");
}

#[test]
fn an_image_tells_people_and_machines_what_it_is() {
    if !peer::is_here("an_image_tells_people_and_machines_what_it_is") {
        return;
    }
    let directory = directory();
    let path = directory.path().join("image.qcow2");
    let image = path.to_str().unwrap();
    qemu_make(&path, "lazy_refcounts=on,compression_type=zstd", "1M");
    peer::good("qemu-img", ["snapshot", "-c", "before", image]);
    peer::good("qemu-img", ["bitmap", "--add", image, "changes"]);
    let found = serde_json::to_value(info(&metadata(&path).unwrap()).unwrap()).unwrap();
    for (field, wanted) in [
        ("version", Value::from(3)),
        ("compression", "zstd".into()),
        ("lazy_refcounts", true.into()),
        ("dirty", false.into()),
        ("backing", Value::Null),
    ] {
        assert_eq!(found[field], wanted, "{field}");
    }
    assert_eq!(found["snapshots"][0]["name"], "before");
    assert_eq!(found["snapshots"][0]["virtual_size_bytes"], 1 << 20);
    assert_eq!(found["bitmaps"]["count"], 1);
    assert_eq!(found["bitmaps"]["consistent"], true);
}

#[test]
fn an_image_of_ours_takes_room_only_for_what_it_says() {
    let directory = directory();
    let path = directory.path().join("image.qcow2");
    make(&path, &CreateOptions::new(1 << 40));
    let storage = open(&path, Access::ReadOnly).unwrap();
    // Header, refcount table, one refcount block, and an L1 table of 16 KiB.
    assert_eq!(storage.len().unwrap(), 4 << 16);
}
