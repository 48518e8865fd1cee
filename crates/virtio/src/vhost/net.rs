//! The network device whose packets the host's kernel moves, between the rings and the tap interface.

use std::fmt;

use ciborium::Value;
use vhost::net::VhostNet as _;
use vhost::vhost_kern::net::Net as Kernel;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

use crate::config::NetConfig;
use crate::device::{Activation, VirtioDevice, to_value};
use crate::error::Result;
use crate::net::{NetState, QUEUE_SIZES, RX_QUEUE, TX_QUEUE, set_offloads};
use crate::tap::Tap;
use crate::worker::{Work, Worker};

use super::handler::{Backend, Handler};
use super::memory::MemorySlot;
use super::not_there;

const PATH: &str = "/dev/vhost-net";

/// A network device whose packets are moved by the host's kernel.
#[derive(Debug)]
pub struct VhostNet {
    worker: Worker<Handler<Device>>,
    known: NetState,
    tap: String,
}

struct Device {
    kernel: Kernel<MemorySlot>,
    tap: Tap,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("tap", &self.tap)
            .finish_non_exhaustive()
    }
}

impl Backend for Device {
    type Kernel = Kernel<MemorySlot>;

    fn kernel(&self) -> &Self::Kernel {
        &self.kernel
    }

    fn attach(&self) -> vhost::Result<()> {
        self.kernel.set_backend(RX_QUEUE, Some(self.tap.file()))?;
        self.kernel.set_backend(TX_QUEUE, Some(self.tap.file()))
    }

    fn detach(&self) -> vhost::Result<()> {
        self.kernel.set_backend(RX_QUEUE, None)?;
        self.kernel.set_backend(TX_QUEUE, None)
    }

    fn agree(&mut self, features: u64) -> Result<()> {
        set_offloads(&self.tap, features)
    }
}

impl VhostNet {
    /// Makes the device and attaches to its tap interface.
    ///
    /// # Errors
    /// [`crate::Error::Host`] where the kernel has no vhost-net or the interface cannot be had.
    pub fn new(config: &NetConfig) -> Result<Self> {
        let slot = MemorySlot::default();
        let kernel = Kernel::new(slot.clone()).map_err(not_there(PATH, "vhost_net"))?;
        let (known, tap) = NetState::open(config)?;
        Ok(VhostNet {
            worker: Worker::new(
                format!("vhost-{}", config.id),
                Handler::new(Device { kernel, tap }, slot),
            ),
            known,
            tap: config.tap.clone(),
        })
    }
}

impl VirtioDevice for VhostNet {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        NetState::features()
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.known.read_config(offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn worker(&self) -> &dyn Work {
        &self.worker
    }

    fn worker_mut(&mut self) -> &mut dyn Work {
        &mut self.worker
    }

    fn activate(&mut self, mut activation: Activation) -> Result<()> {
        self.worker
            .with_handler(|handler| handler.take_kicks(&mut activation, QUEUE_SIZES.len()))??;
        self.worker.activate(activation)
    }

    fn save(&self) -> Result<Value> {
        to_value(&self.known)
    }

    fn restore(&mut self, version: u32, state: &Value) -> Result<()> {
        self.known.restore(self.version(), version, state, &self.tap)
    }
}
