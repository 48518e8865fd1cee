//! Small valid images, one of each kind that has fields of its own.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use qcow2::{CreateOptions, Image, ImageOptions, MemoryStorage, create};

use crate::peer;

/// Size of the disks.
pub const DISK_BYTES: u64 = 4 << 20;

/// A valid image.
#[derive(Clone, Debug)]
pub struct Seed {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// Options of `qemu-img create` of QEMU's images.
const OPTIONS: [&str; 9] = [
    "compat=1.1,cluster_size=4k",
    "compat=1.1,cluster_size=512",
    "compat=1.1,cluster_size=64k",
    "compat=0.10,cluster_size=4k",
    "compat=1.1,cluster_size=4k,refcount_bits=2",
    "compat=1.1,cluster_size=4k,refcount_bits=64",
    "compat=1.1,cluster_size=4k,preallocation=metadata",
    "compat=1.1,cluster_size=4k,compression_type=zstd",
    "compat=1.1,cluster_size=4k,lazy_refcounts=on",
];

/// Returns all images; QEMU's only where QEMU is installed.
pub fn all() -> Vec<Seed> {
    let mut images = ours();
    if peer::is_here("images of qemu-img among those that are changed") {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("image.qcow2");
        images.extend(OPTIONS.map(|options| theirs(&path, options)));
        images.push(with_bitmap(&path));
    }
    images
}

/// Makes one of QEMU's: two generations of data, compressed and zero clusters, two snapshots.
fn theirs(path: &Path, options: &str) -> Seed {
    let image = path.to_str().unwrap();
    let size = DISK_BYTES.to_string();
    let writes = |commands: &[&str]| {
        let output = peer::io(path, commands);
        assert!(output.status.success(), "{options}: {output:?}");
    };
    peer::good(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", "-o", options, image, &size],
    );
    writes(&["write -P 1 0 40k", "write -P 2 1M 9k", "write -P 3 3M 70k"]);
    peer::good("qemu-img", ["snapshot", "-c", "first", image]);
    writes(&["write -P 4 8k 20k", "write -P 5 2M 64k", "discard 1M 4k"]);
    if !options.contains("compat=0.10") {
        writes(&["write -z 16k 8k", "write -z -u 3M 64k"]);
    }
    // Small compressed clusters share host clusters, more than narrow refcounts can count.
    if !options.contains("preallocation") && !options.contains("refcount_bits=2") {
        writes(&["write -c -P 6 2560k 64k", "write -c -P 7 2688k 64k"]);
    }
    peer::good("qemu-img", ["snapshot", "-c", "second", image]);
    writes(&["write -P 8 2M 8k"]);
    let bytes = fs::read(path).unwrap();
    let name = format!("qemu-img {options}");
    Seed { name, bytes }
}

/// Makes one with a persistent bitmap.
fn with_bitmap(path: &Path) -> Seed {
    let image = path.to_str().unwrap();
    let options = "compat=1.1,cluster_size=4k";
    peer::good(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", "-o", options, image, "4M"],
    );
    peer::good("qemu-img", ["bitmap", "--add", image, "changes"]);
    assert!(peer::io(path, &["write -P 9 1M 100k"]).status.success());
    Seed {
        name: "qemu-img with a bitmap".to_owned(),
        bytes: fs::read(path).unwrap(),
    }
}

fn ours() -> Vec<Seed> {
    let options = |version, cluster_bits, refcount_bits| CreateOptions {
        version,
        cluster_bits,
        refcount_bits,
        ..CreateOptions::new(DISK_BYTES)
    };
    let mut images = Vec::new();
    for options in [
        options(3, 12, 16),
        options(2, 12, 16),
        options(3, 9, 4),
        options(3, 16, 32),
    ] {
        let storage = Arc::new(MemoryStorage::new());
        create(storage.as_ref(), &options).unwrap();
        let image = Image::open(storage.clone(), None, &ImageOptions::default()).unwrap();
        image.write_at(&[1; 50_000], 0).unwrap();
        image.write_at(&[2; 10_000], 3 << 20).unwrap();
        image.create_snapshot("first").unwrap();
        image.write_at(&[3; 10_000], 4096).unwrap();
        image.write_zeroes(3 << 20, 8192, true).unwrap();
        image.create_snapshot("second").unwrap();
        image.write_at(&[4; 100], 2 << 20).unwrap();
        image.close().unwrap();
        let name = format!(
            "ours {} {} {}",
            options.version, options.cluster_bits, options.refcount_bits
        );
        let bytes = storage.to_bytes();
        images.push(Seed { name, bytes });
    }
    images
}
