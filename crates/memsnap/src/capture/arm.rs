//! Protecting memory: all of it while the guest runs, what was touched again, and the rest in the pause.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::capture::engine::Engine;
use crate::capture::guard::Guard;
use crate::error::Result;
use crate::geometry::Span;
use crate::sync::lock;

/// With as few touched chunks as this the last round begins: it takes well under a millisecond.
const FEW_CHUNKS: usize = 64;

/// Rounds in a row that may leave no fewer touched chunks than one before them. On a busy machine a round
/// is interrupted now and then, and the guest gets ahead; the next one makes up for it.
const ROUNDS_IN_VAIN: u32 = 4;

/// What arming cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ArmFigures {
    pub(crate) elapsed: Duration,
    pub(crate) rounds: u32,
    pub(crate) command_to_t: Duration,
}

/// What was left to the pause.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FreezeFigures {
    pub(crate) touched_chunks: u64,
    pub(crate) unarmed_bytes: u64,
}

/// Protects memory until little is left, it no longer gets less, or time is up. Failures are the engine's.
pub(crate) fn arm(engine: &Engine, begun: Instant) -> ArmFigures {
    let deadline = begun + engine.options.max_arm;
    let mut figures = ArmFigures::default();
    first_pass(engine, Some(deadline));
    let (mut fewest, mut in_vain) = (usize::MAX, 0);
    while !engine.should_stop() && Instant::now() < deadline {
        let touched = lock(&engine.touched).len();
        in_vain = if touched < fewest { 0 } else { in_vain + 1 };
        fewest = fewest.min(touched);
        if touched <= FEW_CHUNKS || in_vain == ROUNDS_IN_VAIN {
            break;
        }
        figures.rounds += 1;
        protect_touched(engine, Some(deadline));
    }
    if Instant::now() < deadline {
        // The last round shuts the handler out: who writes to a protected chunk waits, so that nothing but
        // what they wait for is left afterwards. In the pause the same work would stop everyone.
        let _closed = engine.close_gate();
        figures.rounds += 1;
        protect_touched(engine, Some(deadline));
    }
    figures.elapsed = begun.elapsed();
    figures
}

/// Protects, with every writer paused and the handler shut out, all that is writable.
pub(crate) fn freeze(engine: &Engine) -> FreezeFigures {
    let touched_chunks = protect_touched(engine, None);
    FreezeFigures {
        touched_chunks,
        unarmed_bytes: first_pass(engine, None),
    }
}

/// Protects every piece that was not protected yet, on all threads; returns how many bytes those were.
fn first_pass(engine: &Engine, deadline: Option<Instant>) -> u64 {
    let Some(guard) = &engine.guard else { return 0 };
    let begun_at = engine.next_piece.load(Ordering::Relaxed).min(engine.pieces.len());
    let work = || {
        while deadline.is_none_or(|deadline| Instant::now() < deadline) && !engine.should_stop() {
            let next = engine.next_piece.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = engine.pieces.get(next) else {
                return;
            };
            guard
                .prepare(&engine.geometry, piece)
                .and_then(|()| protect(engine, guard, piece))
                .unwrap_or_else(|error| engine.fail(error));
        }
    };
    thread::scope(|scope| {
        for _ in 1..engine.options.walker_count().min(engine.pieces.len() - begun_at) {
            scope.spawn(work);
        }
        work();
    });
    let ended_at = engine.next_piece.load(Ordering::Relaxed).min(engine.pieces.len());
    engine.pieces[begun_at..ended_at]
        .iter()
        .map(|piece| piece.bytes.len() as u64)
        .sum()
}

/// Protects the chunks that were touched, as far as there is time; returns how many it had to look at.
pub(crate) fn protect_touched(engine: &Engine, deadline: Option<Instant>) -> u64 {
    let Some(guard) = &engine.guard else { return 0 };
    let mut touched = std::mem::take(&mut *lock(&engine.touched));
    let count = touched.len() as u64;
    touched.sort_unstable();
    let mut ranges = merge(&touched).into_iter();
    for range in ranges.by_ref() {
        for span in engine.geometry.spans(range) {
            protect(engine, guard, &span).unwrap_or_else(|error| engine.fail(error));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break;
        }
    }
    // Their state is Touched still, so a fault would not list them again: they go back as they are.
    lock(&engine.touched).extend(ranges.flatten());
    count
}

/// Protects whole chunks. The order of state and protection is what `capture.rs` proves its case from.
fn protect(engine: &Engine, guard: &Guard, span: &Span) -> Result<()> {
    for chunk in engine.geometry.chunks(span) {
        engine.states.set_pending(chunk);
    }
    guard.protect(span)
}

/// Joins ascending chunk numbers to ranges.
fn merge(chunks: &[u64]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for &chunk in chunks {
        match ranges.last_mut() {
            Some(last) if chunk <= last.end => last.end = last.end.max(chunk + 1),
            _ => ranges.push(chunk..chunk + 1),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_and_repetitions_join_to_ranges() {
        assert_eq!(merge(&[1, 2, 2, 3, 7, 9, 10]), [1..4, 7..8, 9..11]);
        assert!(merge(&[]).is_empty());
    }
}
