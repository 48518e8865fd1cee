//! The walker's way out of guest memory: copy a run, let the guest have it back.

use std::ops::Range;

use crate::capture::engine::Engine;
use crate::chunk_states::ChunkState;
use crate::error::Result;
use crate::geometry::{RUN, Span};

/// A chunk that was claimed and copied.
pub(super) struct Taken {
    pub(super) chunk: u64,
    /// Where in the buffer; `None` for a chunk that was not there.
    pub(super) plain: Option<Range<usize>>,
}

/// One walker's copy of a run: the chunks that it claimed, at their places in the run.
pub(super) struct RunCopy<'a> {
    engine: &'a Engine,
    buffer: Box<[u8]>,
    /// Scratch: which pages of the run are there.
    present: Vec<u8>,
    taken: Vec<Taken>,
}

impl<'a> RunCopy<'a> {
    pub(super) fn new(engine: &'a Engine) -> Self {
        let buffer = vec![0; RUN].into_boxed_slice();
        RunCopy {
            engine,
            buffer,
            present: Vec::new(),
            taken: Vec::new(),
        }
    }

    /// The chunks taken from the last run, with their content.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (u64, Option<&[u8]>)> {
        self.taken
            .iter()
            .map(|taken| (taken.chunk, taken.plain.clone().map(|plain| &self.buffer[plain])))
    }

    /// Copies what is still pending of a run, and lifts the run's protection.
    pub(super) fn take(&mut self, run: &Span) -> Result<()> {
        let engine = self.engine;
        let region = engine.geometry.region(run.region);
        // What is absent now and pending when it is claimed below was protected all the time between, so
        // it is still as it was at the point in time: zero.
        engine.find_present(run, &mut self.present)?;
        self.taken.clear();
        for chunk in engine.geometry.chunks(run) {
            if !engine.states.claim(chunk) {
                continue;
            }
            let bytes = engine.geometry.chunk(chunk).bytes;
            let plain = bytes.start - run.bytes.start..bytes.end - run.bytes.start;
            let present = &self.present[plain.start / uffd::PAGE_SIZE..plain.end / uffd::PAGE_SIZE];
            let there = present.contains(&1);
            if there {
                region.read(bytes.start, present, &mut self.buffer[plain.clone()]);
            }
            self.taken.push(Taken {
                chunk,
                plain: there.then_some(plain),
            });
            engine.publish(chunk)?;
        }
        engine.bell.ring();
        self.lift_copied(run)
    }

    /// Lifts the protection of a run except where another thread is still copying: that thread does it.
    fn lift_copied(&self, run: &Span) -> Result<()> {
        let Some(guard) = &self.engine.guard else {
            return Ok(());
        };
        let chunks = self.engine.geometry.chunks(run);
        let mut start = None;
        for chunk in chunks.clone() {
            if self.engine.states.get(chunk) == ChunkState::Copied {
                start = start.or(Some(chunk));
            } else if let Some(start) = start.take() {
                self.engine
                    .geometry
                    .spans(start..chunk)
                    .try_for_each(|span| guard.lift(&span))?;
            }
        }
        let rest = start.map_or(chunks.end..chunks.end, |start| start..chunks.end);
        self.engine
            .geometry
            .spans(rest)
            .try_for_each(|span| guard.lift(&span))
    }
}
