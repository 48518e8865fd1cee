//! What a machine is to be: one structure, whether it was typed as flags, written to a file or sent to the API.
//!
//! Its fields have the names and its values the form of the flags of `snapvm run`; a flag `--no-x` is the field `x`
//! set to false. Nothing here looks at the host: whether files, taps and features are there shows when the machine is
//! made.

mod builtin;
mod file;
mod size;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use vmm::{
    BalloonConfig, ConsoleConfig, ConsoleOutput, CpuModel, DevicesConfig, DiskConfig, Kernel, Machine,
    MachineConfig, NetConfig, SerialOutput, VsockConfig,
};

use crate::values::Terminal;

pub use builtin::Builtin;
pub use file::read;
pub use size::Size;

/// A machine and its guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineDescription {
    /// Name of the machine, kept in its snapshots; may be empty.
    pub name: String,
    /// Memory of the guest.
    pub memory: Size,
    /// Number of virtual processors.
    pub cpus: u32,
    /// The processor that the guest sees.
    pub cpu: CpuModel,
    /// Kernel to boot: a bzImage, or an ELF file with a PVH entry note.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk that goes with the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Command line given to the kernel.
    pub cmdline: String,
    /// What the guest's memory is made of.
    pub memory_backing: Backing,
    /// Whether transparent huge pages may be used for the guest's memory.
    pub thp: bool,
    /// Where the guest's serial port goes.
    pub serial: Terminal,
    /// Where the console device goes; there is none without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<Terminal>,
    /// Whether there is an entropy device.
    pub rng: bool,
    /// Boot the built-in guest, which behaves so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub builtin: Option<Builtin>,
    /// Socket device between guest and host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// Memory balloon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    /// Disks, in the order in which the guest finds them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, in the order in which the guest finds them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetConfig>,
}

/// What the guest's memory is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// Private anonymous memory.
    #[default]
    Anonymous,
    /// A memory file, which other processes could be given.
    Memfd,
}

impl Default for MachineDescription {
    fn default() -> Self {
        Self {
            name: String::new(),
            memory: Size(512 << 20),
            cpus: 1,
            cpu: CpuModel::default(),
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            memory_backing: Backing::default(),
            thp: true,
            serial: Terminal::default(),
            console: None,
            rng: true,
            builtin: None,
            vsock: None,
            balloon: None,
            disks: Vec::new(),
            nets: Vec::new(),
        }
    }
}

impl MachineDescription {
    /// Describes a machine that was restored, as far as its snapshot tells.
    #[must_use]
    pub fn of_restored(machine: &Machine, memory_bytes: u64, name: String, serial: Terminal) -> Self {
        let devices = machine.devices_config().clone();
        let console = devices.console.map(|console| match console.output {
            ConsoleOutput::Stdio => Terminal::Stdio,
            ConsoleOutput::File(path) => Terminal::File(path),
            _ => Terminal::Null,
        });
        Self {
            name,
            memory: Size(memory_bytes),
            cpus: u32::try_from(machine.cpus()).unwrap_or(u32::MAX),
            cpu: machine.cpu_model(),
            serial,
            console,
            rng: devices.rng,
            vsock: devices.vsock,
            balloon: devices.balloon,
            disks: devices.disks,
            nets: devices.nets,
            ..Self::default()
        }
    }

    /// Checks what types cannot say.
    ///
    /// # Errors
    /// Says in words which field breaks which rule.
    pub fn validate(&self) -> Result<(), String> {
        match (&self.kernel, &self.builtin) {
            (None, None) => return Err("neither kernel nor builtin: there is nothing to boot".to_owned()),
            (Some(_), Some(_)) => return Err("kernel and builtin: only one can be booted".to_owned()),
            _ => {}
        }
        if self.kernel.is_none() && (self.initrd.is_some() || !self.cmdline.is_empty()) {
            return Err("initrd and cmdline are given to a kernel, and there is none".to_owned());
        }
        if self.serial == Terminal::Stdio && self.console == Some(Terminal::Stdio) {
            return Err("serial and console cannot both be stdio: send one to null or file:PATH".to_owned());
        }
        self.devices().validate().map_err(|broken| broken.to_string())
    }

    /// Refuses paths whose meaning depends on where a process was started.
    ///
    /// # Errors
    /// Names the path.
    pub fn require_absolute_paths(&self) -> Result<(), String> {
        match self.clone().paths().into_iter().find(|path| path.is_relative()) {
            None => Ok(()),
            Some(path) => Err(format!(
                "{} is not absolute: the machine runs in another directory",
                path.display()
            )),
        }
    }

    /// Makes all paths absolute that are meant from the present directory on.
    ///
    /// # Errors
    /// There is no present directory.
    pub fn with_absolute_paths(mut self) -> io::Result<Self> {
        for path in self.paths() {
            *path = std::path::absolute(&path)?;
        }
        Ok(self)
    }

    /// All paths in the description.
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        let terminals = [Some(&mut self.serial), self.console.as_mut()];
        let logs = terminals
            .into_iter()
            .flatten()
            .filter_map(|terminal| match terminal {
                Terminal::File(path) => Some(path),
                _ => None,
            });
        let sockets = self.vsock.iter_mut().filter_map(|vsock| vsock.uds.as_mut());
        let disks = self.disks.iter_mut().map(|disk| &mut disk.file);
        let boot = self.kernel.iter_mut().chain(&mut self.initrd);
        boot.chain(disks).chain(sockets).chain(logs).collect()
    }

    /// Returns the virtio devices, in the words of the machine.
    #[must_use]
    pub fn devices(&self) -> DevicesConfig {
        DevicesConfig {
            disks: self.disks.clone(),
            nets: self.nets.clone(),
            vsock: self.vsock.clone(),
            console: self.console.as_ref().map(|terminal| ConsoleConfig {
                output: console_output(terminal),
            }),
            balloon: self.balloon.clone(),
            rng: self.rng,
        }
    }

    /// Translates the description for the machine.
    #[must_use]
    pub fn to_config(&self) -> MachineConfig {
        let kernel = self.kernel.as_deref().map(Path::to_owned).map(Kernel::File);
        let builtin = || {
            self.builtin
                .as_ref()
                .map(|builtin| Kernel::Builtin(builtin.options()))
        };
        MachineConfig {
            memory_bytes: self.memory.0,
            cpus: self.cpus,
            serial: serial_output(&self.serial),
            backing: self.memory_backing.into(),
            transparent_huge_pages: self.thp,
            kernel: kernel.or_else(builtin),
            cmdline: self.cmdline.clone(),
            initrd: self.initrd.clone(),
            cpu: self.cpu,
            devices: self.devices(),
            ..MachineConfig::default()
        }
    }
}

/// Where a serial port goes, in the machine's words.
#[must_use]
pub fn serial_output(terminal: &Terminal) -> SerialOutput {
    match terminal {
        Terminal::Stdio => SerialOutput::Stdio,
        Terminal::File(path) => SerialOutput::File(path.clone()),
        Terminal::Null => SerialOutput::Null,
    }
}

/// Where a console goes, in the machine's words.
#[must_use]
pub fn console_output(terminal: &Terminal) -> ConsoleOutput {
    match terminal {
        Terminal::Stdio => ConsoleOutput::Stdio,
        Terminal::File(path) => ConsoleOutput::File(path.clone()),
        Terminal::Null => ConsoleOutput::Null,
    }
}

impl From<Backing> for vmm::Backing {
    fn from(backing: Backing) -> Self {
        match backing {
            Backing::Anonymous => Self::Anonymous,
            Backing::Memfd => Self::Memfd,
        }
    }
}
