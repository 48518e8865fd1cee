//! The fault handler: the one thread that reads events and lets writers go.
//!
//! It never writes to guest memory, never waits for a walker (a claimed chunk's writer is left to the
//! claimer, a missing buffer puts the fault aside) and never enters the sink. Once the capture has failed
//! it lifts everything and then serves whatever faults are left by lifting.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uffd::{Event, FaultBatch};

use crate::capture::discard::Aside;
use crate::capture::engine::{Engine, Gate};
use crate::capture::guard::Guard;
use crate::chunk_states::ChunkState;
use crate::error::{Error, Result};
use crate::geometry::Span;
use crate::options::Pressure;
use crate::priority;
use crate::sync::panic_message;

/// Events read at once.
const BATCH: usize = 64;
/// Times that the handler starts again after an error or a panic of its own.
const RESTARTS: u32 = 3;
/// Attempts to lift a protection while the kernel keeps having events to be read first.
const LIFT_ATTEMPTS: u32 = 100_000;
/// Pause between them. Whoever discards has to run once more after its event was read, perhaps on this core,
/// where this thread goes first.
const LIFT_PAUSE: Duration = Duration::from_micros(20);

/// Serves faults until the engine ends it, whatever happens.
pub(super) fn main(engine: &Engine) {
    let Some(guard) = &engine.guard else { return };
    for _ in 0..=RESTARTS {
        let mut handler = Handler {
            engine,
            guard,
            batch: FaultBatch::new(BATCH),
            backlog: VecDeque::new(),
            throttled: Vec::new(),
            present: Vec::new(),
            prompt: false,
            lifted: false,
        };
        match catch_unwind(AssertUnwindSafe(|| handler.run())) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => engine.fail(error),
            Err(payload) => {
                let message = panic_message(&*payload);
                engine.fail(Error::Panicked {
                    thread: "fault handler",
                    message,
                });
            }
        }
    }
    // Nobody is left to serve: without protection there is nothing to be served.
    engine.release();
    while !engine.handler_ends() {
        // Discards that had begun before still wait to be read of.
        let mut batch = FaultBatch::new(BATCH);
        if guard.uffd().read_events(&mut batch).is_err() || sleep(engine, guard, None).is_err() {
            return;
        }
    }
}

/// A write that waits.
#[derive(Clone, Copy, Debug)]
struct Fault {
    chunk: u64,
    since: Instant,
    /// It has been put aside for want of a buffer before.
    throttled: bool,
}

struct Handler<'a> {
    engine: &'a Engine,
    guard: &'a Guard,
    batch: FaultBatch,
    /// Faults read and not yet served.
    backlog: VecDeque<Fault>,
    /// Faults that wait for a copy buffer.
    throttled: Vec<Fault>,
    /// Scratch: which pages of a chunk are there.
    present: Vec<u8>,
    /// The thread runs before all others; so only after the point in time, since serving the guest too
    /// eagerly before would keep the converging walker from getting ahead of it.
    prompt: bool,
    /// The capture has failed and everything was lifted.
    lifted: bool,
}

impl Handler<'_> {
    fn run(&mut self) -> Result<()> {
        while !self.engine.handler_ends() {
            if self.engine.should_stop() && !self.lifted {
                self.lift_everything()?;
            }
            self.retry_throttled()?;
            let gate = self.engine.gate.pass();
            let read = self.read()?;
            while let Some(fault) = self.backlog.pop_front() {
                self.serve(*gate, fault)?;
            }
            drop(gate);
            if read == 0 {
                self.wait()?;
            }
        }
        Ok(())
    }

    /// Moves the events that wait to the backlog; returns how many there were.
    fn read(&mut self) -> Result<usize> {
        let events = self.guard.uffd().read_events(&mut self.batch)?;
        let since = Instant::now();
        for event in events {
            match *event {
                Event::Fault { address, .. } => {
                    let chunk = self.engine.geometry.chunk_at(address);
                    self.backlog.extend(chunk.map(|chunk| Fault {
                        chunk,
                        since,
                        throttled: false,
                    }));
                }
                Event::Remove { start, end } if self.guard.was_announced(start, end) => {}
                Event::Remove { start, end } => {
                    let chunk = self.engine.geometry.chunk_at(start.min(end - 1));
                    let guest_address = chunk.map_or(0, |chunk| self.engine.geometry.guest_address(chunk));
                    self.engine.fail(Error::Discarded { guest_address });
                }
                Event::Other => {}
            }
        }
        Ok(events.len())
    }

    fn serve(&mut self, gate: Gate, fault: Fault) -> Result<()> {
        if self.lifted {
            return self.lift_chunk(fault.chunk);
        }
        if gate == Gate::Draining && !self.prompt {
            priority::run_at_once();
            self.prompt = true;
        }
        match gate {
            Gate::Arming => {
                // First lift, then mark: `capture.rs` says why.
                self.lift_chunk(fault.chunk)?;
                if self.engine.states.set_touched(fault.chunk) {
                    crate::sync::lock(&self.engine.touched).push(fault.chunk);
                }
                self.engine.counters.stall_arming.record(fault.since.elapsed());
                Ok(())
            }
            Gate::Draining => self.copy_before_write(fault),
        }
    }

    /// Serves a fault after the point in time; one of the chunk's states applies, whoever is ahead.
    fn copy_before_write(&mut self, fault: Fault) -> Result<()> {
        loop {
            match self.engine.states.get(fault.chunk) {
                ChunkState::Pending => {
                    if self.copy_aside(fault)? {
                        return Ok(());
                    }
                }
                ChunkState::Claimed | ChunkState::Wanted => {
                    if self.engine.wait_for_claimer(fault.chunk, fault.since) {
                        self.engine.control.count_fault();
                        return Ok(());
                    }
                }
                // Unarmed and Touched cannot be met here; to let the writer go is right for any state.
                ChunkState::Copied | ChunkState::Unarmed | ChunkState::Touched => return self.let_go(fault),
            }
        }
    }

    /// Copies a pending chunk and lets the writer go, or puts the fault aside for want of a buffer;
    /// `false` if another thread was ahead.
    fn copy_aside(&mut self, fault: Fault) -> Result<bool> {
        let engine = self.engine;
        // Those who wait already come first.
        let may_take = self.throttled.is_empty();
        let take = || may_take.then(|| engine.pool.take()).flatten();
        match engine.copy_aside(fault.chunk, &mut self.present, take)? {
            Aside::Copied(copy) => {
                // Only a discard can want what this thread had claimed; writers are let go in any case.
                if engine.states.publish(fault.chunk) {
                    engine.bell.ring();
                }
                self.let_go(fault)?;
                engine.queue_copy(copy);
                Ok(true)
            }
            Aside::NoBuffer => {
                self.put_aside(fault);
                Ok(true)
            }
            Aside::Overtaken => Ok(false),
        }
    }

    fn let_go(&mut self, fault: Fault) -> Result<()> {
        self.lift_chunk(fault.chunk)?;
        self.engine.counters.stall.record(fault.since.elapsed());
        self.engine.control.count_fault();
        Ok(())
    }

    /// Every buffer is in use: the policy decides.
    fn put_aside(&mut self, fault: Fault) {
        match self.engine.options.on_pressure {
            Pressure::Throttle => {
                self.engine.counters.throttled.add(u64::from(!fault.throttled));
                self.throttled.push(Fault {
                    throttled: true,
                    ..fault
                });
            }
            Pressure::Fail => {
                self.engine.fail(Error::Pressure {
                    buffer_bytes: self.engine.pool.limit_bytes(),
                });
                // The writer is let go with everything else.
            }
        }
    }

    /// Serves the faults that waited for a buffer, oldest first, as far as there are buffers; fails the
    /// capture if one has waited too long.
    fn retry_throttled(&mut self) -> Result<()> {
        for fault in std::mem::take(&mut self.throttled) {
            self.copy_before_write(fault)?;
        }
        let limit = self.engine.options.max_stall;
        if let Some(fault) = self.throttled.iter().find(|fault| fault.since.elapsed() > limit) {
            let guest_address = self.engine.geometry.guest_address(fault.chunk);
            self.engine.fail(Error::Stall { guest_address, limit });
        }
        Ok(())
    }

    /// Sleeps until there is a fault, a buffer, a failure or the end, or until a fault has waited too long.
    fn wait(&mut self) -> Result<()> {
        let limit = self.engine.options.max_stall;
        let left = self
            .throttled
            .iter()
            .map(|fault| limit.saturating_sub(fault.since.elapsed()))
            .min();
        let timeout = left.map(|left| timespec(left + Duration::from_micros(1)));
        sleep(self.engine, self.guard, timeout.as_ref())
    }

    /// After a failure: lifts all protection piece by piece, serving the faults that come meanwhile.
    fn lift_everything(&mut self) -> Result<()> {
        let engine = self.engine;
        self.backlog.extend(self.throttled.drain(..));
        for piece in &engine.pieces {
            while let Some(fault) = self.backlog.pop_front() {
                self.lift_chunk(fault.chunk)?;
            }
            self.lift(piece)?;
            self.read()?;
        }
        self.lifted = true;
        Ok(())
    }

    fn lift_chunk(&mut self, chunk: u64) -> Result<()> {
        self.lift(&self.engine.geometry.chunk(chunk))
    }

    /// Lifts protection and wakes. The kernel may ask for its events to be read first, which is this
    /// thread's own job.
    fn lift(&mut self, span: &Span) -> Result<()> {
        for _ in 0..LIFT_ATTEMPTS {
            if self.guard.try_lift(span)? {
                return Ok(());
            }
            self.read()?;
            thread::sleep(LIFT_PAUSE);
        }
        // The bound is for a kernel that never becomes ready; the ordinary call names the error.
        self.guard.lift(span)
    }
}

/// Sleeps until there is an event, somebody notifies, or time is up.
fn sleep(engine: &Engine, guard: &Guard, timeout: Option<&Timespec>) -> Result<()> {
    let mut fds = [
        PollFd::new(guard.uffd(), PollFlags::IN),
        PollFd::new(&engine.waker, PollFlags::IN),
    ];
    match poll(&mut fds, timeout) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(Error::Threads(error.into())),
    }
    if !fds[1].revents().is_empty() {
        engine.waker.clear();
    }
    Ok(())
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
