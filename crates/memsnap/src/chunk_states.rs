//! One atomic state per chunk, which decides every race between walkers, fault handler and guest.
//!
//! `capture.rs` has the table of states and events. This file has the transitions, each a single atomic
//! operation, and nothing else touches the states.

use std::sync::atomic::{AtomicU8, Ordering};

/// What is known about a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ChunkState {
    /// Not protected yet.
    Unarmed,
    /// Protected; after the point in time also: its content is still to be copied.
    Pending,
    /// Written while arming, and therefore writable again.
    Touched,
    /// Being copied by the thread that claimed it.
    Claimed,
    /// As `Claimed`, and a writer waits for it: the claimer lets it go.
    Wanted,
    /// Copied: nobody needs the protection any more.
    Copied,
}

const BY_NUMBER: [ChunkState; 6] = [
    ChunkState::Unarmed,
    ChunkState::Pending,
    ChunkState::Touched,
    ChunkState::Claimed,
    ChunkState::Wanted,
    ChunkState::Copied,
];

/// The states of all chunks.
#[derive(Debug)]
pub(crate) struct ChunkStates(Box<[AtomicU8]>);

impl ChunkStates {
    /// `count` chunks, all in the same state.
    pub(crate) fn new(count: u64, state: ChunkState) -> Self {
        ChunkStates((0..count).map(|_| AtomicU8::new(state as u8)).collect())
    }

    pub(crate) fn get(&self, chunk: u64) -> ChunkState {
        BY_NUMBER[usize::from(self.of(chunk).load(Ordering::Acquire))]
    }

    /// Says that the chunk is about to be protected (arming and freezing).
    pub(crate) fn set_pending(&self, chunk: u64) {
        self.of(chunk).swap(ChunkState::Pending as u8, Ordering::AcqRel);
    }

    /// Says that the chunk was written and is writable (arming); returns whether that is news.
    pub(crate) fn set_touched(&self, chunk: u64) -> bool {
        self.of(chunk).swap(ChunkState::Touched as u8, Ordering::AcqRel) != ChunkState::Touched as u8
    }

    /// Takes a pending chunk for copying; at most one thread ever succeeds.
    pub(crate) fn claim(&self, chunk: u64) -> bool {
        self.exchange(chunk, ChunkState::Pending, ChunkState::Claimed)
    }

    /// Notes that a writer waits for a claimed chunk; returns the state after that.
    pub(crate) fn want(&self, chunk: u64) -> ChunkState {
        self.exchange(chunk, ChunkState::Claimed, ChunkState::Wanted);
        self.get(chunk)
    }

    /// Says that the claimed chunk has been copied; returns whether a writer waits for it.
    pub(crate) fn publish(&self, chunk: u64) -> bool {
        self.of(chunk).swap(ChunkState::Copied as u8, Ordering::AcqRel) == ChunkState::Wanted as u8
    }

    fn exchange(&self, chunk: u64, from: ChunkState, to: ChunkState) -> bool {
        self.of(chunk)
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "there are no more chunks than bytes of memory"
    )]
    fn of(&self, chunk: u64) -> &AtomicU8 {
        &self.0[chunk as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_claimed_once() {
        let states = ChunkStates::new(1, ChunkState::Pending);
        assert!(states.claim(0));
        assert!(!states.claim(0));
    }

    #[test]
    fn touched_and_unarmed_chunks_cannot_be_claimed() {
        let states = ChunkStates::new(1, ChunkState::Unarmed);
        assert!(!states.claim(0));
        assert!(states.set_touched(0));
        assert!(!states.set_touched(0));
        assert!(!states.claim(0));
    }

    #[test]
    fn publishing_tells_of_the_waiting_writer() {
        let states = ChunkStates::new(2, ChunkState::Pending);
        assert!(states.claim(0) && states.claim(1));
        assert_eq!(states.want(1), ChunkState::Wanted);
        assert!(!states.publish(0));
        assert!(states.publish(1));
        assert_eq!(states.want(1), ChunkState::Copied);
    }
}
