//! Images that QEMU has open, and QEMU before images that we have open.

#[path = "peer/mod.rs"]
mod peer;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use qcow2::{Access, Cache, CreateOptions, Error, FileStorage, Image, ImageFormat, ImageOptions, create};
use tempfile::TempDir;

/// An image of either format in a directory of its own.
struct Subject {
    _directory: TempDir,
    path: PathBuf,
    format: ImageFormat,
}

impl Subject {
    fn new(format: ImageFormat) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("image");
        fs::write(&path, [0; 4096]).unwrap();
        if format == ImageFormat::Qcow2 {
            let storage = FileStorage::open(&path, Access::ReadWrite, Cache::Writeback).unwrap();
            create(&storage, &CreateOptions::new(1 << 20)).unwrap();
        }
        Self {
            _directory: directory,
            path,
            format,
        }
    }

    fn open(&self, access: Access) -> qcow2::Result<FileStorage> {
        FileStorage::open(&self.path, access, Cache::Writeback)
    }

    fn is_in_use(&self, access: Access) -> bool {
        matches!(self.open(access), Err(Error::InUse { path }) if path == self.path)
    }

    /// Returns whether QEMU can read the image, and whether it can write to it.
    fn qemu_can(&self) -> (bool, bool) {
        let image = self.path.to_str().unwrap();
        let can = |arguments: &[&str]| {
            let output = peer::run(
                "qemu-io",
                arguments.iter().chain(&["-f", self.format.name(), image]),
            );
            let refused = String::from_utf8_lossy(&output.stderr).contains("lock");
            assert!(output.status.success() != refused, "{output:?}");
            !refused
        };
        (can(&["-r", "-c", "read 0 512"]), can(&["-c", "write 0 512"]))
    }
}

fn subjects() -> [Subject; 2] {
    [ImageFormat::Raw, ImageFormat::Qcow2].map(Subject::new)
}

/// QEMU with an image open, until it is dropped.
struct Holder {
    child: Child,
}

impl Holder {
    fn new(image: &Path, format: ImageFormat, read_only: bool) -> Self {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "120", "qemu-io", "-f", format.name()]);
        if read_only {
            command.arg("-r");
        }
        let mut child = command
            .arg(image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.as_mut().unwrap().write_all(b"read 0 512\n").unwrap();
        // Its answer says that the image is open.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("read 512/512")));
        Self { child }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn qemu_neither_reads_nor_writes_what_we_write() {
    if !peer::is_here("qemu_neither_reads_nor_writes_what_we_write") {
        return;
    }
    for subject in subjects() {
        let writer = subject.open(Access::ReadWrite).unwrap();
        assert_eq!(subject.qemu_can(), (false, false));
        drop(writer);
        assert_eq!(subject.qemu_can(), (true, true));
    }
}

#[test]
fn qemu_looks_at_a_live_image_only_if_told_to_share_it() {
    if !peer::is_here("qemu_looks_at_a_live_image_only_if_told_to_share_it") {
        return;
    }
    let subject = Subject::new(ImageFormat::Qcow2);
    let live = Image::open_chain(&subject.path, &ImageOptions::default()).unwrap();
    assert_eq!(subject.qemu_can(), (false, false));
    let info = |options: &[&str]| {
        let image = [subject.path.to_str().unwrap()];
        let arguments = ["info"].iter().chain(options).chain(&image);
        peer::run("qemu-img", arguments).status.success()
    };
    assert!(info(&["--force-share"]));
    assert!(!info(&[]));
    drop(live);
}

#[test]
fn qemu_reads_and_does_not_write_what_we_read() {
    if !peer::is_here("qemu_reads_and_does_not_write_what_we_read") {
        return;
    }
    for subject in subjects() {
        let _reader = subject.open(Access::ReadOnly).unwrap();
        assert_eq!(subject.qemu_can(), (true, false));
    }
}

#[test]
fn qemu_reads_what_we_froze() {
    if !peer::is_here("qemu_reads_what_we_froze") {
        return;
    }
    for subject in subjects() {
        let writer = subject.open(Access::ReadWrite).unwrap();
        writer.downgrade().unwrap();
        assert_eq!(subject.qemu_can(), (true, false));
    }
}

#[test]
fn we_neither_read_nor_write_what_qemu_writes() {
    if !peer::is_here("we_neither_read_nor_write_what_qemu_writes") {
        return;
    }
    for subject in subjects() {
        let holder = Holder::new(&subject.path, subject.format, false);
        assert!(subject.is_in_use(Access::ReadOnly), "{}", subject.format);
        assert!(subject.is_in_use(Access::ReadWrite), "{}", subject.format);
        drop(holder);
        assert!(subject.open(Access::ReadWrite).is_ok());
    }
}

#[test]
fn we_read_and_do_not_write_what_qemu_reads() {
    if !peer::is_here("we_read_and_do_not_write_what_qemu_reads") {
        return;
    }
    for subject in subjects() {
        let _holder = Holder::new(&subject.path, subject.format, true);
        assert!(subject.open(Access::ReadOnly).is_ok(), "{}", subject.format);
        assert!(subject.is_in_use(Access::ReadWrite), "{}", subject.format);
    }
}
