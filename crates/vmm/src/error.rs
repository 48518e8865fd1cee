//! The errors of this crate.

use std::io;
use std::path::PathBuf;

use crate::builtin::BuiltinError;
use crate::device::DeviceError;
use crate::run_state::RunState;
use crate::state::StateError;

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why a machine could not be created, paused, saved or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the configuration breaks a rule.
    #[error("configuration: {field} {rule}")]
    InvalidConfig {
        /// Name of the field.
        field: &'static str,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The configuration of the virtio devices breaks a rule.
    #[error("configuration of devices")]
    InvalidDevices(#[from] virtio::InvalidDevices),
    /// `/dev/kvm` is missing or may not be opened.
    #[error("kvm is not usable on this host")]
    KvmUnavailable(#[source] io::Error),
    /// This KVM lacks something that a machine needs.
    #[error("kvm lacks {capability}")]
    MissingCapability {
        /// KVM's name of the capability.
        capability: &'static str,
    },
    /// A KVM call was refused.
    #[error("{operation}")]
    Kvm {
        /// KVM's name of the call.
        operation: &'static str,
        /// What the kernel answered.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A KVM call on a vCPU was refused.
    #[error("vcpu {vcpu}: {operation}")]
    Vcpu {
        /// Number of the vCPU.
        vcpu: u32,
        /// KVM's name of the call.
        operation: &'static str,
        /// What the kernel answered.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM did not take or give an MSR.
    #[error("vcpu {vcpu}: {operation} refused msr {index:#x}")]
    MsrRefused {
        /// Number of the vCPU.
        vcpu: u32,
        /// KVM's name of the call.
        operation: &'static str,
        /// Index of the MSR.
        index: u32,
    },
    /// An operating system call failed.
    #[error("{operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// Guest memory could not be mapped or does not fit the configuration.
    #[error("guest memory: {problem}")]
    Memory {
        /// The rule or call that failed.
        problem: String,
    },
    /// The kernel image cannot be opened.
    #[error("kernel image {}", path.display())]
    OpenKernel {
        /// Path of the image.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The kernel image cannot be booted.
    #[error("kernel image: {problem}")]
    Kernel {
        /// What is wrong with it.
        problem: String,
    },
    /// The initial RAM disk cannot be read.
    #[error("initrd {}", path.display())]
    OpenInitrd {
        /// Path of the file.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The initial RAM disk cannot be given to the kernel.
    #[error("initrd: {problem}")]
    Initrd {
        /// What is wrong with it.
        problem: String,
    },
    /// The built-in guest cannot be made for this machine.
    #[error("built-in guest")]
    Builtin(#[from] BuiltinError),
    /// The operation makes no sense in the machine's run state.
    #[error("cannot {operation} a machine that is {state}")]
    InvalidRunState {
        /// The operation asked for.
        operation: &'static str,
        /// The state that the machine is in.
        state: RunState,
    },
    /// A saved state cannot be decoded or contradicts itself.
    #[error("saved state")]
    State(#[from] StateError),
    /// The guest has seen processor features that this host lacks.
    #[error("this host's processor lacks {}", missing.join(", "))]
    MissingFeatures {
        /// Their names.
        missing: Vec<String>,
    },
    /// The guest was saved on a processor of another vendor.
    #[error("saved on a processor by {guest}, this host's is by {host}")]
    WrongVendor {
        /// Vendor that the guest has seen.
        guest: String,
        /// Vendor of this host.
        host: String,
    },
    /// The guest's time stamp counter runs at a frequency that this host can neither match nor emulate.
    #[error(
        "time stamp counter ran at {guest_khz} kHz, this host's runs at {host_khz} kHz and cannot be scaled"
    )]
    TscFrequency {
        /// Frequency that the guest has seen.
        guest_khz: u32,
        /// Frequency of this host.
        host_khz: u32,
    },
    /// The saved extended register state is larger than this host's.
    #[error("extended register state of {saved_bytes} bytes, this host has room for {host_bytes}")]
    XsaveTooLarge {
        /// Bytes that were saved.
        saved_bytes: usize,
        /// Bytes that this host holds.
        host_bytes: usize,
    },
    /// The saved state is of a machine with other parts than the one it is to be restored into.
    #[error("{part} of the saved machine: {saved}; of this one: {here}")]
    Topology {
        /// Which part differs: memory map, vcpus or devices.
        part: &'static str,
        /// What was saved.
        saved: String,
        /// What the machine has.
        here: String,
    },
    /// A device could not be drained, saved or restored.
    #[error("device {name}")]
    Device {
        /// Name of the device.
        name: String,
        /// What went wrong.
        #[source]
        source: DeviceError,
    },
    /// The machine does not have the device that was asked for.
    #[error("the machine has no {name}")]
    MissingDevice {
        /// Name of the device.
        name: &'static str,
    },
    /// The file for serial output cannot be opened.
    #[error("serial output {}", path.display())]
    SerialOutput {
        /// Path of the file.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

/// How a caller decides what to do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something impossible.
    InvalidInput,
    /// This host cannot do it.
    Unsupported,
    /// The saved state breaks its schema.
    Corrupt,
    /// The saved state is valid, but not for this host.
    Incompatible,
    /// The operation does not fit the machine's run state.
    InvalidRunState,
    /// The operating system or KVM failed.
    System,
}

impl Error {
    /// Returns the kind of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidConfig { .. }
            | Self::InvalidDevices(_)
            | Self::OpenKernel { .. }
            | Self::Kernel { .. }
            | Self::OpenInitrd { .. }
            | Self::Initrd { .. }
            | Self::MissingDevice { .. }
            | Self::Builtin(_) => ErrorKind::InvalidInput,
            Self::KvmUnavailable(_) | Self::MissingCapability { .. } => ErrorKind::Unsupported,
            Self::State(_) => ErrorKind::Corrupt,
            Self::MissingFeatures { .. }
            | Self::WrongVendor { .. }
            | Self::TscFrequency { .. }
            | Self::XsaveTooLarge { .. }
            | Self::Topology { .. } => ErrorKind::Incompatible,
            Self::InvalidRunState { .. } => ErrorKind::InvalidRunState,
            Self::Kvm { .. }
            | Self::Vcpu { .. }
            | Self::MsrRefused { .. }
            | Self::Io { .. }
            | Self::Memory { .. }
            | Self::SerialOutput { .. }
            | Self::Device { .. } => ErrorKind::System,
        }
    }
}
