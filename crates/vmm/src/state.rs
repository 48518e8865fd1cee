//! The saved state of a machine, without its memory.

mod bytes;
mod parts;
mod platform;
mod vcpu;
mod vm;

pub use bytes::ByteString;
pub use parts::{StateError, StatePart};
pub use platform::PlatformState;
pub use vcpu::*;
pub use vm::*;

/// The whole state of a machine but its memory, as of one instant.
#[derive(Clone, Debug, PartialEq)]
pub struct VmState {
    /// What all vCPUs share: memory map, interrupt controllers, timer, clock.
    pub vm: VmSection,
    /// The vCPUs, in the order of their numbers.
    pub vcpus: Vec<VcpuState>,
    /// The devices, in the order of the machine's topology.
    pub devices: Vec<DeviceState>,
    /// What the host must offer for the guest to go on.
    pub platform: PlatformState,
}

/// The state of one device.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceState {
    /// Name of the device, unique in the machine.
    pub name: String,
    /// Version of the state's schema.
    pub version: u32,
    /// The state, a CBOR map whose fields the device defines.
    pub state: ciborium::Value,
}
