//! Locks on ranges of the guest's disk, shared or exclusive, granted in the order in which they were asked for.
//!
//! A thread holds at most one range of an engine at a time, so there is no circle of waiting. First come, first
//! served: a writer that needs a range for itself is not overtaken by readers for ever.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The locks of one disk.
#[derive(Debug, Default)]
pub(super) struct RangeLocks {
    queue: Mutex<Queue>,
    released: Condvar,
}

/// Locks that are held or waited for, in the order of their arrival.
#[derive(Debug, Default)]
struct Queue {
    next_ticket: u64,
    entries: Vec<Entry>,
    waiting: usize,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    range: Range<u64>,
    exclusive: bool,
}

/// A lock on a range, held until dropped.
#[derive(Debug)]
pub(super) struct RangeLock<'a> {
    locks: &'a RangeLocks,
    ticket: u64,
}

impl RangeLocks {
    /// Waits until nobody has a part of `range` for themselves.
    pub(super) fn shared(&self, range: Range<u64>) -> RangeLock<'_> {
        self.lock(range, false)
    }

    /// Waits until nobody has a part of `range`.
    pub(super) fn exclusive(&self, range: Range<u64>) -> RangeLock<'_> {
        self.lock(range, true)
    }

    fn lock(&self, range: Range<u64>, exclusive: bool) -> RangeLock<'_> {
        let mut queue = self.queue();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.entries.push(Entry {
            ticket,
            range,
            exclusive,
        });
        while queue.is_blocked(ticket) {
            queue.waiting += 1;
            queue = self.released.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.waiting -= 1;
        }
        RangeLock { locks: self, ticket }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Returns whether an earlier entry stands in the way of this one.
    fn is_blocked(&self, ticket: u64) -> bool {
        let Some(own) = self.entries.iter().find(|entry| entry.ticket == ticket) else {
            return false;
        };
        self.entries
            .iter()
            .take_while(|entry| entry.ticket != ticket)
            .any(|earlier| earlier.conflicts_with(own))
    }
}

impl Entry {
    fn conflicts_with(&self, other: &Self) -> bool {
        (self.exclusive || other.exclusive)
            && self.range.start < other.range.end
            && other.range.start < self.range.end
    }
}

impl Drop for RangeLock<'_> {
    fn drop(&mut self) {
        let mut queue = self.locks.queue();
        // The order of the others is the order in which they are served.
        queue.entries.retain(|entry| entry.ticket != self.ticket);
        if queue.waiting > 0 {
            self.locks.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn what_does_not_conflict_is_granted_at_once() {
        let locks = RangeLocks::default();
        let _first = locks.shared(0..10);
        let _same = locks.shared(5..15);
        let _beside = locks.exclusive(15..20);
        let _behind = locks.shared(20..30);
    }

    #[test]
    fn an_exclusive_lock_waits_for_shared_ones_and_is_not_overtaken() {
        let locks = RangeLocks::default();
        let (sender, order) = mpsc::channel();
        thread::scope(|scope| {
            let reader = locks.shared(0..10);
            let (locks, writer_sender, late_sender) = (&locks, sender.clone(), sender);
            scope.spawn(move || {
                let _writer = locks.exclusive(0..10);
                writer_sender.send("writer").unwrap();
            });
            while locks.queue().waiting < 1 {
                thread::yield_now();
            }
            scope.spawn(move || {
                let _late = locks.shared(9..11);
                late_sender.send("late reader").unwrap();
            });
            while locks.queue().waiting < 2 {
                thread::yield_now();
            }
            assert!(order.try_recv().is_err());
            drop(reader);
        });
        assert_eq!(order.iter().collect::<Vec<_>>(), ["writer", "late reader"]);
    }
}
