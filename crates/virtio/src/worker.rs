//! One thread for each device that serves queues, and how it is paused, resumed and stopped.
//!
//! ```text
//!            activate                pause, reset: drained
//!   resting ----------> at work <-----------------------------> parked
//!      ^                         resume                            |
//!      +-----------------------------------------------------------+ reset
//! ```
//!
//! At work, the handler and the queues belong to the thread. To park, the thread completes what is under way
//! and puts both into a slot where [`Worker`] reaches them; that is how a pause ends and how queues are saved.
//! The slot's lock is held for moves only, never while guest memory is touched: a thread that waits in a
//! page fault, which the one who pauses may have to serve, holds no lock. Whoever waits for a thread to park
//! waits for a bounded time, then takes the command back, and the thread works on.
#![warn(clippy::indexing_slicing, clippy::unwrap_used)]

mod context;
mod slot;
mod thread;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crate::device::Activation;
use crate::error::{Error, Result};
use crate::queue::{QueueState, Served};

pub use context::Context;
use slot::{Command, Core, Shared};

/// What a device does on its worker's thread.
///
/// An error from any of these means that the device cannot go on: it serves nothing more, and the driver is
/// told that it needs a reset.
pub trait QueueHandler: Send + 'static {
    /// Called before anything else after each activation; the place to watch descriptors.
    ///
    /// # Errors
    /// The handler cannot work.
    fn start(&mut self, context: &mut Context) -> Result<()> {
        let _ = context;
        Ok(())
    }

    /// Serves queue number `queue`, because it was kicked or work has been resumed.
    ///
    /// A call is to end soon, at latest after one round of the ring, so that commands are seen.
    ///
    /// # Errors
    /// The driver broke the rules or the host side failed beyond recovery.
    fn serve(&mut self, context: &mut Context, queue: usize) -> Result<Served>;

    /// A descriptor that was watched with `token` is ready; called again as long as it is.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    fn ready(&mut self, context: &mut Context, token: u32) -> Result<()> {
        let _ = (context, token);
        Ok(())
    }

    /// Completes the requests under way; nothing writes guest memory for this device when it returns.
    ///
    /// # Errors
    /// They do not complete before `deadline`; the handler works on.
    fn drain(&mut self, context: &mut Context, deadline: Instant) -> Result<()> {
        let _ = (context, deadline);
        Ok(())
    }

    /// Work begins, or goes on after a pause or an attempt at one; every queue is served next.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    fn resumed(&mut self, context: &mut Context) -> Result<()> {
        let _ = context;
        Ok(())
    }
}

/// What a device's transport asks of a worker, whatever its handler.
pub trait Work {
    /// Starts the thread and gives it handler and queues; parked if the activation says paused.
    ///
    /// # Errors
    /// The worker is active already, or the system gives no thread; the worker is as it was.
    fn activate(&mut self, activation: Activation) -> Result<()>;

    /// Parks the thread when the requests under way have completed; a worker at rest is left alone.
    ///
    /// # Errors
    /// They did not complete in time; the thread works on.
    fn pause(&mut self) -> Result<()>;

    /// Sets a parked thread to work; it looks at every queue first.
    fn resume(&mut self);

    /// Ends the thread when the requests under way have completed; the handler rests, the queues are gone.
    ///
    /// # Errors
    /// They did not complete in time; the thread works on.
    fn reset(&mut self) -> Result<()>;

    /// Returns the queues' states of a parked worker; of one at rest there are none.
    ///
    /// # Errors
    /// The worker is at work.
    fn queue_states(&self) -> Result<Vec<QueueState>>;
}

/// A device's handler, with the thread that it works on while the device is activated.
#[derive(Debug)]
pub struct Worker<H: QueueHandler> {
    name: String,
    place: Place<H>,
}

/// Where the handler is.
#[derive(Debug)]
enum Place<H> {
    Resting(H),
    Active(Active<H>),
    /// Between two of the others, within one call.
    Moving,
}

#[derive(Debug)]
struct Active<H> {
    shared: Arc<Shared<H>>,
    thread: JoinHandle<()>,
}

impl<H: QueueHandler> Worker<H> {
    /// Creates a worker at rest; `name` will be its thread's, cut to 15 bytes by the system.
    pub fn new(name: impl Into<String>, handler: H) -> Self {
        Self {
            name: name.into(),
            place: Place::Resting(handler),
        }
    }

    /// Lets `look` see and change the handler of a worker that is parked or at rest.
    ///
    /// # Errors
    /// The worker is at work.
    pub fn with_handler<R>(&mut self, look: impl FnOnce(&mut H) -> R) -> Result<R> {
        match &mut self.place {
            Place::Resting(handler) => Ok(look(handler)),
            Place::Active(active) => active.shared.with_core(|core| look(&mut core.handler)),
            Place::Moving => Err(Error::NotPaused),
        }
    }

    /// Lets `look` see the handler of a worker that is parked or at rest.
    ///
    /// # Errors
    /// The worker is at work.
    pub fn look<R>(&self, look: impl FnOnce(&H) -> R) -> Result<R> {
        match &self.place {
            Place::Resting(handler) => Ok(look(handler)),
            Place::Active(active) => active.shared.with_core(|core| look(&core.handler)),
            Place::Moving => Err(Error::NotPaused),
        }
    }
}

impl<H: QueueHandler> Work for Worker<H> {
    fn activate(&mut self, activation: Activation) -> Result<()> {
        if matches!(self.place, Place::Active(_)) {
            return Err(Error::Active);
        }
        let paused = activation.paused;
        let shared = Arc::new(Shared::new(paused).map_err(Error::io("eventfd"))?);
        let context = Context::new(activation, shared.wake())?;
        let Place::Resting(handler) = std::mem::replace(&mut self.place, Place::Moving) else {
            return Err(Error::Active);
        };
        shared.put(Core::new(handler, context));
        match thread::spawn(&self.name, Arc::clone(&shared)) {
            Ok(thread) => {
                self.place = Place::Active(Active { shared, thread });
                Ok(())
            }
            Err(source) => {
                if let Some(core) = shared.take() {
                    self.place = Place::Resting(core.handler);
                }
                Err(Error::Io {
                    operation: "thread",
                    source,
                })
            }
        }
    }

    fn pause(&mut self) -> Result<()> {
        match &self.place {
            Place::Active(active) => active.shared.park(Command::Pause),
            Place::Resting(_) | Place::Moving => Ok(()),
        }
    }

    fn resume(&mut self) {
        if let Place::Active(active) = &self.place {
            active.shared.resume();
        }
    }

    fn reset(&mut self) -> Result<()> {
        let Place::Active(active) = &self.place else {
            return Ok(());
        };
        active.shared.park(Command::Stop)?;
        let Place::Active(active) = std::mem::replace(&mut self.place, Place::Moving) else {
            return Ok(());
        };
        // The thread has given everything back and takes no lock any more.
        if active.thread.join().is_err() {
            tracing::error!(worker = self.name, "thread panicked");
        }
        if let Some(core) = active.shared.take() {
            self.place = Place::Resting(core.handler);
        }
        Ok(())
    }

    fn queue_states(&self) -> Result<Vec<QueueState>> {
        match &self.place {
            Place::Active(active) => active.shared.with_core(|core| {
                core.context
                    .queues
                    .iter()
                    .map(|queue| QueueState::of(&queue.queue))
                    .collect()
            }),
            Place::Resting(_) | Place::Moving => Ok(Vec::new()),
        }
    }
}

impl<H: QueueHandler> Drop for Worker<H> {
    fn drop(&mut self) {
        if let Err(error) = self.reset() {
            // The thread keeps what it uses alive and ends by itself once it is through.
            tracing::error!(worker = self.name, %error, "thread left behind");
            if let Place::Active(active) = &self.place {
                active.shared.abandon();
            }
        }
    }
}

#[cfg(test)]
mod tests;
