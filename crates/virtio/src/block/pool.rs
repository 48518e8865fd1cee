//! The threads that carry requests out.
//!
//! Flushes take one thread at a time, so that the others go on with reads and writes: whatever flushes come in
//! while one is under way are all answered by the next. A request that finds no room on the medium is kept, if that
//! is the disk's policy, until the machine's owner says that it is to be tried again.
//!
//! Lock order: `lists`, then the disk's gate.

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

/// A request that has not been given back.
type Admitted = (Request, Pass);

/// The threads of one disk, and the requests on their way to and from them.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    disk: Disk,
    memory: GuestMemoryMmap,
    /// Guards the lists; held for moves only.
    lists: Mutex<Lists>,
    /// Signalled when there is something to do or the pool closes.
    added: Condvar,
    /// Signalled when a request is done or kept.
    done: Condvar,
    /// Written when a request is done and the outcomes were taken before.
    done_event: EventFd,
}

#[derive(Default)]
struct Lists {
    requests: VecDeque<Admitted>,
    flushes: Vec<Admitted>,
    /// Whether a thread flushes.
    flushing: bool,
    /// Requests that found no room on the medium.
    kept: Vec<Admitted>,
    outcomes: Vec<(Outcome, Pass)>,
    closed: bool,
}

/// What a thread does next.
struct Work {
    /// One request, or flushes, which are all answered alike.
    requests: Vec<Admitted>,
    flush: bool,
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
        self.shared.lock().add((request, pass));
        self.shared.added.notify_one();
    }

    /// Has the requests carried out once more that found no room on the medium.
    pub(super) fn retry(&self) {
        let mut lists = self.shared.lock();
        for (request, mut pass) in std::mem::take(&mut lists.kept) {
            pass.set_waiting(false);
            lists.add((request, pass));
        }
        drop(lists);
        self.shared.added.notify_all();
    }

    /// Returns the number of requests that wait for room on the medium.
    pub(super) fn waiting(&self) -> usize {
        self.shared.lock().kept.len()
    }

    /// Forgets the requests that wait for room on the medium, and returns their number.
    pub(super) fn forget_waiting(&self) -> usize {
        std::mem::take(&mut self.shared.lock().kept).len()
    }

    /// Returns the event that is written when there are outcomes.
    pub(super) fn done_event(&self) -> &EventFd {
        &self.shared.done_event
    }

    /// Takes the outcomes that are there.
    pub(super) fn take_outcomes(&self) -> Vec<(Outcome, Pass)> {
        std::mem::take(&mut self.shared.lock().outcomes)
    }

    /// Waits until there are outcomes or all of `under_way` requests wait for room on the medium, at most until
    /// `deadline`, and takes the outcomes.
    pub(super) fn wait_outcomes(&self, under_way: usize, deadline: Instant) -> Vec<(Outcome, Pass)> {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let lists = self.shared.lock();
        let busy = |lists: &mut Lists| lists.outcomes.is_empty() && lists.kept.len() < under_way;
        let (mut lists, _) = self
            .shared
            .done
            .wait_timeout_while(lists, timeout, busy)
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut lists.outcomes)
    }

    /// Ends the threads, and waits for them if `idle`: none is at work.
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

impl Lists {
    fn add(&mut self, admitted: Admitted) {
        if admitted.0.is_flush() {
            self.flushes.push(admitted);
        } else {
            self.requests.push_back(admitted);
        }
    }

    /// Takes what can be done now.
    fn take(&mut self) -> Option<Work> {
        if !self.flushing && !self.flushes.is_empty() {
            self.flushing = true;
            let requests = std::mem::take(&mut self.flushes);
            return Some(Work {
                requests,
                flush: true,
            });
        }
        let requests = vec![self.requests.pop_front()?];
        Some(Work {
            requests,
            flush: false,
        })
    }
}

impl Shared {
    fn work(&self) {
        while let Some(work) = self.next() {
            let Some((first, _)) = work.requests.first() else {
                continue;
            };
            match first.carry_out(&self.disk, &self.memory) {
                Some(answer) => {
                    let answered = work.requests.into_iter();
                    let outcomes = answered
                        .map(|(request, pass)| (request.answer(&self.memory, answer), pass))
                        .collect();
                    self.complete(outcomes, work.flush);
                }
                None => self.keep(work.requests, work.flush),
            }
        }
    }

    /// Hands outcomes to the worker.
    fn complete(&self, mut outcomes: Vec<(Outcome, Pass)>, flush: bool) {
        let mut lists = self.lock();
        let first = lists.outcomes.is_empty();
        lists.outcomes.append(&mut outcomes);
        self.worked(lists, flush);
        if first && let Err(error) = self.done_event.write(1) {
            // The counter is full: the worker is to look anyway.
            tracing::debug!(%error, "disk event");
        }
    }

    /// Keeps requests for which the medium has no room.
    fn keep(&self, requests: Vec<Admitted>, flush: bool) {
        let mut lists = self.lock();
        let first = lists.kept.is_empty();
        for (request, mut pass) in requests {
            pass.set_waiting(true);
            lists.kept.push((request, pass));
        }
        self.worked(lists, flush);
        if first {
            self.disk.tell_full();
        }
    }

    /// Ends a piece of work; after a flush the next one may begin.
    fn worked(&self, mut lists: MutexGuard<'_, Lists>, flush: bool) {
        if flush {
            lists.flushing = false;
            if !lists.flushes.is_empty() {
                self.added.notify_one();
            }
        }
        drop(lists);
        self.done.notify_one();
    }

    /// Waits for something to do; returns nothing when the pool is closed.
    fn next(&self) -> Option<Work> {
        let mut lists = self.lock();
        loop {
            if let Some(work) = lists.take() {
                return Some(work);
            }
            if lists.closed {
                return None;
            }
            lists = self.added.wait(lists).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
