//! What an init does first and last: mounts, modules, power-off.

use std::ffi::CString;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, init_module, reboot};

/// The modules to load, a line each, after those that it needs: path, and parameters behind a space.
const MODULES: &str = "/modules/list";

/// File systems that every Linux program expects: type and place.
const MOUNTS: &[(&str, &str)] = &[
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
];

/// Makes the machine a usual one.
pub fn prepare() -> Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).with_context(|| format!("cannot make {place}"))?;
        mount(*kind, *place, *kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {kind}"))?;
    }
    load_modules()
}

/// Loads the modules of the initramfs; one whose hardware is absent is no error.
fn load_modules() -> Result<()> {
    let Ok(list) = fs::read_to_string(MODULES) else {
        return Ok(());
    };
    for line in list.lines() {
        let (path, parameters) = line.split_once(' ').unwrap_or((line, ""));
        let parameters = CString::new(parameters).context("parameters of a module")?;
        let image = fs::read(path).with_context(|| format!("cannot read {path}"))?;
        match init_module(&image, &parameters) {
            Ok(()) | Err(Errno::EXIST | Errno::NODEV) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot load {path}")),
        }
    }
    Ok(())
}

/// Switches the machine off.
pub fn power_off() -> ExitCode {
    rustix::fs::sync();
    let refused = reboot(RebootCommand::PowerOff);
    println!("the kernel refuses to power off: {refused:?}");
    ExitCode::FAILURE
}
