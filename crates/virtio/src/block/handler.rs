//! What the block device does on its worker's thread: from the queue to the I/O threads and back.

use std::time::Instant;

use virtio_queue::QueueT;

use crate::block::Disk;
use crate::block::disk::Pass;
use crate::block::pool::Pool;
use crate::block::request::{Outcome, Request};
use crate::device::DRAIN_TIMEOUT;
use crate::error::{Error, Result};
use crate::event::{clear, descriptor};
use crate::queue::Served;
use crate::worker::{Context, QueueHandler};

/// The one queue.
const REQUESTS: usize = 0;

/// Requests are done.
const DONE: u32 = 0;
/// The disk is held no more, or requests are to be tried again.
const OPENED: u32 = 1;

/// The worker's side of a disk.
#[derive(Debug)]
pub(super) struct Handler {
    disk: Disk,
    /// There from the first activation on.
    pool: Option<Pool>,
    /// Requests taken from the queue and not given back; never more than the queue has entries, though a
    /// driver may reuse entries that it has not got back.
    under_way: usize,
}

impl Handler {
    pub(super) fn new(disk: Disk) -> Self {
        Self {
            disk,
            pool: None,
            under_way: 0,
        }
    }

    /// Tells whether a request waits for room on the medium.
    pub(super) fn waits_for_room(&self) -> bool {
        self.pool.as_ref().is_some_and(|pool| pool.waiting() > 0)
    }

    /// Forgets the requests that wait for room on the medium: their driver has.
    pub(super) fn forget_waiting(&mut self) {
        if let Some(pool) = &self.pool {
            self.under_way -= pool.forget_waiting();
        }
    }

    /// Tells whether no I/O thread is at work: what is under way waits for room on the medium.
    fn is_idle(&self) -> bool {
        self.under_way == self.pool.as_ref().map_or(0, Pool::waiting)
    }

    /// Gives all requests back that are done, even if the rings turn out to be in disorder.
    fn complete(&mut self, context: &mut Context, outcomes: Vec<(Outcome, Pass)>) -> Result<()> {
        let Some(queue) = context.queues.get_mut(REQUESTS) else {
            return Ok(());
        };
        let mut result = Ok(());
        for (outcome, pass) in outcomes {
            self.under_way -= 1;
            result = result.and(queue.complete(&context.memory, outcome.head, outcome.written));
            drop(pass);
        }
        result.and(queue.notify(&context.memory, &context.interrupt))
    }
}

impl QueueHandler for Handler {
    fn start(&mut self, context: &mut Context) -> Result<()> {
        let pool = match self.pool.take() {
            Some(pool) => pool,
            None => Pool::new(&self.disk, &context.memory).map_err(Error::io("I/O threads"))?,
        };
        context.watch(descriptor(pool.done_event()), DONE)?;
        context.watch(descriptor(self.disk.gate().opened()), OPENED)?;
        self.pool = Some(pool);
        Ok(())
    }

    fn serve(&mut self, context: &mut Context, _queue: usize) -> Result<Served> {
        let (Some(pool), Some(queue)) = (&self.pool, context.queues.get_mut(REQUESTS)) else {
            return Ok(Served::Done);
        };
        let memory = &context.memory;
        let limit = usize::from(queue.queue.size());
        queue.disable_kicks(memory)?;
        for _ in 0..=limit {
            if self.under_way >= limit {
                // The next outcome makes room.
                return Ok(Served::Done);
            }
            let Some(pass) = Pass::new(self.disk.gate()) else {
                // The end of the hold is watched.
                return Ok(Served::Done);
            };
            match queue.pop(memory)? {
                Some(chain) => {
                    let request = Request::parse(chain, memory, REQUESTS)?;
                    self.under_way += 1;
                    pool.submit(request, pass);
                }
                None if !queue.enable_kicks(memory)? => return Ok(Served::Done),
                None => {}
            }
        }
        Ok(Served::More)
    }

    fn ready(&mut self, context: &mut Context, token: u32) -> Result<()> {
        match (token, &self.pool) {
            (DONE, Some(pool)) => {
                clear(pool.done_event());
                let outcomes = pool.take_outcomes();
                self.complete(context, outcomes)?;
            }
            (_, pool) => {
                clear(self.disk.gate().opened());
                if self.disk.gate().take_retry()
                    && let Some(pool) = pool
                {
                    pool.retry();
                }
            }
        }
        context.serve_soon(REQUESTS);
        Ok(())
    }

    /// Waits for the I/O threads; requests that wait for room on the medium stay with them. Rings in disorder do not keep a device from coming to rest.
    fn drain(&mut self, context: &mut Context, deadline: Instant) -> Result<()> {
        while !self.is_idle() {
            let outcomes = self
                .pool
                .as_ref()
                .map(|pool| pool.wait_outcomes(self.under_way, deadline))
                .unwrap_or_default();
            if outcomes.is_empty() && !self.is_idle() {
                return Err(Error::Drain { after: DRAIN_TIMEOUT });
            }
            if let Err(error) = self.complete(context, outcomes) {
                tracing::error!(disk = self.disk.id(), %error, "device needs a reset");
                context.interrupt.signal_needs_reset();
            }
        }
        Ok(())
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let idle = self.is_idle();
        if let Some(pool) = &mut self.pool {
            pool.close(idle);
        }
    }
}
