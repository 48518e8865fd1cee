//! What a handler works with: memory, queues, interrupt, and the descriptors that wake it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::device::Activation;
use crate::error::{Error, Result};
use crate::event::{clear, descriptor};
use crate::interrupt::Interrupt;
use crate::queue::ActiveQueue;

/// Most events taken from the system at once.
const MAX_EVENTS: usize = 64;
/// Set in the tokens of this module's own descriptors, which handlers' tokens of 32 bits never have.
const OWN: u64 = 1 << 63;
const WAKE: u64 = OWN | 1 << 62;

/// The surroundings of a [`super::QueueHandler`].
#[derive(Debug)]
pub struct Context {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// All queues by number; those that the driver left out are not ready.
    pub queues: Vec<ActiveQueue>,
    /// The way to the driver.
    pub interrupt: Interrupt,
    /// Feature bits that driver and device agreed on.
    pub features: u64,
    /// Queues to be served at the next opportunity.
    pub(super) pending: Vec<bool>,
    epoll: OwnedFd,
    wake: Arc<EventFd>,
}

/// Why the thread woke up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// There is a command.
    Wake,
    /// The driver has kicked this queue.
    Kick(usize),
    /// A descriptor of the handler is ready.
    Ready(u32),
}

impl Context {
    pub(super) fn new(activation: Activation, wake: Arc<EventFd>) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| Error::io("epoll")(e.into()))?;
        add(&epoll, descriptor(&wake), WAKE)?;
        for (index, queue) in activation.queues.iter().enumerate() {
            add(&epoll, descriptor(&queue.kick), OWN | index as u64)?;
        }
        Ok(Self {
            pending: vec![true; activation.queues.len()],
            memory: activation.memory,
            queues: activation.queues,
            interrupt: activation.interrupt,
            features: activation.features,
            epoll,
            wake,
        })
    }

    /// Calls [`super::QueueHandler::ready`] with `token` whenever `descriptor` can be read from.
    ///
    /// A descriptor that is closed is watched no more.
    ///
    /// # Errors
    /// It is watched already or cannot be.
    pub fn watch(&self, descriptor: impl AsFd, token: u32) -> Result<()> {
        add(&self.epoll, descriptor.as_fd(), u64::from(token))
    }

    /// Chooses whether `descriptor`, which is watched, wakes the handler when it can be read from, and when it
    /// can be written to. With neither it wakes it only when it has failed or was hung up.
    ///
    /// # Errors
    /// It is not watched.
    pub fn rewatch(&self, descriptor: impl AsFd, token: u32, read: bool, write: bool) -> Result<()> {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, read);
        flags.set(epoll::EventFlags::OUT, write);
        let data = epoll::EventData::new_u64(u64::from(token));
        epoll::modify(&self.epoll, descriptor, data, flags).map_err(|e| Error::io("epoll")(e.into()))
    }

    /// Watches `descriptor` no more.
    ///
    /// # Errors
    /// It is not watched.
    pub fn unwatch(&self, descriptor: impl AsFd) -> Result<()> {
        epoll::delete(&self.epoll, descriptor).map_err(|e| Error::io("epoll")(e.into()))
    }

    /// Has queue number `queue` served at the next opportunity, as if it had been kicked.
    pub fn serve_soon(&mut self, queue: usize) {
        if let Some(pending) = self.pending.get_mut(queue) {
            *pending = true;
        }
    }

    /// Tells whether driver and device agreed on feature `bit`.
    #[must_use]
    pub fn has_feature(&self, bit: u32) -> bool {
        self.features >> bit & 1 == 1
    }

    /// Waits for events, or looks for them without waiting.
    pub(super) fn events(&self, wait: bool) -> Result<Vec<Event>> {
        let mut buffer = Vec::with_capacity(MAX_EVENTS);
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let timeout = if wait { None } else { Some(&zero) };
        match epoll::wait(&self.epoll, spare_capacity(&mut buffer), timeout) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::io("epoll")(error.into())),
        }
        Ok(buffer.iter().map(|event| self.event(event.data.u64())).collect())
    }

    /// Waits until there is a command, deaf to everything else.
    pub(super) fn wait_for_command(&self) -> Result<()> {
        let mut descriptors = [PollFd::from_borrowed_fd(descriptor(&self.wake), PollFlags::IN)];
        match poll(&mut descriptors, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::io("poll")(error.into())),
        }
        clear(&self.wake);
        Ok(())
    }

    /// Tells what an event stands for, and makes the descriptors of this module unready.
    fn event(&self, data: u64) -> Event {
        if data == WAKE {
            clear(&self.wake);
            return Event::Wake;
        }
        if data & OWN == 0 {
            return u32::try_from(data).map_or(Event::Wake, Event::Ready);
        }
        let index = (data & !OWN) as usize;
        if let Some(queue) = self.queues.get(index) {
            clear(&queue.kick);
        }
        Event::Kick(index)
    }
}

fn add(epoll: &OwnedFd, descriptor: BorrowedFd<'_>, token: u64) -> Result<()> {
    let data = epoll::EventData::new_u64(token);
    epoll::add(epoll, descriptor, data, epoll::EventFlags::IN).map_err(|e| Error::io("epoll")(e.into()))
}
