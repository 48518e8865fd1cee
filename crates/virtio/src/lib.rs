//! Virtio devices over MMIO whose whole state can be saved and restored.
//!
//! The crate knows the virtio standard, version 1.2, and nothing of KVM: a machine monitor maps the registers
//! of an [`MmioTransport`] into the guest's address space, connects its events, and has a disk or a network
//! interface. Devices serve their queues on threads of their own; [`MmioTransport::pause`] brings them to a
//! point where nothing is under way and guest memory stays as it is, which is when they are saved.
//!
//! What a driver puts into registers and rings is never trusted: at worst its device asks to be reset.

mod balloon;
pub mod block;
pub mod config;
mod console;
pub mod device;
mod discard;
#[cfg(test)]
mod driver;
mod error;
pub mod event;
mod interrupt;
mod net;
pub mod queue;
mod rng;
mod tap;
mod transport;
mod vhost;
mod vsock;
pub mod worker;

pub use balloon::{Balloon, BalloonDevice};
pub use block::{
    Block, BlockBackend, Disk, DiskEvent, DiskHold, FlattenOptions, FlattenProgress, FrozenDisk, FrozenFor,
    InternalSnapshot, LayerInfo, PreparedOverlay, RawFile,
};
pub use config::{
    BalloonConfig, ConsoleConfig, ConsoleOutput, DevicesConfig, DiskCache, DiskConfig, DiskFormat,
    InvalidDevices, MacAddress, NetConfig, OnFull, VsockConfig,
};
pub use console::{ConsoleDevice, ConsoleInput};
pub use device::{Activation, DRAIN_TIMEOUT, VirtioDevice};
pub use discard::{Discard, DiscardRoute, HostDiscard};
pub use error::Error;
pub use interrupt::Interrupt;
pub use net::Net;
pub use queue::{ActiveQueue, Buffers, Chain, QueueState, Segments, Served};
pub use rng::Rng;
pub use tap::TapError;
pub use transport::{MmioTransport, QUEUE_NOTIFY};
pub use vhost::{VhostNet, VhostVsock};
pub use vsock::Vsock;
pub use worker::{Context, QueueHandler, Work, Worker};
