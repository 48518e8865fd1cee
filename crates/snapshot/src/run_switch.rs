//! Who wants the machine to run: its user, and a save that holds it for a moment.
//!
//! A save holds the machine for a moment (`async`) or for as long as it takes (`stop`). Meanwhile a user may pause
//! or resume it as well. The switch makes the two independent: the machine runs when the user wants it to *and* no
//! save holds it, so that a user's pause outlives the save and a user's resume waits for its end.
//!
//! One lock guards who wants what. It is held while vCPUs park or start, never while a file is written.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::subject::Subject;

/// Lets a user and a save pause and resume the same machine without undoing each other's wish.
#[derive(Debug, Default)]
pub struct RunSwitch {
    wishes: Mutex<Wishes>,
}

#[derive(Debug, Default)]
struct Wishes {
    /// Whether a save holds the machine.
    held: bool,
    /// While held: whether the machine runs once the save lets go.
    run_after: bool,
}

impl RunSwitch {
    /// Makes a switch; all that pause and resume one machine share one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Pauses the machine on behalf of its user.
    ///
    /// # Errors
    /// The machine has stopped, or its devices cannot be drained.
    pub fn pause(&self, machine: &impl Subject) -> Result<()> {
        let mut wishes = self.lock();
        if wishes.held {
            wishes.run_after = false;
            return Ok(());
        }
        Ok(machine.pause()?)
    }

    /// Resumes the machine on behalf of its user; while a save holds it, once the save lets go.
    ///
    /// # Errors
    /// The machine has stopped.
    pub fn resume(&self, machine: &impl Subject) -> Result<()> {
        let mut wishes = self.lock();
        if wishes.held {
            wishes.run_after = true;
            return Ok(());
        }
        Ok(machine.resume()?)
    }

    /// Pauses the machine on behalf of a save, until the answer is released or dropped.
    pub(crate) fn hold<'a, S: Subject>(&'a self, machine: &'a S) -> Result<Hold<'a, S>> {
        let mut wishes = self.lock();
        let was_running = machine.is_running();
        let draining = Instant::now();
        machine.drain_devices()?;
        let drain = draining.elapsed();
        let since = Instant::now();
        if let Err(error) = machine.pause() {
            machine.release_devices();
            return Err(error.into());
        }
        *wishes = Wishes {
            held: true,
            run_after: was_running,
        };
        Ok(Hold {
            switch: self,
            machine,
            was_running,
            drain,
            since,
            park: since.elapsed(),
            released: false,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The machine, held by a save. Dropping it lets the machine run on if its user wants that.
#[derive(Debug)]
pub(crate) struct Hold<'a, S: Subject> {
    switch: &'a RunSwitch,
    machine: &'a S,
    was_running: bool,
    /// Completing the devices' requests, while the vCPUs ran.
    pub(crate) drain: Duration,
    /// When the vCPUs were asked to stand still.
    pub(crate) since: Instant,
    /// Until they did.
    pub(crate) park: Duration,
    released: bool,
}

impl<S: Subject> Hold<'_, S> {
    /// Whether the machine was running when it was held.
    pub(crate) fn was_running(&self) -> bool {
        self.was_running
    }

    /// Lets the machine run on, if its user wants that.
    pub(crate) fn release(mut self) -> Result<()> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<()> {
        let mut wishes = self.switch.lock();
        self.released = true;
        wishes.held = false;
        if wishes.run_after {
            Ok(self.machine.resume()?)
        } else {
            Ok(())
        }
    }
}

impl<S: Subject> Drop for Hold<'_, S> {
    fn drop(&mut self) {
        if !self.released
            && let Err(error) = self.let_go()
        {
            tracing::error!(%error, "the machine could not be resumed after a failed snapshot");
        }
    }
}
