//! Discards during a capture: what the owner of guest memory gives back, the capture has first.
//!
//! Before the point in time the content is nobody's, but the protection goes with it: the discarder is then
//! in the handler's place, and does as it does, in the same order. After it the discarder is in a walker's
//! place: it claims and copies what is pending, waits for what others have claimed, and only then discards.
//! Every discard holds the lock of `CaptureControl::capturing`, so no phase begins or ends meanwhile.

use std::io;

use crate::buffers::FaultCopy;
use crate::capture::engine::{Engine, Gate};
use crate::chunk_states::ChunkState;
use crate::error::Result;
use crate::geometry::Span;
use crate::sync::lock;

/// What came of an attempt to copy a pending chunk.
pub(crate) enum Aside {
    /// It is claimed and copied; the caller publishes it.
    Copied(FaultCopy),
    /// There is no buffer for it.
    NoBuffer,
    /// Another thread was ahead.
    Overtaken,
}

impl Engine {
    /// Discards pages whose content at the point in time is safe, or made safe here.
    ///
    /// What goes wrong with the capture fails the capture; the error is about the discard.
    pub(crate) fn discard(&self, span: &Span) -> io::Result<()> {
        let arming = self.guard.is_some() && *self.gate.go_first() == Gate::Arming;
        let chunks = self.geometry.chunks(span);
        if !arming {
            let mut present = Vec::new();
            for chunk in chunks.clone() {
                self.copy_before_discard(chunk, &mut present)
                    .unwrap_or_else(|error| self.fail(error));
            }
        }
        let outcome = match &self.guard {
            Some(guard) => guard.discard(&self.geometry, span),
            None => self
                .geometry
                .region(span.region)
                .mapping
                .discard(span.bytes.clone()),
        };
        if let Some(guard) = self.guard.as_ref().filter(|_| arming) {
            // Absent pages are what older kernels pass over; then they must not stay absent.
            guard
                .prepare(&self.geometry, span)
                .unwrap_or_else(|error| self.fail(error));
            // First discard, then mark: `capture.rs` says why.
            for chunk in chunks.filter(|chunk| self.states.set_touched(*chunk)) {
                lock(&self.touched).push(chunk);
            }
        }
        if outcome.is_ok() {
            self.counters.discarded_bytes.add(span.bytes.len() as u64);
        }
        outcome
    }

    /// Returns when a chunk has been copied, or its content is no longer needed.
    fn copy_before_discard(&self, chunk: u64, present: &mut Vec<u8>) -> Result<()> {
        while !self.should_stop() && !self.is_over() {
            let rings = self.bell.rings();
            match self.states.get(chunk) {
                ChunkState::Pending => match self.copy_aside(chunk, present, || self.pool.take_spare())? {
                    Aside::Copied(copy) => {
                        self.publish(chunk)?;
                        self.queue_copy(copy);
                    }
                    // A walker comes by, if no buffer does.
                    Aside::NoBuffer => self.bell.wait(rings),
                    Aside::Overtaken => {}
                },
                ChunkState::Claimed | ChunkState::Wanted => {
                    if self.states.want(chunk) == ChunkState::Wanted {
                        self.bell.wait(rings);
                    }
                }
                // Unarmed and Touched cannot be met here.
                ChunkState::Copied | ChunkState::Unarmed | ChunkState::Touched => return Ok(()),
            }
        }
        Ok(())
    }

    /// Claims and copies a pending chunk, into a buffer that is only asked for if something is there.
    pub(crate) fn copy_aside(
        &self,
        chunk: u64,
        present: &mut Vec<u8>,
        take: impl FnOnce() -> Option<Box<[u8]>>,
    ) -> Result<Aside> {
        let span = self.geometry.chunk(chunk);
        let there = self.find_present(&span, present)?;
        let mut buffer = if there { take() } else { None };
        if there && buffer.is_none() {
            return Ok(Aside::NoBuffer);
        }
        if !self.states.claim(chunk) {
            buffer.into_iter().for_each(|buffer| self.pool.give(buffer));
            return Ok(Aside::Overtaken);
        }
        if let Some(buffer) = &mut buffer {
            let plain = &mut buffer[..span.bytes.len()];
            self.geometry
                .region(span.region)
                .read(span.bytes.start, present, plain);
        }
        Ok(Aside::Copied(FaultCopy { chunk, buffer }))
    }

    /// Leaves a copy that has been published to the walkers.
    pub(crate) fn queue_copy(&self, mut copy: FaultCopy) {
        let len = self.geometry.chunk(copy.chunk).bytes.len();
        // The kernel brings an absent anonymous page into being before it reports the write to it. A guest
        // that fills fresh memory shall not use up the buffers with that.
        if let Some(zero) = copy.buffer.take_if(|buffer| is_zero(&buffer[..len])) {
            self.pool.give(zero);
        }
        if copy.buffer.is_some() {
            self.counters.copied_bytes.add(len as u64);
        }
        self.queue.push(copy);
    }
}

/// Whether all bytes are zero; the first that is not ends the search.
fn is_zero(plain: &[u8]) -> bool {
    const ZEROS: [u8; 256] = [0; 256];
    plain.chunks(ZEROS.len()).all(|part| part == &ZEROS[..part.len()])
}
