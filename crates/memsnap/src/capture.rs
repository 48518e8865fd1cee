//! The capture of guest memory at an instant, in four phases: arm, converge, freeze, drain.
//!
//! Every chunk has one atomic state; a transition is one atomic operation. *Protect* and *lift* are
//! ioctls on the chunk's memory; `P` is the phase's walker (converging or draining), `H` the fault handler.
//!
//! | state | protect (arm, freeze) | fault while arming (`H`) | walker's turn (`P`) | fault while draining (`H`) |
//! |---|---|---|---|---|
//! | Unarmed | -> Pending, then protect | - | - | - |
//! | Pending | - | lift, then -> Touched, list it | -> Claimed, copy, publish | -> Claimed, copy aside, publish, lift |
//! | Touched | -> Pending, then protect | lift (it may be protected again) | - | - |
//! | Claimed | - | - | leave it | -> Wanted |
//! | Wanted | - | - | leave it | stay |
//! | Copied | - | - | leave it | lift |
//!
//! A discarder (`D`, one at a time; `discard.rs`) goes through the chunks that it takes a part of:
//!
//! | state | discard while arming (`D`) | discard while draining (`D`) |
//! |---|---|---|
//! | Unarmed, Pending | discard, then -> Touched, list it | Pending: -> Claimed, copy aside, publish |
//! | Touched | discard (it is listed, or about to be) | - |
//! | Claimed | - | -> Wanted, wait |
//! | Wanted | - | wait |
//! | Copied | - | discard, once all chunks are |
//!
//! *Publish* is -> Copied; if the state was Wanted, the publisher lifts the chunk at once. A walker lifts
//! the rest of its run in one call after its last copy, leaving out what others hold claimed.
//!
//! Why a Pending chunk is protected at the point in time, although the handler lifts and the walker
//! protects concurrently: the walker sets Pending *before* it protects, the handler lifts *before* it sets
//! Touched. If the state ends as Pending, the walker's write of the state came last, so the handler's lift,
//! which preceded its own write, came before the walker's protect, which followed: protected. If it ends as
//! Touched, the chunk is on the list, and the freeze protects it. The freeze itself excludes the handler by
//! the gate, so no lift of an earlier fault can come after it. A discard loses the protection as a lift does,
//! comes before the discarder's mark in the same way, and is excluded by a lock of its own that closing the
//! gate takes as well.
//!
//! Why what is captured is never what a discard left: after the point in time a discard comes after the
//! state Copied of all its chunks, and only a Pending chunk is ever claimed, so every copy comes before it.
//! The same goes for a walker that found pages absent: if it can claim the chunk then, nothing of the chunk
//! had been discarded.
//!
//! Why nobody waits for ever: the kernel holds a discarder until the handler has read its event. The handler
//! reads unless the gate is closed, and closing the gate waits for the discarder first. A discarder that waits
//! for copies waits for walkers or buffers, and is let go when the capture fails or ends; so does whoever ends
//! the capture and waits for the discarder.
//!
//! Failure at any point sets one flag; the handler then lifts everything and serves on until the end.

mod arm;
mod discard;
mod engine;
mod guard;
mod handler;
mod run_copy;
#[cfg(test)]
mod tests;
mod walker;

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use snapfile::ChunkLayout;
use vm_memory::GuestMemoryMmap;

use crate::control::{CaptureControl, CapturePhase};
use crate::error::{Error, Result};
use crate::options::CaptureOptions;
use crate::report::{CaptureMode, CaptureReport, StallReport};
use crate::sink::ChunkSink;

use self::arm::{ArmFigures, FreezeFigures};
pub(crate) use self::engine::Engine;
use self::engine::Gate;

/// A capture under way. Dropping it at any time abandons it: memory is writable, nobody waits.
#[derive(Debug)]
pub struct Capture {
    engine: Arc<Engine>,
    handler: Option<JoinHandle<()>>,
    begun: Instant,
    armed: ArmFigures,
    frozen: Option<(Duration, FreezeFigures)>,
}

impl Capture {
    /// Write-protects memory while its writers run, and returns when little is left to do in the pause
    /// or when [`CaptureOptions::max_arm`] is up.
    ///
    /// Pause the writers next and call [`Capture::freeze`] without delay: what is written meanwhile is
    /// protected again in the pause.
    ///
    /// # Errors
    /// [`Error::MemoryMap`] where `layout` is not that of `memory`, [`Error::Protection`] or
    /// [`Error::Backing`] where the kernel cannot protect it, [`Error::Cancelled`].
    pub fn arm(memory: &GuestMemoryMmap<()>, layout: ChunkLayout, options: CaptureOptions) -> Result<Self> {
        let begun = Instant::now();
        let control = options.control.clone();
        // No discard is under way while memory is registered and until somebody reads events: its own would
        // be taken for a foreign one, or never be read.
        let mut capturing = control.capturing().go_first();
        let engine = Arc::new(Engine::guarded(memory, &layout, options)?);
        let for_handler = Arc::clone(&engine);
        let handler = thread::Builder::new()
            .name("memsnap-faults".to_owned())
            .spawn(move || handler::main(&for_handler))
            .map_err(Error::Threads)?;
        *capturing = Arc::downgrade(&engine);
        drop(capturing);
        let armed = ArmFigures::default();
        let mut capture = Capture {
            engine,
            handler: Some(handler),
            begun,
            armed,
            frozen: None,
        };
        capture.engine.control.set_phase(CapturePhase::Arming);
        capture.armed = arm::arm(&capture.engine, begun);
        if capture.engine.should_stop() {
            return Err(capture.abandon());
        }
        capture.engine.control.set_phase(CapturePhase::Armed);
        Ok(capture)
    }

    /// Fixes the point in time. Every writer must be paused during this call, kernel writers such as
    /// vhost included; they may go on as soon as it returns.
    ///
    /// Takes time for what was written since [`Capture::arm`] only, not for the size of memory.
    ///
    /// # Errors
    /// Whatever has made the capture fail; drop it then, the writers may go on.
    pub fn freeze(&mut self) -> Result<()> {
        if self.frozen.is_some() {
            return Err(Error::Phase {
                found: "frozen",
                wanted: "armed",
            });
        }
        let begun = Instant::now();
        let mut closed = self.engine.close_gate();
        let figures = arm::freeze(&self.engine);
        *closed.gate = Gate::Draining;
        drop(closed);
        if self.engine.should_stop() {
            return Err(self.abandon());
        }
        self.frozen = Some((begun.elapsed(), figures));
        self.armed.command_to_t = self.begun.elapsed();
        self.engine.control.set_phase(CapturePhase::Draining);
        Ok(())
    }

    /// Hands every chunk, as it was at the point in time, to `sink`, while the writers run; returns when
    /// the sink has all and nothing is protected any more.
    ///
    /// If the capture fails while a walker is inside the sink, the writers are let go at once, but the
    /// call returns only when the sink does.
    ///
    /// # Errors
    /// Whatever has made the capture fail. The writers run on in any case.
    pub fn drain(mut self, sink: &dyn ChunkSink) -> Result<CaptureReport> {
        let Some((freeze, frozen)) = self.frozen.take() else {
            return Err(Error::Phase {
                found: "armed",
                wanted: "frozen",
            });
        };
        let begun = Instant::now();
        walker::run_all(&self.engine, sink);
        self.end();
        if self.engine.should_stop() {
            return Err(self.abandon());
        }
        self.engine.control.set_phase(CapturePhase::Done);
        Ok(CaptureReport {
            command_to_t: self.armed.command_to_t,
            arm: self.armed.elapsed,
            arm_rounds: self.armed.rounds,
            freeze,
            chunks_touched_at_freeze: frozen.touched_chunks,
            bytes_unarmed_at_freeze: frozen.unarmed_bytes,
            ..report(&self.engine, CaptureMode::Async, begun.elapsed())
        })
    }

    /// Progress, cancellation and discards of this capture.
    pub fn control(&self) -> CaptureControl {
        self.engine.control.clone()
    }

    /// Ends everything and says why the capture failed.
    fn abandon(&mut self) -> Error {
        self.end();
        self.engine.control.set_phase(CapturePhase::Failed);
        self.engine.take_failure()
    }

    /// Gives the memory back, then ends the handler: in this order, so that a fault is always served.
    fn end(&mut self) {
        self.engine.end();
        if let Some(handler) = self.handler.take() {
            self.engine.end_handler();
            // The handler catches its own panics, so there is nothing to learn from the join.
            let _ = handler.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

/// Captures memory whose writers are paused from before the call until after it, without protection.
///
/// # Errors
/// [`Error::MemoryMap`] where `layout` is not that of `memory`; what the sink says; [`Error::Cancelled`].
pub fn stop_and_copy(
    memory: &GuestMemoryMmap<()>,
    layout: ChunkLayout,
    options: CaptureOptions,
    sink: &dyn ChunkSink,
) -> Result<CaptureReport> {
    let begun = Instant::now();
    let engine = Arc::new(Engine::unguarded(memory, &layout, options)?);
    *engine.control.capturing().go_first() = Arc::downgrade(&engine);
    engine.control.set_phase(CapturePhase::Draining);
    walker::run_all(&engine, sink);
    engine.end();
    if engine.should_stop() {
        engine.control.set_phase(CapturePhase::Failed);
        return Err(engine.take_failure());
    }
    engine.control.set_phase(CapturePhase::Done);
    Ok(report(&engine, CaptureMode::Stop, begun.elapsed()))
}

/// The figures that both modes have; those of the pause are zero.
fn report(engine: &Engine, mode: CaptureMode, drain: Duration) -> CaptureReport {
    let counters = &engine.counters;
    CaptureReport {
        mode,
        kernel_path: engine.guard.as_ref().map(guard::Guard::path),
        memory_bytes: engine.geometry.len_bytes(),
        chunk_bytes: u32::try_from(engine.geometry.chunk_size()).unwrap_or(u32::MAX),
        chunks: engine.geometry.chunk_count(),
        walkers: engine.options.walker_count(),
        command_to_t: Duration::ZERO,
        arm: Duration::ZERO,
        arm_rounds: 0,
        freeze: Duration::ZERO,
        chunks_touched_at_freeze: 0,
        bytes_unarmed_at_freeze: 0,
        faults_arming: counters.stall_arming.count(),
        faults_draining: counters.stall.count(),
        stall_arming: StallReport::of(&counters.stall_arming),
        stall: StallReport::of(&counters.stall),
        faults_throttled: counters.throttled.get(),
        copied_bytes: counters.copied_bytes.get(),
        discarded_bytes: counters.discarded_bytes.get(),
        buffer_high_water_bytes: engine.pool.high_water_bytes(),
        chunks_unpopulated: counters.unpopulated.get(),
        bytes_encoded: counters.encoded_bytes.get(),
        drain,
    }
}
