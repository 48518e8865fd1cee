//! The socket device whose packets the host's kernel carries.
//!
//! Programs of the host reach the guest by `AF_VSOCK` and its context id. The event queue stays with us: a
//! restored guest is told here, too, that its connections are gone.

use std::fmt;

use ciborium::Value;
use vhost::vhost_kern::vsock::Vsock as Kernel;
use vhost::vsock::VhostVsock as _;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use crate::config::VsockConfig;
use crate::device::{Activation, VirtioDevice, from_value, read_config_bytes, to_value};
use crate::error::Result;
use crate::vsock::notice::Notice;
use crate::vsock::{EVENT_QUEUE, QUEUE_SIZES, VsockState};
use crate::worker::{Context, Work, Worker};

use super::handler::{Backend, Handler};
use super::memory::MemorySlot;
use super::{failed, not_there};

const PATH: &str = "/dev/vhost-vsock";
/// Queues that the kernel serves: those of packets.
const KERNEL_QUEUES: usize = EVENT_QUEUE;

/// A socket device whose packets are carried by the host's kernel.
#[derive(Debug)]
pub struct VhostVsock {
    worker: Worker<Handler<Device>>,
    cid: u32,
    /// Kept for a restore as a device that gives out ports itself.
    next_host_port: u32,
}

struct Device {
    kernel: Kernel<MemorySlot>,
    notice: Notice,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("notice", &self.notice)
            .finish_non_exhaustive()
    }
}

impl Backend for Device {
    type Kernel = Kernel<MemorySlot>;

    fn kernel(&self) -> &Self::Kernel {
        &self.kernel
    }

    fn attach(&self) -> vhost::Result<()> {
        self.kernel.start()
    }

    fn detach(&self) -> vhost::Result<()> {
        self.kernel.stop()
    }

    fn serve(&mut self, context: &mut Context, queue: usize) -> Result<()> {
        let Context {
            memory,
            queues,
            interrupt,
            ..
        } = context;
        match queues.get_mut(queue) {
            Some(queue) if !self.notice.is_done() => self.notice.advance(memory, queue, interrupt),
            _ => Ok(()),
        }
    }

    fn may_attach(&self) -> bool {
        self.notice.is_done()
    }
}

impl VhostVsock {
    /// Makes the device and takes its context id, which no other guest of this host may have.
    ///
    /// # Errors
    /// [`crate::Error::Host`] where the kernel has no vhost-vsock or the context id is taken.
    pub fn new(config: &VsockConfig) -> Result<Self> {
        let slot = MemorySlot::default();
        let kernel = Kernel::new(slot.clone()).map_err(not_there(PATH, "vhost_vsock"))?;
        kernel
            .set_guest_cid(config.cid.into())
            .map_err(failed("take the context id (is it another guest's?)"))?;
        let device = Device {
            kernel,
            notice: Notice::Done,
        };
        Ok(VhostVsock {
            worker: Worker::new("vhost-vsock", Handler::new(device, slot)),
            cid: config.cid,
            next_host_port: 0,
        })
    }
}

impl VirtioDevice for VhostVsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&u64::from(self.cid).to_le_bytes(), offset, data);
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
            .with_handler(|handler| handler.take_kicks(&mut activation, KERNEL_QUEUES))??;
        self.worker.activate(activation)
    }

    fn reset(&mut self) -> Result<()> {
        self.worker.reset()?;
        self.worker
            .with_handler(|handler| handler.backend.notice = Notice::Done)
    }

    fn save(&self) -> Result<Value> {
        let next_host_port = self.next_host_port;
        to_value(&VsockState { next_host_port })
    }

    fn restore(&mut self, version: u32, state: &Value) -> Result<()> {
        let state: VsockState = from_value(self.version(), version, state)?;
        self.next_host_port = state.next_host_port;
        self.worker
            .with_handler(|handler| handler.backend.notice = Notice::Due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_vhost_says_which_module_is_missing() {
        if std::fs::metadata(PATH).is_ok() {
            eprintln!("SKIPPED: a_host_without_vhost_says_which_module_is_missing: this host has it");
            return;
        }
        let config = VsockConfig {
            cid: 3,
            uds: None,
            vhost: true,
        };
        let error = VhostVsock::new(&config).unwrap_err().to_string();
        assert!(error.contains(PATH) && error.contains("vhost_vsock"), "{error}");
    }
}
