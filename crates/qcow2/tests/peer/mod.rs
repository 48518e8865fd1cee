//! QEMU's tools, the other side of every exchange of images.

#![allow(dead_code, reason = "every test binary uses its part")]

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// Seconds after which a tool is killed.
const TIMEOUT_S: &str = "120";

/// Returns whether QEMU's tools are here, or says that `test` is skipped.
pub fn is_here(test: &str) -> bool {
    let here = ["qemu-img", "qemu-io"]
        .iter()
        .all(|tool| Command::new(tool).arg("--version").output().is_ok());
    if !here {
        eprintln!("SKIPPED: {test}: qemu-img and qemu-io are not installed");
    }
    here
}

/// Runs a tool, bounded in time.
pub fn run(tool: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    Command::new("timeout")
        .args(["-k", "1", TIMEOUT_S, tool])
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs a tool and returns what it printed; it must succeed.
pub fn good(tool: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    let output = run(tool, arguments);
    assert!(output.status.success(), "{tool}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Asserts that `qemu-img check` has nothing to say about an image.
pub fn assert_clean(image: &Path) {
    let output = run("qemu-img", [OsStr::new("check"), image.as_os_str()]);
    assert!(output.status.success(), "{}: {output:?}", image.display());
}

/// Runs one command of `qemu-io` on an image.
pub fn io(image: &Path, commands: &[&str]) -> Output {
    let mut arguments: Vec<&OsStr> = Vec::new();
    for command in commands {
        arguments.extend([OsStr::new("-c"), OsStr::new(command)]);
    }
    arguments.push(image.as_os_str());
    run("qemu-io", arguments)
}
