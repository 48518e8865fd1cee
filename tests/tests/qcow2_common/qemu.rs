//! QEMU's own tools as the second reader and writer of images.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::text;

/// What a tool answered.
#[derive(Debug)]
pub struct Answer {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    /// Insists that it went well, and returns what was printed.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Lets a test run alone in its process, if `qemu-img` and `qemu-io` are here; otherwise says that it is skipped.
///
/// Alone, because a child that another thread has forked has all descriptors, and so the locks of images, until it
/// executes its program: what one test has just closed could still be in use.
pub fn alone(test: &str) -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::new(());
    let missing: Vec<_> = ["qemu-img", "qemu-io"]
        .into_iter()
        .filter(|tool| Command::new(tool).arg("--version").output().is_err())
        .collect();
    if !missing.is_empty() {
        eprintln!("SKIPPED: {test}: not installed: {}", missing.join(", "));
        return None;
    }
    Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs `qemu-img`.
pub fn img<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Answer {
    run(Command::new("qemu-img").args(arguments))
}

/// Runs `qemu-img` with options in one string, then paths; it must succeed.
#[track_caller]
pub fn img_good(words: &str, paths: &[&Path]) -> String {
    let words = words.split_whitespace().map(OsStr::new);
    img(words.chain(paths.iter().map(|path| path.as_os_str()))).good()
}

/// Creates a qcow2 image.
#[track_caller]
pub fn create(path: &Path, options: &str, len_bytes: u64) {
    let len = len_bytes.to_string();
    let options = if options.is_empty() { "version=v3" } else { options };
    let options = options
        .replace("version=v2", "compat=0.10")
        .replace("version=v3", "compat=1.1");
    img(["create", "-q", "-f", "qcow2", "-o", &options, text(path), &len]).good();
}

/// Runs `qemu-io` commands on a qcow2 image; each must succeed.
#[track_caller]
pub fn io<C: AsRef<str>>(path: &Path, commands: impl IntoIterator<Item = C>) -> String {
    io_as(path, "qcow2", commands)
}

/// The same for any format.
#[track_caller]
pub fn io_as<C: AsRef<str>>(path: &Path, format: &str, commands: impl IntoIterator<Item = C>) -> String {
    let mut command = Command::new("qemu-io");
    command.args(["-f", format]);
    for line in commands {
        command.arg("-c").arg(line.as_ref());
    }
    let answer = run(command.arg(path));
    let said = format!("{}{}", answer.stdout, answer.stderr);
    for bad in ["failed", "verification", "Error", "error"] {
        assert!(!said.contains(bad), "{}: {said}", path.display());
    }
    answer.good()
}

/// Insists that `qemu-img check` finds neither corruptions nor leaks.
#[track_caller]
pub fn assert_clean(path: &Path) {
    let answer = check(path);
    assert_eq!(
        answer.code,
        0,
        "{}: {}{}",
        path.display(),
        answer.stdout,
        answer.stderr
    );
}

/// `qemu-img check`: code 0 clean, 2 corruptions, 3 leaks.
pub fn check(path: &Path) -> Answer {
    img(["check", "-f", "qcow2", text(path)])
}

/// Insists that an image, with what is below it, holds the bytes of a raw file.
#[track_caller]
pub fn assert_same(path: &Path, raw: &Path) {
    let arguments = ["compare", "-f", "qcow2", "-F", "raw", text(path), text(raw)];
    let answer = img(arguments);
    assert_eq!(
        answer.code,
        0,
        "{} and {}: {}{}",
        path.display(),
        raw.display(),
        answer.stdout,
        answer.stderr
    );
}

/// Writes the content of an internal snapshot, or of the active disk, to a raw file and returns its BLAKE3.
#[track_caller]
pub fn digest(path: &Path, snapshot: Option<&str>, scratch: &Path) -> blake3::Hash {
    let mut arguments = vec!["convert", "-f", "qcow2", "-O", "raw"];
    let option = snapshot.map(|name| format!("snapshot.name={name}"));
    if let Some(option) = &option {
        arguments.extend(["-l", option]);
    }
    arguments.extend([text(path), text(scratch)]);
    img(arguments).good();
    let bytes = std::fs::read(scratch).expect("the raw file");
    std::fs::remove_file(scratch).expect("the raw file goes");
    blake3::hash(&bytes)
}

fn run(command: &mut Command) -> Answer {
    let output = command.env("LC_ALL", "C").output().expect("the tool starts");
    Answer {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
