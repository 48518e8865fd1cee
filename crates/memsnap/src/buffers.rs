//! Bounded memory for chunks that were copied before a write, and their queue to the walkers.
//!
//! Two locks, each held for a few instructions and never together with another: the fault handler can
//! always get on, whatever a walker is doing in the sink.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::sync::{Bell, Waker, lock};

/// Hands out buffers of one chunk each, up to a bound.
#[derive(Debug)]
pub(crate) struct BufferPool {
    chunk_size: usize,
    limit: usize,
    waker: Arc<Waker>,
    /// Rung when a buffer comes back.
    bell: Arc<Bell>,
    state: Mutex<PoolState>,
}

#[derive(Debug, Default)]
struct PoolState {
    /// Last in, first out: the buffer used last is the one in the processor's cache.
    free: Vec<Box<[u8]>>,
    in_use: usize,
    high_water: usize,
    /// The handler was refused and wants to be woken.
    awaited: bool,
}

impl BufferPool {
    /// As many buffers as fit `bytes`, at least one; allocated when first needed.
    pub(crate) fn new(chunk_size: usize, bytes: u64, waker: &Arc<Waker>, bell: &Arc<Bell>) -> Self {
        let limit = usize::try_from(bytes).unwrap_or(usize::MAX) / chunk_size;
        BufferPool {
            chunk_size,
            limit: limit.max(1),
            waker: Arc::clone(waker),
            bell: Arc::clone(bell),
            state: Mutex::default(),
        }
    }

    /// A buffer of a chunk's size, its content arbitrary; `None` wakes the handler once there is one.
    pub(crate) fn take(&self) -> Option<Box<[u8]>> {
        let mut state = lock(&self.state);
        if state.in_use == self.limit {
            state.awaited = true;
            return None;
        }
        Some(self.hand_out(state))
    }

    /// As `take`, for one whom nobody waits for: half of the buffers are kept for writers. `None` wakes
    /// nobody; the bell rings whenever a buffer comes back.
    pub(crate) fn take_spare(&self) -> Option<Box<[u8]>> {
        let state = lock(&self.state);
        (state.in_use < self.limit / 2).then(|| self.hand_out(state))
    }

    fn hand_out(&self, mut state: MutexGuard<'_, PoolState>) -> Box<[u8]> {
        state.in_use += 1;
        state.high_water = state.high_water.max(state.in_use);
        let free = state.free.pop();
        drop(state);
        free.unwrap_or_else(|| vec![0; self.chunk_size].into_boxed_slice())
    }

    /// Takes a buffer back.
    pub(crate) fn give(&self, buffer: Box<[u8]>) {
        let mut state = lock(&self.state);
        state.in_use -= 1;
        state.free.push(buffer);
        let awaited = std::mem::take(&mut state.awaited);
        // The handler may run the moment it is woken, and would find the lock taken.
        drop(state);
        if awaited {
            self.waker.notify();
        }
        self.bell.ring();
    }

    /// The bound in bytes.
    pub(crate) fn limit_bytes(&self) -> u64 {
        (self.limit * self.chunk_size) as u64
    }

    /// Most bytes that were in use at once.
    pub(crate) fn high_water_bytes(&self) -> u64 {
        (lock(&self.state).high_water * self.chunk_size) as u64
    }
}

/// A chunk's content at the point in time, taken before it changes.
#[derive(Debug)]
pub(crate) struct FaultCopy {
    pub(crate) chunk: u64,
    /// `None` for a chunk that was not there: it is zero.
    pub(crate) buffer: Option<Box<[u8]>>,
}

/// Copies on their way from the fault handler to the walkers.
#[derive(Debug, Default)]
pub(crate) struct CopyQueue {
    copies: Mutex<VecDeque<FaultCopy>>,
    changed: Condvar,
}

impl CopyQueue {
    pub(crate) fn push(&self, copy: FaultCopy) {
        lock(&self.copies).push_back(copy);
        self.changed.notify_one();
    }

    pub(crate) fn pop(&self) -> Option<FaultCopy> {
        lock(&self.copies).pop_front()
    }

    /// Waits for a copy; `None` once `ended` holds. Whoever makes `ended` true calls `wake_all`.
    pub(crate) fn wait(&self, ended: impl Fn() -> bool) -> Option<FaultCopy> {
        let mut copies = lock(&self.copies);
        loop {
            if let Some(copy) = copies.pop_front() {
                return Some(copy);
            }
            if ended() {
                return None;
            }
            copies = self.changed.wait(copies).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes every waiter look again. Taking the lock keeps the wake-up from falling between a waiter's
    /// look and its sleep.
    pub(crate) fn wake_all(&self) {
        let _copies = lock(&self.copies);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(bytes: u64) -> BufferPool {
        BufferPool::new(4096, bytes, &Arc::new(Waker::new().unwrap()), &Arc::default())
    }

    #[test]
    fn pool_never_exceeds_its_bound_and_reports_the_most_used() {
        let pool = pool(3 * 4096 + 100);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken.len(), 3);
        for buffer in taken {
            pool.give(buffer);
        }
        assert!(pool.take().is_some());
        assert_eq!(pool.high_water_bytes(), 3 * 4096);
    }

    #[test]
    fn a_bound_below_one_chunk_still_gives_one_buffer() {
        let pool = pool(0);
        let only = pool.take().unwrap();
        assert!(pool.take().is_none());
        pool.give(only);
        assert!(pool.take().is_some());
    }

    #[test]
    fn half_of_the_buffers_are_not_spare() {
        let pool = pool(5 * 4096);
        let spare: Vec<_> = std::iter::from_fn(|| pool.take_spare()).collect();
        assert_eq!(spare.len(), 2);
        assert_eq!(std::iter::from_fn(|| pool.take()).count(), 3);
    }

    #[test]
    fn waiting_ends_when_the_end_is_announced() {
        let (queue, ended) = (CopyQueue::default(), std::sync::atomic::AtomicBool::new(false));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| queue.wait(|| ended.load(std::sync::atomic::Ordering::SeqCst)));
            ended.store(true, std::sync::atomic::Ordering::SeqCst);
            queue.wake_all();
            assert!(waiter.join().unwrap().is_none());
        });
    }
}
