//! Small helpers for threads: locks that survive a panic elsewhere, wake-ups, panic messages.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// Locks, also after a panic of another holder: every guarded value here is valid between statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lock for a thread that takes it over and over, which cannot keep others out by doing so.
#[derive(Debug, Default)]
pub(crate) struct Turnstile<T> {
    door: Mutex<()>,
    inside: Mutex<T>,
}

impl<T> Turnstile<T> {
    pub(crate) fn new(value: T) -> Self {
        Turnstile {
            door: Mutex::default(),
            inside: Mutex::new(value),
        }
    }

    /// The way in for one who comes often: anyone at the door goes first.
    pub(crate) fn pass(&self) -> MutexGuard<'_, T> {
        drop(lock(&self.door));
        lock(&self.inside)
    }

    /// The way in for one who comes seldom: nobody passes before.
    pub(crate) fn go_first(&self) -> MutexGuard<'_, T> {
        let _door = lock(&self.door);
        lock(&self.inside)
    }
}

/// Wakes those who wait for any of several things that may have happened meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rings: Mutex<Rings>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct Rings {
    count: u64,
    listeners: usize,
}

impl Bell {
    /// Says that something has happened. A lock and no more while nobody listens.
    pub(crate) fn ring(&self) {
        let mut rings = lock(&self.rings);
        rings.count += 1;
        if rings.listeners > 0 {
            self.rung.notify_all();
        }
    }

    /// How often it has rung; to be asked *before* looking at what may have happened.
    pub(crate) fn rings(&self) -> u64 {
        lock(&self.rings).count
    }

    /// Waits until it has rung more than `seen` times.
    pub(crate) fn wait(&self, seen: u64) {
        let mut rings = lock(&self.rings);
        rings.listeners += 1;
        while rings.count == seen {
            rings = self.rung.wait(rings).unwrap_or_else(PoisonError::into_inner);
        }
        rings.listeners -= 1;
    }
}

/// An eventfd that makes a `poll` return.
#[derive(Debug)]
pub(crate) struct Waker(OwnedFd);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Waker(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes the descriptor readable. The one possible failure is a counter that is already full.
    pub(crate) fn notify(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable again.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The text of a panic, as far as it is one.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
