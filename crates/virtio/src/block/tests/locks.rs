//! Who may use an image at the same time, other programs included.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::images::{Images, owner};
use super::*;
use crate::config::DiskFormat;

/// Runs a program of QEMU; nothing if it is not installed.
fn qemu(program: &str, arguments: &[&str], path: &Path) -> Option<bool> {
    let output = Command::new(program).args(arguments).arg(path).output().ok()?;
    Some(output.status.success())
}

/// A program of QEMU that has an image open for writing until its input ends.
struct Writer(Child);

impl Writer {
    fn new(format: &str, path: &Path) -> Option<Self> {
        let mut child = Command::new("qemu-io")
            .args(["-f", format])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        child.stdin.as_mut().unwrap().write_all(b"write 0 512\n").unwrap();
        // It answers once the image is open.
        let mut answer = String::new();
        while !answer.contains("wrote") {
            let output = child.stdout.as_mut().unwrap();
            assert_ne!(
                BufReader::with_capacity(1, output)
                    .read_line(&mut answer)
                    .unwrap(),
                0,
                "{answer}"
            );
        }
        Some(Self(child))
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        drop(self.0.stdout.take());
        self.0.wait().unwrap();
    }
}

#[test]
fn a_disk_in_use_is_refused_by_other_programs() {
    let images = Images::new();
    let (raw, _) = images.raw("d.raw");
    let (image, _) = images.qcow2("d.qcow2", |_| {});
    for (config, format) in [(raw, "raw"), (image, "qcow2")] {
        let disk = Disk::open(&config).unwrap();
        let write = ["-f", format, "-c", "write 0 512"];
        let Some(written) = qemu("qemu-io", &write, &config.file) else {
            eprintln!("SKIPPED: a_disk_in_use_is_refused_by_other_programs: qemu-io is not installed");
            return;
        };
        assert!(!written, "{format}: written by another program");
        let read = |format, path: &Path| qemu("qemu-io", &["-r", "-f", format, "-c", "read 0 512"], path);
        assert_eq!(read(format, &config.file), Some(false), "{format}");
        // What is frozen may be read by all and written by none.
        let frozen = images.path(&format!("{format}.s0"));
        let frozen = disk.prepare_overlay(&frozen, &owner()).unwrap().switch().unwrap();
        frozen.settle().unwrap();
        assert_eq!(read(format, &frozen.path), Some(true), "{format}");
        assert_eq!(qemu("qemu-io", &write, &frozen.path), Some(false), "{format}");
        let live = disk.path().unwrap();
        assert_eq!(read("qcow2", &live), Some(false), "{format}");
        drop(disk);
        assert_eq!(read("qcow2", &live), Some(true), "{format}");
    }
}

#[test]
fn a_disk_that_another_program_uses_is_refused() {
    let images = Images::new();
    let (raw, _) = images.raw("d.raw");
    let (image, _) = images.qcow2("d.qcow2", |_| {});
    for (config, format) in [(raw, "raw"), (image, "qcow2")] {
        let Some(writer) = Writer::new(format, &config.file) else {
            eprintln!("SKIPPED: a_disk_that_another_program_uses_is_refused: qemu-io is not installed");
            return;
        };
        for readonly in [false, true] {
            let config = DiskConfig {
                readonly,
                ..config.clone()
            };
            let error = Disk::open(&config).unwrap_err();
            assert!(matches!(error, Error::DiskInUse { .. }), "{format}: {error:?}");
        }
        writer.end();
        Disk::open(&config).unwrap();
    }
}

#[test]
fn a_raw_disk_whose_overlay_is_the_disk_is_refused() {
    let images = Images::new();
    let (config, _) = images.raw("d.raw");
    let disk = Disk::open(&config).unwrap();
    // However many layers lie between.
    for name in ["s0", "s1", "s2"] {
        let prepared = disk.prepare_overlay(&images.path(name), &owner()).unwrap();
        prepared.switch().unwrap();
    }
    Disk::open(&config).expect_err("while it runs");
    drop(disk);
    let error = Disk::open(&config).unwrap_err().to_string();
    let (path, overlay) = (images.path("d.raw"), images.path("d.raw.qcow2"));
    let (path, overlay) = (path.display(), overlay.display());
    assert_eq!(
        error,
        format!("disk {path} is the base of {overlay}: use that one")
    );
    // However it is called.
    std::os::unix::fs::symlink(images.path("d.raw"), images.path("link")).unwrap();
    let link = DiskConfig::new("data", images.path("link"));
    assert!(matches!(Disk::open(&link), Err(Error::DiskIsBase { .. })));
    let reader = DiskConfig {
        readonly: true,
        ..config.clone()
    };
    Disk::open(&reader).unwrap();
    // A file that is no overlay of it is in nobody's way.
    std::fs::write(images.path("d.raw.qcow2"), "something else").unwrap();
    Disk::open(&config).unwrap();
}

#[test]
fn an_image_of_another_format_is_refused_and_never_guessed() {
    let images = Images::new();
    let (raw, _) = images.raw("d.raw");
    let (image, _) = images.qcow2("d.qcow2", |_| {});
    let wrong = DiskConfig {
        format: DiskFormat::Qcow2,
        ..raw
    };
    let error = Disk::open(&wrong).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Image {
                source: qcow2::Error::NotQcow2,
                ..
            }
        ),
        "{error:?}"
    );
    let as_raw = DiskConfig {
        format: DiskFormat::Raw,
        ..image
    };
    assert_ne!(
        Disk::open(&as_raw).unwrap().len_bytes(),
        4 << 20,
        "its bytes as they are"
    );
}
