//! The one place where it is decided whether vCPUs run.
//!
//! The machine's owner sets a *target*; each vCPU thread follows it and reports when it is parked, which
//! is when it touches neither its vCPU, nor a device, nor guest memory. All of that is under one lock:
//!
//! | target \ event | owner runs    | owner parks        | owner ends / a vCPU stops the machine |
//! |----------------|---------------|--------------------|---------------------------------------|
//! | Park           | Run, wake all | -                  | End, wake all                         |
//! | Run            | -             | Park, kick, wait   | End, kick                             |
//! | End            | error         | error              | -  (the first reason stays)           |
//!
//! Lock order: `inner` before `kicks`. A vCPU thread holds neither while it is in the guest.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use virtio::DiskEvent;
use vmm_sys_util::signal::Killable;

use crate::kick::{self, ImmediateExit};
use crate::run_state::StopReason;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Park,
    Run,
    End,
}

#[derive(Debug)]
struct Inner {
    target: Target,
    /// Threads that are not parked.
    active: usize,
    /// Set together with `Target::End`.
    reason: Option<StopReason>,
    /// What disks have told and nobody has taken yet.
    disk_events: VecDeque<DiskEvent>,
}

/// What is needed to kick one vCPU.
#[derive(Debug)]
struct Kick {
    immediate_exit: Arc<ImmediateExit>,
    thread: JoinHandle<()>,
}

/// Whether vCPUs run; shared by the machine and its vCPU threads.
#[derive(Debug)]
pub(crate) struct RunControl {
    inner: Mutex<Inner>,
    /// Signalled on every change of `inner`.
    changed: Condvar,
    kicks: Mutex<Vec<Kick>>,
    /// True while `inner.target` is not `Run`: what a vCPU thread looks at after each return from the
    /// guest, without the lock. It is set before the kick, so a kicked thread sees it.
    leave: AtomicBool,
}

impl RunControl {
    /// Creates the control of a machine whose vCPUs are to be parked.
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                target: Target::Park,
                active: 0,
                reason: None,
                disk_events: VecDeque::new(),
            }),
            changed: Condvar::new(),
            kicks: Mutex::default(),
            leave: AtomicBool::new(true),
        }
    }

    /// Makes a vCPU thread known, so that it can be kicked.
    pub(crate) fn add(&self, immediate_exit: Arc<ImmediateExit>, thread: JoinHandle<()>) {
        self.lock_kicks().push(Kick {
            immediate_exit,
            thread,
        });
    }

    /// For vCPU threads: waits until the vCPU may run. False means that the thread is to end.
    pub(crate) fn wait_to_run(&self, immediate_exit: &ImmediateExit) -> bool {
        let inner = self.lock();
        let mut inner = self
            .changed
            .wait_while(inner, |inner| inner.target == Target::Park)
            .unwrap_or_else(PoisonError::into_inner);
        if inner.target == Target::End {
            return false;
        }
        // Under the lock, so that no kick that belongs to a later target is wiped out.
        immediate_exit.set(false);
        inner.active += 1;
        true
    }

    /// For vCPU threads: tells whether the vCPU is to be parked.
    pub(crate) fn must_leave(&self) -> bool {
        self.leave.load(Ordering::SeqCst)
    }

    /// For vCPU threads: reports that the vCPU is parked; with a reason, that the machine is at its end.
    pub(crate) fn parked(&self, reason: Option<StopReason>) {
        let mut inner = self.lock();
        inner.active -= 1;
        if let Some(reason) = reason {
            self.end_locked(&mut inner, reason);
        }
        self.changed.notify_all();
    }

    /// Lets all vCPUs run.
    ///
    /// # Errors
    /// The reason for which the machine has ended.
    pub(crate) fn run(&self) -> Result<(), StopReason> {
        let mut inner = self.lock();
        if let Some(reason) = &inner.reason {
            return Err(reason.clone());
        }
        inner.target = Target::Run;
        self.leave.store(false, Ordering::SeqCst);
        self.changed.notify_all();
        Ok(())
    }

    /// Parks all vCPUs; none is active when this returns.
    ///
    /// # Errors
    /// The reason for which the machine has ended instead.
    pub(crate) fn park(&self) -> Result<(), StopReason> {
        let mut inner = self.lock();
        if inner.reason.is_none() {
            inner.target = Target::Park;
            self.leave.store(true, Ordering::SeqCst);
            self.kick_all();
        }
        let inner = self
            .changed
            .wait_while(inner, |inner| inner.active > 0)
            .unwrap_or_else(PoisonError::into_inner);
        inner.reason.clone().map_or(Ok(()), Err)
    }

    /// Ends the machine; a reason given earlier stays.
    pub(crate) fn end(&self, reason: StopReason) {
        let mut inner = self.lock();
        self.end_locked(&mut inner, reason);
        self.changed.notify_all();
    }

    /// Returns the reason for which the machine has ended.
    pub(crate) fn reason(&self) -> Option<StopReason> {
        self.lock().reason.clone()
    }

    /// Waits until the machine has ended and every vCPU is parked, or until `timeout` is over.
    pub(crate) fn wait_for_end(&self, timeout: Option<Duration>) -> Option<StopReason> {
        let running = |inner: &mut Inner| inner.reason.is_none() || inner.active > 0;
        let inner = self.lock();
        let inner = match timeout {
            None => self
                .changed
                .wait_while(inner, running)
                .unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                self.changed
                    .wait_timeout_while(inner, timeout, running)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        inner.reason.clone()
    }

    /// Keeps what a disk has told until the owner asks; what is kept already is not kept twice.
    pub(crate) fn tell(&self, event: DiskEvent) {
        let mut inner = self.lock();
        if !inner.disk_events.contains(&event) {
            inner.disk_events.push_back(event);
            self.changed.notify_all();
        }
    }

    /// Waits until a disk has told something, the machine has ended, or `timeout` is over.
    pub(crate) fn wait_disk_event(&self, timeout: Duration) -> Option<DiskEvent> {
        let nothing = |inner: &mut Inner| inner.disk_events.is_empty() && inner.reason.is_none();
        let (mut inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, nothing)
            .unwrap_or_else(PoisonError::into_inner);
        inner.disk_events.pop_front()
    }

    /// Joins all vCPU threads, after the machine has ended.
    pub(crate) fn join(&self) {
        let kicks = std::mem::take(&mut *self.lock_kicks());
        for kick in kicks {
            if kick.thread.join().is_err() {
                tracing::error!("a vcpu thread panicked");
            }
        }
    }

    fn end_locked(&self, inner: &mut Inner, reason: StopReason) {
        if inner.reason.is_none() {
            inner.reason = Some(reason);
            inner.target = Target::End;
            self.leave.store(true, Ordering::SeqCst);
            self.kick_all();
        }
    }

    fn kick_all(&self) {
        for kick in self.lock_kicks().iter() {
            kick.immediate_exit.set(true);
            if let Err(error) = kick.thread.kill(kick::signal()) {
                tracing::debug!(%error, "a vcpu thread is gone");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_kicks(&self) -> MutexGuard<'_, Vec<Kick>> {
        self.kicks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_disks_tell_is_heard_in_order_even_after_the_end() {
        let control = RunControl::new();
        let full = |disk: &str| DiskEvent::Full {
            disk: disk.to_owned(),
        };
        std::thread::scope(|scope| {
            let hearing = scope.spawn(|| control.wait_disk_event(Duration::MAX));
            control.tell(full("a"));
            assert_eq!(hearing.join().unwrap(), Some(full("a")));
        });
        control.tell(full("b"));
        control.tell(full("c"));
        control.tell(full("b"));
        control.end(StopReason::Requested);
        for expected in [Some(full("b")), Some(full("c")), None] {
            assert_eq!(control.wait_disk_event(Duration::MAX), expected);
        }
        assert_eq!(RunControl::new().wait_disk_event(Duration::ZERO), None);
    }
}
