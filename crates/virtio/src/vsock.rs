//! The socket device (virtio 1.2, 5.10): streams between programs of the guest and Unix sockets of the host.
//!
//! [`Vsock`] carries the packets itself; with [`crate::VhostVsock`] the host's kernel does. Both save the same
//! state, which is next to nothing: connections end at a restore, as [`notice`] says, and a machine that goes
//! on after a snapshot keeps its connections without losing a byte, because whatever has not been taken out
//! of a queue or a socket stays there.

mod connection;
mod handler;
mod mux;
pub(crate) mod notice;
mod packet;
mod sockets;

use ciborium::Value;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use crate::config::VsockConfig;
use crate::device::{VirtioDevice, from_value, read_config_bytes, to_value};
use crate::error::{Error, Result};
use crate::worker::{Work, Worker};

use self::handler::Handler;
use self::mux::Mux;
use self::notice::Notice;
use self::sockets::Listener;

/// Number of the queue with packets for the guest.
pub(crate) const RX_QUEUE: usize = 0;
/// Number of the queue with packets of the guest.
pub(crate) const TX_QUEUE: usize = 1;
/// Number of the queue with events for the guest.
pub(crate) const EVENT_QUEUE: usize = 2;
/// Largest sizes of the queues, as other monitors have them.
pub(crate) const QUEUE_SIZES: [u16; 3] = [128; 3];

/// The saved state of a socket device, whoever carries its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VsockState {
    /// Host port of the next connection from the host, if it is free then.
    pub(crate) next_host_port: u32,
}

/// A socket device whose packets are carried by this process.
#[derive(Debug)]
pub struct Vsock {
    worker: Worker<Handler>,
    cid: u32,
}

impl Vsock {
    /// Makes the device and listens on its Unix socket, if it has one.
    ///
    /// # Errors
    /// [`Error::Host`] where the socket cannot be had, [`Error::Io`] where the system is short of descriptors.
    pub fn new(config: &VsockConfig) -> Result<Self> {
        let listener = config.uds.as_deref().map(|path| {
            Listener::bind(path).map_err(|error| Error::Host {
                problem: format!("vsock socket {}: {error}", path.display()),
            })
        });
        let mux = Mux::new(config.cid, listener.transpose()?).map_err(Error::io("epoll"))?;
        Ok(Vsock {
            worker: Worker::new("virtio-vsock", Handler::new(mux)),
            cid: config.cid,
        })
    }
}

impl VirtioDevice for Vsock {
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
        // `guest_cid` is all there is (virtio 1.2, 5.10.4).
        read_config_bytes(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn worker(&self) -> &dyn Work {
        &self.worker
    }

    fn worker_mut(&mut self) -> &mut dyn Work {
        &mut self.worker
    }

    fn reset(&mut self) -> Result<()> {
        self.worker.reset()?;
        self.worker.with_handler(|handler| {
            handler.mux.forget_connections();
            handler.notice = Notice::Done;
        })
    }

    fn save(&self) -> Result<Value> {
        let next_host_port = self.worker.look(|handler| handler.mux.next_host_port())?;
        to_value(&VsockState { next_host_port })
    }

    fn restore(&mut self, version: u32, state: &Value) -> Result<()> {
        let state: VsockState = from_value(self.version(), version, state)?;
        self.worker.with_handler(|handler| {
            handler.mux.set_next_host_port(state.next_host_port);
            handler.notice = Notice::Due;
        })
    }
}

#[cfg(test)]
mod tests;
