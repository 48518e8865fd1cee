//! The vhost-vsock device under test, activated without a transport.

use virtio::{Activation, Interrupt, QueueState, VhostVsock, VirtioDevice, VsockConfig};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{Result, rings};

/// Queues of the device: receive, transmit, events.
const QUEUES: usize = 3;
/// `VIRTIO_F_VERSION_1` (virtio 1.2, 6), all that the driver accepts.
const FEATURES: u64 = 1 << 32;

/// The device.
pub struct Device {
    device: VhostVsock,
    interrupt: Interrupt,
}

impl Device {
    /// Starts a device on empty rings; returns the events that kick its queues, too.
    pub fn start(cid: u32, memory: &GuestMemoryMmap) -> Result<(Self, Vec<EventFd>)> {
        let mut device = VhostVsock::new(&VsockConfig {
            cid,
            uds: None,
            vhost: true,
        })?;
        let mut kicks = Vec::new();
        let mut queues = Vec::new();
        for index in 0..QUEUES {
            let kick = EventFd::new(EFD_NONBLOCK)?;
            kicks.push(kick.try_clone()?);
            queues.push(rings::active_queue(index, kick)?);
        }
        let interrupt = Interrupt::new()?;
        device.activate(Activation {
            memory: memory.clone(),
            queues,
            interrupt: interrupt.clone(),
            features: FEATURES,
            paused: false,
        })?;
        Ok((Device { device, interrupt }, kicks))
    }

    /// Tells whether the device works no more.
    pub fn has_failed(&self) -> bool {
        self.interrupt.needs_reset()
    }

    /// Stops the kernel's worker, and checks that its positions are what the rings say.
    pub fn pause(&mut self) -> Result<()> {
        self.device.pause()?;
        let states: Vec<QueueState> = self.device.queue_states()?;
        // The kernel takes a chain and gives it back at once, so both positions are equal when it rests.
        match states.iter().find(|state| state.next_avail != state.next_used) {
            Some(state) => Err(format!("a stopped queue has requests under way: {state:?}").into()),
            None => Ok(()),
        }
    }

    /// Lets the kernel's worker go on.
    pub fn resume(&mut self) {
        self.device.resume();
    }
}
