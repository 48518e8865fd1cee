//! Devices whose packets the host's kernel moves (vhost).
//!
//! Registers, configuration and saved state are ours, the same as of the devices that move packets
//! themselves; the rings are served by a worker of the kernel, which reads the driver's kicks from the
//! transport's own events and writes the guest's memory through this process's address space. Its writes
//! therefore fault like ours: whoever write-protects guest memory to track writes sees them too.
//!
//! A paused device has no ring attached to the kernel's worker, so nothing writes guest memory; positions are
//! then the kernel's for the available ring, and what stands in the used ring itself. Interrupts are relayed:
//! the kernel signals an event of ours, and the device's thread sets the status bit and raises the interrupt.
//! An irqfd wired to the kernel directly would save that step, but the MMIO driver looks for a bit that only
//! we can set, and a bit that is always set would make the saved state say what is not so.

mod handler;
mod memory;
mod net;
mod vsock;

pub use self::net::VhostNet;
pub use self::vsock::VhostVsock;

use crate::error::Error;

/// Turns what the kernel said to a step of the set-up into an error that names the step.
fn failed(step: &'static str) -> impl Fn(vhost::Error) -> Error {
    move |error| {
        let cause = match error {
            vhost::Error::IoctlError(source) | vhost::Error::IOError(source) => source.to_string(),
            other => other.to_string(),
        };
        Error::Host {
            problem: format!("vhost: {step}: {cause}"),
        }
    }
}

/// Explains why a device of the kernel cannot be opened.
fn not_there(path: &str, module: &str) -> impl Fn(vhost::Error) -> Error {
    move |error| {
        let cause = match error {
            vhost::Error::VhostOpen(source) => source.to_string(),
            other => other.to_string(),
        };
        Error::Host {
            problem: format!("{path}: {cause} (kernel module {module})"),
        }
    }
}
