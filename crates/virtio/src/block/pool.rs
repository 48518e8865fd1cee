//! The threads that carry requests out.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::block::Disk;
use crate::block::disk::Pass;
use crate::block::request::{Outcome, Request};

/// Requests of one disk that are carried out at a time. They spend their time waiting for the medium; what
/// the page cache answers keeps one thread busy.
const THREADS: usize = 4;

/// The threads of one disk, and the requests on their way to and from them.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    disk: Disk,
    memory: GuestMemoryMmap,
    /// Guards requests and outcomes; held for moves only.
    lists: Mutex<Lists>,
    /// Signalled when a request is added or the pool closes.
    added: Condvar,
    /// Signalled when a request is done.
    done: Condvar,
    /// Written when a request is done and the outcomes were taken before.
    done_event: EventFd,
}

#[derive(Default)]
struct Lists {
    requests: VecDeque<(Request, Pass)>,
    outcomes: Vec<(Outcome, Pass)>,
    closed: bool,
}

impl Pool {
    pub(super) fn new(disk: &Disk, memory: &GuestMemoryMmap) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            disk: disk.clone(),
            memory: memory.clone(),
            lists: Mutex::default(),
            added: Condvar::new(),
            done: Condvar::new(),
            done_event: EventFd::new(EFD_NONBLOCK)?,
        });
        let mut pool = Self {
            shared,
            threads: Vec::with_capacity(THREADS),
        };
        for number in 0..THREADS {
            let shared = Arc::clone(&pool.shared);
            let name = format!("blk-{}-{number}", disk.id());
            pool.threads
                .push(Builder::new().name(name).spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    /// Has a request carried out.
    pub(super) fn submit(&self, request: Request, pass: Pass) {
        self.shared.lock().requests.push_back((request, pass));
        self.shared.added.notify_one();
    }

    /// Returns the event that is written when there are outcomes.
    pub(super) fn done_event(&self) -> &EventFd {
        &self.shared.done_event
    }

    /// Takes the outcomes that are there.
    pub(super) fn take_outcomes(&self) -> Vec<(Outcome, Pass)> {
        std::mem::take(&mut self.shared.lock().outcomes)
    }

    /// Waits until there are outcomes, at most until `deadline`, and takes them.
    pub(super) fn wait_outcomes(&self, deadline: Instant) -> Vec<(Outcome, Pass)> {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let lists = self.shared.lock();
        let (mut lists, _) = self
            .shared
            .done
            .wait_timeout_while(lists, timeout, |lists| lists.outcomes.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut lists.outcomes)
    }

    /// Ends the threads, and waits for them if `idle`: no request is under way.
    pub(super) fn close(&mut self, idle: bool) {
        self.shared.lock().closed = true;
        self.shared.added.notify_all();
        for thread in self.threads.drain(..) {
            if idle && thread.join().is_err() {
                tracing::error!(disk = self.shared.disk.id(), "an I/O thread panicked");
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close(false);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("disk", &self.shared.disk)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn work(&self) {
        while let Some((request, pass)) = self.next() {
            let outcome = request.execute(&self.disk, &self.memory);
            let mut lists = self.lock();
            let first = lists.outcomes.is_empty();
            lists.outcomes.push((outcome, pass));
            drop(lists);
            self.done.notify_one();
            if first && let Err(error) = self.done_event.write(1) {
                // The counter is full: the worker is to look anyway.
                tracing::debug!(%error, "disk event");
            }
        }
    }

    /// Waits for a request; returns nothing when the pool is closed.
    fn next(&self) -> Option<(Request, Pass)> {
        let lists = self.lock();
        let mut lists = self
            .added
            .wait_while(lists, |lists| lists.requests.is_empty() && !lists.closed)
            .unwrap_or_else(PoisonError::into_inner);
        lists.requests.pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
