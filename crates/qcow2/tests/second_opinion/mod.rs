//! QEMU's tools as a second opinion, and images that they make.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qcow2::{Access, Cache, FileStorage, Storage};

/// Held by a test to its end: while another test starts a process, this process's files are open in it for a moment,
/// with their locks, and QEMU would refuse an image that has been closed here.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether qemu-img and qemu-io are here; says that the test is skipped if not.
pub fn present(test: &str) -> bool {
    let runs = |tool| {
        let version = Command::new(tool).arg("--version").stdout(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    };
    let present = runs("qemu-img") && runs("qemu-io");
    if !present {
        eprintln!("SKIPPED: {test}: qemu-img and qemu-io are not installed");
    }
    present
}

/// Runs a tool to its end and returns what it said.
pub fn run(tool: &str, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .args(["60", tool])
        .args(arguments)
        .output()
        .expect("run a tool")
}

/// Runs qemu-img, which must succeed.
pub fn qemu_img(arguments: &[&str]) -> String {
    let output = run("qemu-img", arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

/// Runs qemu-io commands on a qcow2 image; they must succeed.
pub fn qemu_io(path: &Path, commands: &[&str]) {
    let mut arguments = vec!["-f", "qcow2"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(text(path));
    let output = run("qemu-io", &arguments);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-io {commands:?}: {said}");
    assert!(!said.contains("failed"), "qemu-io {commands:?}: {said}");
}

/// What `qemu-img check` says: its exit code and its figures.
pub fn qemu_check(path: &Path) -> (Option<i32>, serde_json::Value) {
    let output = run("qemu-img", &["check", "--output=json", "-f", "qcow2", text(path)]);
    let figures = serde_json::from_slice(&output.stdout).unwrap_or(serde_json::Value::Null);
    (output.status.code(), figures)
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// An image to read.
pub fn open(path: &Path) -> Arc<dyn Storage> {
    Arc::new(FileStorage::open(path, Access::ReadOnly, Cache::Writeback).expect("open"))
}

/// An image to write.
pub fn open_writable(path: &Path) -> Arc<dyn Storage> {
    Arc::new(FileStorage::open(path, Access::ReadWrite, Cache::Writeback).expect("open"))
}

/// The options of `qemu-img create` that images of the tests are made with, one set each.
pub const OPTIONS: [&str; 12] = [
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=4096,refcount_bits=1",
    "cluster_size=4096,refcount_bits=2",
    "cluster_size=32768,refcount_bits=8",
    "cluster_size=65536,refcount_bits=32",
    "cluster_size=2048,refcount_bits=64",
    "cluster_size=2M",
    "cluster_size=1024,lazy_refcounts=on",
    "cluster_size=65536,preallocation=metadata",
    "cluster_size=65536,compression_type=zstd",
];

/// Makes an image with the options, and with plain, compressed, zero and discarded clusters in it.
pub fn filled(directory: &Path, name: &str, options: &str) -> PathBuf {
    let path = directory.join(name);
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, text(&path), "16M"]);
    qemu_io(
        &path,
        &[
            "write -P 1 0 3M",
            "write -P 2 5M 64k",
            "write -P 3 15M 1M",
            "discard 1M 512k",
            "write -P 6 1100k 7k",
        ],
    );
    if !options.contains("preallocation") {
        qemu_io(&path, &["write -c -P 4 8M 2M"]);
    }
    if !options.contains("compat=0.10") {
        qemu_io(&path, &["write -z 2M 256k", "write -z -u 2560k 128k"]);
    }
    path
}

/// Whether images with these options can have snapshots: refcounts of 1 or 2 bits are too narrow for them, the latter
/// where compressed clusters share a host cluster.
pub fn can_have_snapshots(options: &str) -> bool {
    !options.ends_with("refcount_bits=1") && !options.ends_with("refcount_bits=2")
}

/// Adds two internal snapshots, one with a machine's state, and writes between them.
pub fn add_snapshots(path: &Path) {
    qemu_img(&["snapshot", "-c", "first", text(path)]);
    qemu_io(path, &["write -P 7 1M 300k", "write -P 8 10M 100k"]);
    qemu_img(&["snapshot", "-c", "second", text(path)]);
    qemu_io(path, &["write -P 9 0 64k", "write -P 10 8M 4k"]);
}

/// Reads a big-endian number of the file.
pub fn read_u64(path: &Path, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    File::open(path)
        .expect("open")
        .read_exact_at(&mut bytes, offset)
        .expect("read");
    u64::from_be_bytes(bytes)
}

/// Writes bytes into the file.
pub fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).expect("open");
    file.write_all_at(bytes, offset).expect("write");
}

/// Changes a big-endian number of the file.
pub fn patch_u64(path: &Path, offset: u64, change: impl Fn(u64) -> u64) {
    patch(path, offset, &change(read_u64(path, offset)).to_be_bytes());
}

/// Offset of the first entry from `index` on that is not 0, in a table of 64-bit entries.
pub fn used_entry(path: &Path, table: u64, index: u64) -> u64 {
    (index..)
        .map(|index| table + index * 8)
        .find(|&offset| read_u64(path, offset) != 0)
        .expect("an entry in use")
}
