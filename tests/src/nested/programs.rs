//! The static programs that run in initramfs archives.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The programs, by package and name.
const PROGRAMS: &[(&str, &str)] = &[
    ("snapvm", "snapvm"),
    ("snaptool", "snaptool"),
    ("linux-guest", "linux-guest"),
    ("e2e", "linux_suite"),
    ("e2e", "vhost_caught"),
];

/// Builds everything statically, from the source as it stands, and returns the directory of the binaries.
pub fn build(root: &Path, target: &Path) -> Result<PathBuf> {
    let target = target.join("static");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
    command
        .current_dir(root)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target);
    for (package, name) in PROGRAMS {
        command.args(["--package", package, "--bin", name]);
    }
    let status = command.status().context("cannot run cargo")?;
    ensure!(status.success(), "the static programs do not build: {status}");
    Ok(target.join(TARGET).join("release"))
}

/// Reads a program without what only a debugger needs.
pub fn read_stripped(program: &Path) -> Result<Vec<u8>> {
    let made = tempfile::tempdir().context("cannot make a temporary directory")?;
    let stripped = made.path().join("stripped");
    let arguments = [OsStr::new("--strip-debug"), program.as_os_str()];
    let status = Command::new("objcopy")
        .args(arguments)
        .arg(&stripped)
        .status()
        .context("cannot run objcopy")?;
    ensure!(status.success(), "objcopy {}: {status}", program.display());
    fs::read(&stripped).context("cannot read a stripped program")
}
