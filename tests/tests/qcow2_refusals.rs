//! Images that are damaged, in use or of a kind that we do not carry: refused, repaired or read like by QEMU.

mod qcow2_common;

use std::fs::{self, OpenOptions};
use std::process::{Command, Stdio};

use qcow2_common::ours::Disk;
use qcow2_common::{CLUSTER, MIB, Scratch, be64, image_of, judge, l2_entry_offset, patch, qemu, text};

/// Idea: iotest 039.
#[test]
fn an_image_left_dirty_by_a_killed_qemu_is_repaired_before_we_write() {
    let Some(_alone) = qemu::alone("an_image_left_dirty_by_a_killed_qemu_is_repaired_before_we_write") else {
        return;
    };
    let scratch = Scratch::new();
    let (image, shadow) = image_of(&scratch, "version=v3,lazy_refcounts=on", 8 * MIB);
    // It dies by its own hand before it writes the refcounts.
    let killed = Command::new("qemu-io")
        .args([
            "-f",
            "qcow2",
            "-c",
            "write -P 0x5a 1M 1M",
            "-c",
            "flush",
            "-c",
            "abort",
        ])
        .arg(&image)
        .output()
        .expect("qemu-io");
    assert!(!killed.status.success(), "it was to die");
    assert_eq!(fs::read(&image).expect("the image")[79] & 1, 1, "not dirty");
    assert_eq!(qemu::img(["check", "-U", "-f", "qcow2", text(&image)]).code, 2);
    let disk = Disk::open(&image);
    disk.fill(4 * MIB, MIB, 3);
    disk.close();
    shadow.write(&[0x5a; 1 << 20], MIB);
    shadow.fill(4 * MIB, MIB, 3);
    judge(&image, &shadow);
    assert_eq!(fs::read(&image).expect("the image")[79] & 1, 0, "still dirty");
}

/// Idea: iotest 214.
#[test]
fn a_compressed_cluster_whose_length_is_wrong_is_an_error_or_the_right_bytes() {
    let Some(_alone) =
        qemu::alone("a_compressed_cluster_whose_length_is_wrong_is_an_error_or_the_right_bytes")
    else {
        return;
    };
    let scratch = Scratch::new();
    let (image, _) = image_of(&scratch, "version=v3", 4 * MIB);
    qemu::io(&image, ["write -c -P 0xad 0 64k", "write -c -P 0xae 64k 64k"]);
    let entry_at = l2_entry_offset(&image, 0);
    let entry = be64(&fs::read(&image).expect("the image"), entry_at);
    // Bits 54 to 61 count the sectors after the first one: 64 KiB clusters.
    for sectors in [0, 1, 5, 0x7f, 0xff] {
        let changed = entry & !(0xff << 54) | sectors << 54;
        patch(&image, entry_at, &changed.to_be_bytes());
        if let Ok(bytes) = Disk::open_read_only(&image).try_read(0, CLUSTER) {
            assert!(
                bytes.iter().all(|byte| *byte == 0xad),
                "{sectors} more sectors: other bytes"
            );
        }
        let neighbour = Disk::open_read_only(&image).read(CLUSTER, CLUSTER);
        assert!(neighbour.iter().all(|byte| *byte == 0xae));
    }
}

/// Idea: iotest 102.
#[test]
fn a_file_that_ends_within_its_last_cluster_is_read_like_by_qemu() {
    let Some(_alone) = qemu::alone("a_file_that_ends_within_its_last_cluster_is_read_like_by_qemu") else {
        return;
    };
    let scratch = Scratch::new();
    let (image, shadow) = image_of(&scratch, "version=v3", 4 * MIB);
    qemu::io(&image, ["write -P 0x42 0 64k"]);
    let len = fs::metadata(&image).expect("the image").len();
    let file = OpenOptions::new().write(true).open(&image).expect("the image");
    file.set_len(len - CLUSTER + 4096).expect("it becomes shorter");
    drop(file);
    shadow.write(&[0x42; 4096], 0);
    qemu::assert_same(&image, &shadow.path);
    assert!(Disk::open_read_only(&image).read(0, 4 * MIB) == shadow.read(0, 4 * MIB));
    let disk = Disk::open(&image);
    disk.fill(CLUSTER, CLUSTER, 8);
    disk.close();
    shadow.fill(CLUSTER, CLUSTER, 8);
    qemu::assert_same(&image, &shadow.path);
    qemu::assert_clean(&image);
}

/// Idea: iotests 153 and 182.
#[test]
fn an_image_in_use_is_refused_by_both_sides_and_shared_by_readers() {
    let Some(_alone) = qemu::alone("an_image_in_use_is_refused_by_both_sides_and_shared_by_readers") else {
        return;
    };
    let scratch = Scratch::new();
    let (image, _) = image_of(&scratch, "version=v3", MIB);
    let open_qemu = |options: &[&str]| {
        let mut child = Command::new("qemu-io")
            .args(options)
            .args(["-f", "qcow2", text(&image)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io");
        // Its prompt says that the image is open.
        let mut prompt = [0; 8];
        std::io::Read::read_exact(child.stdout.as_mut().expect("its output"), &mut prompt).expect("a prompt");
        child
    };
    let close = |mut child: std::process::Child| {
        drop(child.stdin.take());
        child.wait().expect("qemu-io ends");
    };
    let writer = open_qemu(&[]);
    assert!(Disk::try_open(&image).is_err(), "QEMU writes it");
    close(writer);
    let reader = open_qemu(&["-r"]);
    assert!(Disk::try_open(&image).is_err(), "QEMU reads it");
    drop(Disk::open_read_only(&image));
    close(reader);
    let disk = Disk::open(&image);
    assert_ne!(
        qemu::img(["snapshot", "-c", "x", text(&image)]).code,
        0,
        "we write it"
    );
    assert_ne!(
        qemu::img(["info", "-f", "qcow2", text(&image)]).code,
        0,
        "we write it"
    );
    qemu::img(["info", "-U", "-f", "qcow2", text(&image)]).good();
    disk.close();
    let reader = Disk::open_read_only(&image);
    qemu::img(["info", "-f", "qcow2", text(&image)]).good();
    assert_ne!(
        qemu::img(["snapshot", "-c", "x", text(&image)]).code,
        0,
        "we read it"
    );
    drop(reader);
    qemu::img(["snapshot", "-c", "x", text(&image)]).good();
}

/// Idea: iotests 043, 114, 198, 244, 263 and 271.
#[test]
fn what_we_do_not_carry_is_refused_and_named_before_anything_is_written() {
    let Some(_alone) = qemu::alone("what_we_do_not_carry_is_refused_and_named_before_anything_is_written")
    else {
        return;
    };
    let scratch = Scratch::new();
    let secret = "secret,id=s,data=123456";
    let cases: [(&str, &[&str], &str); 4] = [
        (
            "luks",
            &[
                "--object",
                secret,
                "-o",
                "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            ],
            "encr",
        ),
        ("extended", &["-o", "extended_l2=on"], "extended L2"),
        ("data-file", &["-o", "data_file=outside.raw"], "external data"),
        ("loop", &["-u", "-b", "loop.qcow2", "-F", "qcow2"], "loop"),
    ];
    for (name, options, said) in cases {
        let image = scratch.path(&format!("{name}.qcow2"));
        let arguments = [&["create", "-q", "-f", "qcow2"], options, &[text(&image), "1M"]].concat();
        let made = Command::new("qemu-img")
            .current_dir(image.parent().expect("a directory"))
            .args(arguments)
            .output();
        assert!(made.expect("qemu-img").status.success(), "{name}");
        let before = fs::read(&image).expect("the image");
        let error = Disk::try_open(&image).expect_err(name).to_string();
        assert!(
            error.to_lowercase().contains(&said.to_lowercase()),
            "{name}: {error}"
        );
        assert!(
            fs::read(&image).expect("the image") == before,
            "{name}: written to"
        );
    }
}

/// Idea: iotest 196.
#[test]
fn promises_that_we_do_not_know_are_withdrawn_with_the_first_write() {
    let Some(_alone) = qemu::alone("promises_that_we_do_not_know_are_withdrawn_with_the_first_write") else {
        return;
    };
    let scratch = Scratch::new();
    let (image, _) = image_of(&scratch, "version=v3", MIB);
    let autoclear = || be64(&fs::read(&image).expect("the image"), 88);
    patch(&image, 88, &(1u64 << 40).to_be_bytes());
    drop(Disk::open_read_only(&image).read(0, 512));
    assert_eq!(autoclear(), 1 << 40, "reading withdraws nothing");
    let disk = Disk::open(&image);
    disk.fill(0, 512, 1);
    disk.close();
    assert_eq!(autoclear(), 0);
}
