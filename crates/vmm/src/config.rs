//! What a machine is made of: size, processors, kernel and serial port.
//!
//! A configuration is plain data. Nothing is opened and no limit of the host is looked at until the
//! machine or its memory is created from it.

use std::path::PathBuf;

use virtio::{DevicesConfig, Disk};

use crate::builtin::BuiltinOptions;
use crate::cpu_model::CpuModel;
use crate::error::{Error, Result};
use crate::memory::PAGE_SIZE;

/// Smallest guest memory: one MiB of legacy area and room for a kernel.
pub(crate) const MIN_MEMORY_BYTES: u64 = 2 << 20;
/// Largest guest memory: what 46 physical address bits leave beside the hole below 4 GiB.
pub(crate) const MAX_MEMORY_BYTES: u64 = 1 << 45;
/// Most vCPUs of a machine: local APIC ids of eight bits, 255 being the broadcast.
pub(crate) const MAX_CPUS: u32 = 254;
/// Longest kernel command line in bytes, without the terminating zero.
pub(crate) const MAX_CMDLINE_BYTES: usize = 2047;

/// Everything needed to create a machine and its guest memory.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Guest memory in bytes, a multiple of the page size.
    pub memory_bytes: u64,
    /// Number of vCPUs, from 1 to 254.
    pub cpus: u32,
    /// Where the bytes go that the guest writes to its serial port.
    pub serial: SerialOutput,
    /// What guest memory is made of on the host.
    pub backing: Backing,
    /// Whether the host may back anonymous guest memory with transparent huge pages.
    pub transparent_huge_pages: bool,
    /// What [`Machine::boot`](crate::Machine::boot) loads; not looked at by a restore.
    pub kernel: Option<Kernel>,
    /// Kernel command line, ASCII, at most 2047 bytes.
    pub cmdline: String,
    /// Initial RAM disk that is loaded beside the kernel; not looked at by a restore.
    pub initrd: Option<PathBuf>,
    /// The processor that a booted guest sees; a restored one keeps the processor that it has seen.
    pub cpu: CpuModel,
    /// The virtio devices; none by default.
    pub devices: DevicesConfig,
    /// Disks that are open already; each stands for the one of its id in `devices`, which is not opened again.
    pub opened_disks: Vec<Disk>,
}

/// The program that a machine starts.
#[derive(Clone, Debug)]
pub enum Kernel {
    /// A file: an ELF image with a PVH entry note, or a Linux bzImage with a 64-bit entry; its contents
    /// tell which.
    File(PathBuf),
    /// The contents of such a file.
    Image(Vec<u8>),
    /// The built-in guest, with its working set filled beforehand.
    Builtin(BuiltinOptions),
}

/// Where serial output goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SerialOutput {
    /// To standard output.
    Stdio,
    /// To the end of a file, which is created if it does not exist.
    File(PathBuf),
    /// Nowhere.
    #[default]
    Null,
}

/// What guest memory is made of on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// One memfd, mapped shared, so that another process can be given it.
    Memfd,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            memory_bytes: 128 << 20,
            cpus: 1,
            serial: SerialOutput::default(),
            backing: Backing::default(),
            transparent_huge_pages: false,
            kernel: None,
            cmdline: String::new(),
            initrd: None,
            cpu: CpuModel::default(),
            devices: DevicesConfig::none(),
            opened_disks: Vec::new(),
        }
    }
}

impl MachineConfig {
    /// Checks every limit that does not depend on the host.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] and [`Error::InvalidDevices`] name the field and the rule.
    pub(crate) fn validate(&self) -> Result<()> {
        let invalid = |field, rule| Error::InvalidConfig { field, rule };
        if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&self.memory_bytes) {
            return Err(invalid("memory_bytes", "must be from 2 MiB to 32 TiB"));
        }
        if !self.memory_bytes.is_multiple_of(PAGE_SIZE) {
            return Err(invalid("memory_bytes", "must be a multiple of 4096"));
        }
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(invalid("cpus", "must be from 1 to 254"));
        }
        if self.cmdline.len() > MAX_CMDLINE_BYTES {
            return Err(invalid("cmdline", "must be at most 2047 bytes"));
        }
        if !self.cmdline.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Err(invalid("cmdline", "must be printable ASCII"));
        }
        self.devices.validate()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_default() {
        MachineConfig::default().validate().unwrap();
    }

    #[test]
    fn refuses_values_outside_limits() {
        let base = MachineConfig::default();
        let cases = [
            (
                "memory_bytes",
                MachineConfig {
                    memory_bytes: 0,
                    ..base.clone()
                },
            ),
            (
                "memory_bytes",
                MachineConfig {
                    memory_bytes: (2 << 20) + 1,
                    ..base.clone()
                },
            ),
            (
                "memory_bytes",
                MachineConfig {
                    memory_bytes: 1 << 60,
                    ..base.clone()
                },
            ),
            (
                "cpus",
                MachineConfig {
                    cpus: 0,
                    ..base.clone()
                },
            ),
            (
                "cpus",
                MachineConfig {
                    cpus: 255,
                    ..base.clone()
                },
            ),
            (
                "cmdline",
                MachineConfig {
                    cmdline: "x".repeat(2048),
                    ..base.clone()
                },
            ),
            (
                "cmdline",
                MachineConfig {
                    cmdline: "a\0b".into(),
                    ..base
                },
            ),
        ];
        for (expected, config) in cases {
            match config.validate() {
                Err(Error::InvalidConfig { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }
}
