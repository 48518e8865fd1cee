//! QEMU and our engine on the same images, for every option that an image can have.
//!
//! Each case lets QEMU make and fill an image, our engine change it, QEMU judge and change it again, and our engine
//! read it back, all beside a shadow. `VMSNAP_DISK_OPERATIONS` makes the random runs longer.

mod qcow2_common;

use std::path::Path;

use qcow2_common::ours::{self, Disk};
use qcow2_common::pair::{Pair, SIZE};
use qcow2_common::random::{Random, Shadow};
use qcow2_common::{KIB, MIB, Scratch, qemu, text};

#[test]
fn every_version_and_cluster_size() {
    let Some(_alone) = qemu::alone("every_version_and_cluster_size") else {
        return;
    };
    for (seed, cluster) in (1..).zip(["512", "1k", "4k", "16k", "64k", "256k", "1M", "2M"]) {
        let versions = if ["512", "64k", "2M"].contains(&cluster) {
            &["v2", "v3"][..]
        } else {
            &["v3"]
        };
        for version in versions {
            let options = format!("version={version},cluster_size={cluster}");
            Pair::new(&options, seed).run(&options);
        }
    }
}

#[test]
fn every_width_of_refcounts() {
    let Some(_alone) = qemu::alone("every_width_of_refcounts") else {
        return;
    };
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        for cluster in ["512", "16k"] {
            let options = format!("version=v3,refcount_bits={bits},cluster_size={cluster}");
            let mut pair = Pair::new(&options, bits);
            if bits > 1 {
                pair.fill_by_qemu();
                pair.snapshot_by_qemu("first");
            }
            pair.run(&options);
        }
    }
}

#[test]
fn every_preallocation_and_lazy_refcounts() {
    let Some(_alone) = qemu::alone("every_preallocation_and_lazy_refcounts") else {
        return;
    };
    for (seed, more) in (1..).zip([
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "lazy_refcounts=on",
    ]) {
        for cluster in ["4k", "64k"] {
            let options = format!("version=v3,cluster_size={cluster},{more}");
            Pair::new(&options, seed).run(&options);
        }
    }
}

#[test]
fn compressed_clusters_of_both_kinds() {
    let Some(_alone) = qemu::alone("compressed_clusters_of_both_kinds") else {
        return;
    };
    for (seed, kind) in (1..).zip(["zlib", "zstd"]) {
        for cluster in ["4k", "64k", "2M"] {
            let scratch = Scratch::new();
            let shadow = Shadow::create(&scratch.path("shadow.raw"), SIZE);
            // Text compresses, the pattern does not and stays as it is.
            shadow.write(&b"to be compressed ".repeat(200_000), 8 * MIB);
            shadow.fill(MIB, 2 * MIB, 5);
            let image = scratch.path("disk.qcow2");
            let options = format!("compression_type={kind},cluster_size={cluster}");
            let words = format!("convert -c -f raw -O qcow2 -o {options}");
            qemu::img_good(&words, &[&shadow.path, &image]);
            // Written by hand, the last compressed cluster ends where the file ends.
            qemu::io(&image, ["write -c -P 0x33 12M 2M"]);
            shadow.write(&vec![0x33; 2 << 20], 12 * MIB);
            let cluster_bytes = Disk::cluster_bytes(&image);
            let random = Random::new(seed);
            let mut pair = Pair {
                scratch,
                image,
                shadow,
                random,
                cluster_bytes,
                snapshots: Vec::new(),
            };
            pair.judge(&options);
            pair.snapshot_by_qemu("compressed");
            pair.run(&options);
        }
    }
}

/// An overlay of the whole size over a base that QEMU filled.
fn overlay(base_format: &str, base_bytes: u64, cluster: &str, seed: u64) -> Pair {
    let scratch = Scratch::new();
    let (base, image) = (scratch.path("base"), scratch.path("disk.qcow2"));
    let len = base_bytes.to_string();
    qemu::img(["create", "-q", "-f", base_format, text(&base), &len]).good();
    qemu::io_as(
        &base,
        base_format,
        ["write -P 0x5a 1M 3M", "write -P 0xa5 9M 512"],
    );
    let options = format!("cluster_size={cluster}");
    let size = SIZE.to_string();
    // Relative: seen from the directory of the overlay.
    let arguments = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &options,
        "-b",
        "base",
        "-F",
        base_format,
    ];
    qemu::img(arguments.into_iter().chain([text(&image), &size])).good();
    let pair = Pair::of(scratch, image, seed);
    pair.shadow.write(&[0x5a; 3 << 20], MIB);
    pair.shadow.write(&[0xa5; 512], 9 * MIB);
    pair
}

#[test]
fn backing_files_of_both_formats_and_shorter_than_the_overlay() {
    let Some(_alone) = qemu::alone("backing_files_of_both_formats_and_shorter_than_the_overlay") else {
        return;
    };
    for (seed, format) in (1..).zip(["raw", "qcow2"]) {
        for cluster in ["512", "64k", "2M"] {
            for base_bytes in [SIZE, 10 * MIB + 512] {
                let what = format!("{format} base of {base_bytes} bytes, clusters of {cluster}");
                let pair = overlay(format, base_bytes, cluster, seed);
                let base = pair.scratch.path("base");
                let before = std::fs::read(&base).expect("the base");
                pair.judge(&what);
                let pair = run_kept(pair, &what);
                let after = std::fs::read(pair.scratch.path("base")).expect("the base");
                assert!(before == after, "{what}: the base was written to");
            }
        }
    }
}

/// [`Pair::run`], and the pair afterwards.
fn run_kept(mut pair: Pair, what: &str) -> Pair {
    pair.fill_by_qemu();
    pair.change_by_us();
    pair.judge(what);
    pair
}

#[test]
fn a_bitmap_is_invalid_after_our_writes_and_the_image_sound() {
    let Some(_alone) = qemu::alone("a_bitmap_is_invalid_after_our_writes_and_the_image_sound") else {
        return;
    };
    let mut pair = Pair::new("version=v3,cluster_size=64k", 1);
    qemu::img(["bitmap", "--add", text(&pair.image), "b0"]).good();
    pair.fill_by_qemu();
    let info = |image: &Path| qemu::img(["info", "-f", "qcow2", "--output=json", text(image)]).good();
    assert!(info(&pair.image).contains("\"b0\""));
    // Reading alone leaves the bitmap valid.
    drop(Disk::open_read_only(&pair.image).read(0, MIB));
    assert!(info(&pair.image).contains("\"b0\""));
    let disk = Disk::open(&pair.image);
    disk.fill(MIB, 64 * KIB, 1);
    pair.shadow.fill(MIB, 64 * KIB, 1);
    disk.close();
    assert!(
        !info(&pair.image).contains("\"b0\""),
        "a stale bitmap still claims to be consistent"
    );
    // What the invalid bitmap occupies may be leaked, never corrupt: QEMU drops it with the next repair.
    assert_ne!(qemu::check(&pair.image).code, 2);
    qemu::img(["check", "-r", "leaks", "-q", "-f", "qcow2", text(&pair.image)]).good();
    pair.judge("after the repair");
}

#[test]
fn images_that_we_create_serve_qemu_in_every_shape() {
    let Some(_alone) = qemu::alone("images_that_we_create_serve_qemu_in_every_shape") else {
        return;
    };
    for version in [2, 3] {
        for cluster_bits in [9, 12, 16, 21] {
            for refcount_bits in [1, 2, 8, 16, 64] {
                if version == 2 && refcount_bits != 16 {
                    continue;
                }
                let what =
                    format!("version {version}, cluster bits {cluster_bits}, refcount bits {refcount_bits}");
                let scratch = Scratch::new();
                let image = scratch.path("disk.qcow2");
                ours::create(&image, SIZE, version, cluster_bits, refcount_bits);
                qemu::assert_clean(&image);
                let mut pair = Pair::of(scratch, image, u64::from(cluster_bits));
                pair.change_by_us();
                pair.judge(&what);
                pair.fill_by_qemu();
                pair.judge(&what);
            }
        }
    }
}
