//! `qemu-img` as the second reader of images.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Runs `qemu-img`; nothing if it is not here.
pub fn qemu_img(args: &[&str], path: &Path) -> Option<Output> {
    match Command::new("qemu-img").args(args).arg(path).output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("SKIPPED: reading {} with qemu-img: {error}", path.display());
            None
        }
    }
}

/// Insists that `qemu-img check` finds nothing in an image that nobody uses, or nothing but leaks if those may be.
#[track_caller]
pub fn assert_checked(path: &Path, may_leak: bool) {
    let Some(output) = qemu_img(&["check", "-f", "qcow2", "-U"], path) else {
        return;
    };
    let code = output.status.code();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        code == Some(0) || (may_leak && code == Some(3)),
        "{}: {text}",
        path.display()
    );
}

/// What `qemu-img` reads from an image and the files below it.
pub fn read_by_qemu(format: &str, path: &Path, scratch: &Path) -> Option<Vec<u8>> {
    let output = Command::new("qemu-img")
        .args(["convert", "-U", "-f", format, "-O", "raw"])
        .arg(path)
        .arg(scratch)
        .output();
    match output {
        Err(error) => {
            eprintln!("SKIPPED: reading {} with qemu-img: {error}", path.display());
            None
        }
        Ok(output) => {
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let bytes = fs::read(scratch).unwrap();
            fs::remove_file(scratch).unwrap();
            Some(bytes)
        }
    }
}
