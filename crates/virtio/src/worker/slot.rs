//! The slot where a worker's thread and its owner hand each other the handler and the queues.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::DRAIN_TIMEOUT;
use crate::error::{Error, Result};
use crate::worker::Context;

/// What the owner gives beyond [`DRAIN_TIMEOUT`] to a thread that has noticed the timeout itself.
const GRACE: Duration = Duration::from_secs(1);

/// What the thread is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Run,
    Pause,
    Stop,
}

/// What moves between the thread and the slot.
#[derive(Debug)]
pub(super) struct Core<H> {
    pub(super) handler: H,
    pub(super) context: Context,
    /// Whether [`super::QueueHandler::start`] is still to be called.
    pub(super) fresh: bool,
}

impl<H> Core<H> {
    pub(super) fn new(handler: H, context: Context) -> Self {
        Self {
            handler,
            context,
            fresh: true,
        }
    }
}

/// The slot and the event that calls the thread to it.
#[derive(Debug)]
pub(super) struct Shared<H> {
    slot: Mutex<Slot<H>>,
    changed: Condvar,
    wake: Arc<EventFd>,
}

#[derive(Debug)]
struct Slot<H> {
    command: Command,
    /// There while the thread is parked.
    core: Option<Core<H>>,
    /// Why the thread could not park.
    failure: Option<Error>,
    /// Whether the owner is gone, so that the thread ends even if it cannot park.
    abandoned: bool,
}

impl<H> Shared<H> {
    pub(super) fn new(paused: bool) -> io::Result<Self> {
        let command = if paused { Command::Pause } else { Command::Run };
        Ok(Self {
            slot: Mutex::new(Slot {
                command,
                core: None,
                failure: None,
                abandoned: false,
            }),
            changed: Condvar::new(),
            wake: Arc::new(EventFd::new(EFD_NONBLOCK)?),
        })
    }

    pub(super) fn wake(&self) -> Arc<EventFd> {
        Arc::clone(&self.wake)
    }

    pub(super) fn command(&self) -> Command {
        self.lock().command
    }

    /// Puts the core in without a word to anyone; before the thread starts.
    pub(super) fn put(&self, core: Core<H>) {
        self.lock().core = Some(core);
    }

    pub(super) fn take(&self) -> Option<Core<H>> {
        self.lock().core.take()
    }

    /// Owner: has the thread park, for a pause or for good.
    pub(super) fn park(&self, command: Command) -> Result<()> {
        let mut slot = self.lock();
        slot.command = command;
        slot.failure = None;
        if let Err(source) = self.wake.write(1) {
            slot.command = Command::Run;
            return Err(Error::Io {
                operation: "eventfd",
                source,
            });
        }
        self.changed.notify_all();
        let waiting = |slot: &mut Slot<H>| slot.core.is_none() && slot.failure.is_none();
        let (mut slot, _) = self
            .changed
            .wait_timeout_while(slot, DRAIN_TIMEOUT + GRACE, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if slot.core.is_some() {
            return Ok(());
        }
        slot.command = Command::Run;
        Err(slot
            .failure
            .take()
            .unwrap_or(Error::Drain { after: DRAIN_TIMEOUT }))
    }

    /// Owner: sets the thread to work.
    pub(super) fn resume(&self) {
        self.lock().command = Command::Run;
        self.changed.notify_all();
    }

    /// Owner: has the thread end when it comes to look, without waiting for that.
    pub(super) fn abandon(&self) {
        let mut slot = self.lock();
        slot.command = Command::Stop;
        slot.abandoned = true;
        // A thread that cannot be woken now is woken by its next event.
        let _ = self.wake.write(1);
        self.changed.notify_all();
    }

    /// Owner: looks at the core of a parked thread.
    pub(super) fn with_core<R>(&self, look: impl FnOnce(&mut Core<H>) -> R) -> Result<R> {
        self.lock().core.as_mut().map(look).ok_or(Error::NotPaused)
    }

    /// Thread: could not complete what was under way; tells whether it is to work on.
    pub(super) fn fail(&self, error: Error) -> bool {
        let mut slot = self.lock();
        if !slot.abandoned {
            slot.command = Command::Run;
            slot.failure = Some(error);
            self.changed.notify_all();
        }
        !slot.abandoned
    }

    /// Thread: parks with `core` unless the command has been taken back, and waits for the next command.
    /// Returns the core to go on with, or nothing if the thread is to end.
    pub(super) fn wait(&self, core: Option<Core<H>>) -> Option<Core<H>> {
        let mut slot = self.lock();
        if let Some(core) = core {
            if slot.command == Command::Run {
                return Some(core);
            }
            slot.core = Some(core);
            self.changed.notify_all();
        }
        let paused = |slot: &mut Slot<H>| slot.command == Command::Pause;
        slot = self
            .changed
            .wait_while(slot, paused)
            .unwrap_or_else(PoisonError::into_inner);
        match slot.command {
            Command::Stop => None,
            Command::Run | Command::Pause => slot.core.take(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slot<H>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
