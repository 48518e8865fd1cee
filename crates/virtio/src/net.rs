//! The network device (virtio 1.2, 5.1): one pair of queues between the guest and a tap interface of the host.
//!
//! [`Net`] moves the packets itself; with [`crate::VhostNet`] the host's kernel does. Both offer the same
//! features and save the same state, so that a snapshot of one can be restored as the other. The guest's
//! address is part of the state, the tap interface is not: a restored machine gets the one in its
//! configuration, with the offloads set again that the driver had chosen. That the network learns of a
//! restored guest's new place is left to the guest.

mod handler;

use ciborium::Value;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
};

use crate::config::{MacAddress, NetConfig};
use crate::device::{VirtioDevice, from_value, read_config_bytes, to_value};
use crate::error::{Error, Result};
use crate::tap::{Offloads, Tap, TapError};
use crate::worker::{Work, Worker};

use self::handler::Handler;

/// Number of the queue with packets for the guest.
pub(crate) const RX_QUEUE: usize = 0;
/// Number of the queue with packets of the guest.
pub(crate) const TX_QUEUE: usize = 1;
/// Largest sizes of the queues, as other monitors have them.
pub(crate) const QUEUE_SIZES: [u16; 2] = [256; 2];

/// Smallest MTU that a driver can be told (virtio 1.2, 5.1.4.1).
const MIN_MTU: u16 = 68;

/// What the device offers. Segmentation of UDP (UFO) is left out: the kernel has given it up.
const FEATURES: [u32; 9] = [
    VIRTIO_NET_F_CSUM,
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MRG_RXBUF,
];

/// What the guest knows of its interface, and the saved state of a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetState {
    /// The guest's address.
    pub(crate) mac: MacAddress,
    /// Longest packet without Ethernet header, in bytes, that the guest should send.
    pub(crate) mtu: u16,
}

impl NetState {
    /// Attaches to the tap interface, and finds out what the guest is to know of it.
    pub(crate) fn open(config: &NetConfig) -> Result<(Self, Tap)> {
        let tap = Tap::open(&config.tap).map_err(|error| host_error(&error))?;
        let mtu = tap.mtu().map_err(|error| host_error(&error))?;
        let mac = config.mac.map_or_else(random_mac, Ok)?;
        let mtu = mtu.max(MIN_MTU);
        Ok((NetState { mac, mtu }, tap))
    }

    /// The feature bits that both devices offer.
    pub(crate) fn features() -> u64 {
        FEATURES.iter().fold(0, |bits, bit| bits | 1 << bit)
    }

    pub(crate) fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `mac`, `status`, `max_virtqueue_pairs`, `mtu` (virtio 1.2, 5.1.4); the middle two are not offered.
        let mut space = [0; 12];
        let (mac, rest) = space.split_at_mut(6);
        mac.copy_from_slice(&self.mac.0);
        rest[4..].copy_from_slice(&self.mtu.to_le_bytes());
        read_config_bytes(&space, offset, data);
    }

    /// Takes over what a restored guest knows.
    pub(crate) fn restore(&mut self, known: u32, version: u32, state: &Value, tap: &str) -> Result<()> {
        let saved: NetState = from_value(known, version, state)?;
        if saved.mtu < MIN_MTU {
            return Err(Error::State {
                problem: format!("an MTU of {} bytes", saved.mtu),
            });
        }
        if saved.mtu > self.mtu {
            tracing::warn!(
                tap,
                mtu = self.mtu,
                guest_mtu = saved.mtu,
                "packets of the guest are too long"
            );
        }
        *self = saved;
        Ok(())
    }
}

/// Sets the offloads that driver and device agreed on.
pub(crate) fn set_offloads(tap: &Tap, features: u64) -> Result<()> {
    let agreed = |bit: u32| features >> bit & 1 == 1;
    let offloads = Offloads {
        checksum: agreed(VIRTIO_NET_F_GUEST_CSUM),
        tso4: agreed(VIRTIO_NET_F_GUEST_TSO4),
        tso6: agreed(VIRTIO_NET_F_GUEST_TSO6),
    };
    tap.set_offloads(offloads).map_err(|error| host_error(&error))
}

/// An address of the locally administered kind (IEEE 802, 8.4): six random bytes but for two bits.
fn random_mac() -> Result<MacAddress> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes).map_err(|error| Error::Host {
        problem: format!("no random address: {error}"),
    })?;
    bytes[0] = bytes[0] & 0b1111_1100 | 0b10;
    Ok(MacAddress(bytes))
}

fn host_error(error: &TapError) -> Error {
    let cause = std::error::Error::source(error);
    let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
    Error::Host {
        problem: format!("{error}{cause}"),
    }
}

/// A network device whose packets are moved by this process.
#[derive(Debug)]
pub struct Net {
    worker: Worker<Handler>,
    known: NetState,
    tap: String,
}

impl Net {
    /// Makes the device and attaches to its tap interface.
    ///
    /// # Errors
    /// [`Error::Host`] where the interface cannot be had, with its name.
    pub fn new(config: &NetConfig) -> Result<Self> {
        let (known, tap) = NetState::open(config)?;
        Ok(Net {
            worker: Worker::new(format!("net-{}", config.id), Handler::new(tap)),
            known,
            tap: config.tap.clone(),
        })
    }
}

impl VirtioDevice for Net {
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

    fn reset(&mut self) -> Result<()> {
        self.worker.reset()?;
        self.worker.with_handler(Handler::forget_packet)
    }

    fn save(&self) -> Result<Value> {
        to_value(&self.known)
    }

    fn restore(&mut self, version: u32, state: &Value) -> Result<()> {
        self.known.restore(self.version(), version, state, &self.tap)
    }
}

#[cfg(test)]
mod tests;
