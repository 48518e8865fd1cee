//! The worker of a vhost device: sets the kernel's rings up, starts and stops them, and relays interrupts.

use std::sync::atomic::Ordering;
use std::time::Instant;

use vhost::VhostBackend;
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::Activation;
use crate::error::{Error, Result};
use crate::event;
use crate::queue::{ActiveQueue, Served};
use crate::worker::{Context, QueueHandler};

use super::failed;
use super::memory::{MemorySlot, ring_addresses, table};

/// Feature bits of rings and transport (virtio 1.2, 2.2), which the kernel has to know as well.
const RING_FEATURES: u64 = ((1 << 41) - 1) & !((1 << 24) - 1);

/// What a vhost device does that is not common to all.
pub trait Backend: Send + 'static {
    /// The kernel's device.
    type Kernel: VhostBackend;

    /// Returns the kernel's device.
    fn kernel(&self) -> &Self::Kernel;

    /// Attaches the rings to the kernel's worker.
    ///
    /// # Errors
    /// What the kernel says.
    fn attach(&self) -> vhost::Result<()>;

    /// Detaches the rings: when it returns, the kernel's worker touches neither rings nor buffers.
    ///
    /// # Errors
    /// What the kernel says.
    fn detach(&self) -> vhost::Result<()>;

    /// Called when the driver is ready, before anything else.
    ///
    /// # Errors
    /// The host side cannot do what driver and device agreed on.
    fn agree(&mut self, features: u64) -> Result<()> {
        let _ = features;
        Ok(())
    }

    /// Serves queue number `queue`, which is not one of the kernel's.
    ///
    /// # Errors
    /// The driver broke the rules.
    fn serve(&mut self, context: &mut Context, queue: usize) -> Result<()> {
        let _ = (context, queue);
        Ok(())
    }

    /// Whether the kernel may serve its rings already.
    fn may_attach(&self) -> bool {
        true
    }
}

/// A vhost device on its worker.
#[derive(Debug)]
pub struct Handler<B> {
    pub(super) backend: B,
    slot: MemorySlot,
    rings: Vec<Ring>,
    owned: bool,
    attached: bool,
}

/// The events between one of the kernel's rings, the driver and us.
#[derive(Debug)]
struct Ring {
    /// The transport's event, read by the kernel.
    kick: EventFd,
    /// Written by the kernel when the driver wants an interrupt.
    call: EventFd,
    /// Written by the kernel when the ring contradicts itself.
    error: EventFd,
}

impl<B: Backend> Handler<B> {
    /// A handler for a device of the kernel with nothing set up, which looks addresses up in `slot`.
    pub(super) fn new(backend: B, slot: MemorySlot) -> Self {
        Handler {
            backend,
            slot,
            rings: Vec::new(),
            owned: false,
            attached: false,
        }
    }

    /// Takes the kicks of the first `count` queues for the kernel. The worker gets events that nobody writes in
    /// their place, so that it is not woken by every kick.
    ///
    /// # Errors
    /// The system gives no more event descriptors.
    pub(super) fn take_kicks(&mut self, activation: &mut Activation, count: usize) -> Result<()> {
        let new_event = || EventFd::new(EFD_NONBLOCK).map_err(Error::io("eventfd"));
        self.rings.clear();
        for queue in activation.queues.iter_mut().take(count) {
            let kick = std::mem::replace(&mut queue.kick, new_event()?);
            let ring = Ring {
                kick,
                call: new_event()?,
                error: new_event()?,
            };
            self.rings.push(ring);
        }
        Ok(())
    }

    fn set_up(&mut self, context: &Context) -> Result<()> {
        self.backend.agree(context.features)?;
        let backend = self.backend.kernel();
        if !self.owned {
            backend.set_owner().map_err(failed("become the owner"))?;
            self.owned = true;
        }
        let known = backend.get_features().map_err(failed("ask for features"))?;
        let missing = context.features & RING_FEATURES & !known;
        if missing != 0 {
            return Err(Error::Host {
                problem: format!("vhost: the kernel lacks features {missing:#x}"),
            });
        }
        backend
            .set_features(context.features & known)
            .map_err(failed("set features"))?;
        self.slot.set(&context.memory);
        backend
            .set_mem_table(&table(&context.memory))
            .map_err(failed("set the memory table"))?;
        for (ring, queue) in self.rings.iter().zip(&context.queues) {
            set_up_ring(backend, ring, queue, context)?;
        }
        Ok(())
    }

    fn attach(&mut self) -> Result<()> {
        if self.attached || !self.backend.may_attach() {
            return Ok(());
        }
        self.backend.attach().map_err(failed("start"))?;
        self.attached = true;
        // Kicks that came while no ring was attached have been read by nobody.
        for ring in &self.rings {
            kick(ring);
        }
        Ok(())
    }

    /// Detaches the rings and learns how far the kernel has come.
    fn detach(&mut self, context: &mut Context) -> Result<()> {
        self.backend.detach().map_err(failed("stop"))?;
        self.attached = false;
        for (index, queue) in context.queues.iter_mut().enumerate().take(self.rings.len()) {
            let base = self.backend.kernel().get_vring_base(index);
            let base = base.map_err(failed("ask for the position in a ring"))?;
            queue
                .queue
                .set_next_avail(u16::try_from(base & 0xffff).unwrap_or_default());
            let used = queue.queue.used_idx(&context.memory, Ordering::Acquire);
            let used = used.map_err(|source| Error::Queue { queue: index, source })?;
            queue.queue.set_next_used(used.0);
        }
        // The last interrupts belong to what was done before: they are raised before the state is saved.
        self.relay(context);
        Ok(())
    }

    fn relay(&self, context: &Context) {
        for (index, ring) in self.rings.iter().enumerate() {
            if ring.call.read().is_ok() {
                context.interrupt.signal_queue(index);
            }
        }
    }

    fn check(&self) -> Result<()> {
        let broken = self.rings.iter().position(|ring| ring.error.read().is_ok());
        match broken {
            Some(queue) => Err(Error::Protocol {
                queue,
                problem: "the kernel cannot use the ring",
            }),
            None => Ok(()),
        }
    }
}

impl<B: Backend> QueueHandler for Handler<B> {
    fn start(&mut self, context: &mut Context) -> Result<()> {
        for (token, ring) in (0..).zip(&self.rings) {
            context.watch(event::descriptor(&ring.call), 2 * token)?;
            context.watch(event::descriptor(&ring.error), 2 * token + 1)?;
        }
        self.set_up(context)
    }

    fn resumed(&mut self, _context: &mut Context) -> Result<()> {
        self.attach()
    }

    fn serve(&mut self, context: &mut Context, queue: usize) -> Result<Served> {
        if queue >= self.rings.len() {
            self.backend.serve(context, queue)?;
            self.attach()?;
        }
        Ok(Served::Done)
    }

    fn ready(&mut self, context: &mut Context, _token: u32) -> Result<()> {
        self.relay(context);
        self.check()
    }

    fn drain(&mut self, context: &mut Context, _deadline: Instant) -> Result<()> {
        if self.attached {
            self.detach(context)
        } else {
            Ok(())
        }
    }
}

fn set_up_ring(
    kernel: &impl VhostBackend,
    ring: &Ring,
    queue: &ActiveQueue,
    context: &Context,
) -> Result<()> {
    let index = queue.index;
    if !queue.queue.ready() {
        return Err(Error::Protocol {
            queue: index,
            problem: "left out by the driver",
        });
    }
    let addresses = ring_addresses(&context.memory, &queue.queue, index)?;
    kernel
        .set_vring_num(index, queue.queue.size())
        .map_err(failed("set the size of a ring"))?;
    kernel
        .set_vring_base(index, queue.queue.next_avail())
        .map_err(failed("set the position in a ring"))?;
    kernel
        .set_vring_addr(index, &addresses)
        .map_err(failed("set the addresses of a ring"))?;
    kernel
        .set_vring_call(index, &ring.call)
        .map_err(failed("set a call event"))?;
    kernel
        .set_vring_err(index, &ring.error)
        .map_err(failed("set an error event"))?;
    kernel
        .set_vring_kick(index, &ring.kick)
        .map_err(failed("set a kick event"))
}

fn kick(ring: &Ring) {
    // A counter that is full is a kick that is pending.
    let _ = ring.kick.write(1);
}
