//! A small KVM machine whose whole state can be saved and restored.
//!
//! The crate boots an unmodified Linux kernel, or any ELF kernel with a PVH entry point, on real vCPUs with
//! virtio devices, and offers the three verbs that a snapshot needs: [`Machine::pause`],
//! [`Machine::save_state`] and [`Machine::resume`], and the way back, [`Machine::restore`]. Guest memory
//! belongs to the caller: the machine never hears of snapshot files or how memory is captured. [`VmState`]
//! is everything but guest memory, in structures with named fields that are encoded as CBOR, so that a tool
//! that never met this crate can print a register.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use vmm::{Kernel, Machine, MachineConfig, create_guest_memory};
//!
//! let config = MachineConfig { kernel: Some(Kernel::File("vmlinuz".into())), ..MachineConfig::default() };
//! let machine = Machine::boot(&config, create_guest_memory(&config)?)?;
//! machine.resume()?;
//! machine.pause()?;
//! let state = machine.save_state()?;
//! let parts = state.to_parts()?;
//! # Ok(()) }
//! ```

mod acpi;
mod arch;
pub mod builtin;
mod config;
mod cpu_model;
mod crash;
mod device;
mod error;
mod kick;
mod layout;
mod machine;
mod memory;
mod run_control;
mod run_state;
mod state;
mod vcpu;

pub use config::{Backing, Kernel, MachineConfig, SerialOutput};
pub use cpu_model::{CpuModel, UnknownCpuModel};
pub use device::{Device, DeviceError};
pub use error::{Error, ErrorKind};
pub use machine::{Machine, RestoreOptions};
pub use memory::{MemoryRange, create_guest_memory, create_guest_memory_for, memory_ranges};
pub use run_state::{CrashReport, RunState, StopReason};
pub use state::{
    ByteString, Clock, CpuidLeaf, DebugRegs, DescriptorTable, DeviceState, IoApic, Pic, Pit, PitChannel,
    PlatformState, Regs, Segment, Sregs, StateError, StatePart, VcpuEvents, VcpuState, VmSection, VmState,
};
pub use virtio::{
    Balloon, BalloonConfig, ConsoleConfig, ConsoleOutput, DevicesConfig, Discard, DiscardRoute, Disk,
    DiskCache, DiskConfig, DiskEvent, DiskFormat, DiskHold, FlattenOptions, FlattenProgress, FrozenDisk,
    FrozenFor, InternalSnapshot, InvalidDevices, LayerInfo, MacAddress, NetConfig, OnFull, PreparedOverlay,
    VsockConfig,
};
