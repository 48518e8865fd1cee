//! What this machine cannot do, said loudly.

use std::fs::OpenOptions;

/// Whether KVM can be used; where not, the named test says that it is skipped.
#[must_use]
pub fn has_kvm(test: &str) -> bool {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIPPED: {test}: /dev/kvm: {error}");
            false
        }
    }
}

/// Whether the test runs as root, which mounting needs; where not, the named test says that it is skipped.
#[must_use]
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: {test}: it mounts a file system and must be run as root");
    }
    root
}
