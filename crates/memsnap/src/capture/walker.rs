//! The walkers: they carry memory into the sink, each a run at a time, and the fault handler's copies first.
//!
//! A walker copies a run chunk by chunk into its own buffer, lifts the run's protection in one call, and
//! only then encodes. So the guest waits for a copy at most, and memory in use is one run per walker.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use snapfile::ChunkNumber;

use crate::buffers::FaultCopy;
use crate::capture::engine::Engine;
use crate::chunk_states::ChunkState;
use crate::error::{Error, Result};
use crate::geometry::{RUN, Span};
use crate::sink::{ChunkEncoder, ChunkSink};
use crate::sync::panic_message;

/// Walks all memory on as many threads as the options say. Failures are the engine's.
pub(super) fn run_all(engine: &Engine, sink: &dyn ChunkSink) {
    thread::scope(|scope| {
        for _ in 0..engine.options.walker_count() {
            let walker = thread::Builder::new().name("memsnap-walker".to_owned());
            if let Err(error) = walker.spawn_scoped(scope, || main(engine, sink)) {
                engine.fail(Error::Threads(error));
            }
        }
    });
}

/// One walker; its errors and panics fail the capture.
fn main(engine: &Engine, sink: &dyn ChunkSink) {
    let walk = || {
        let buffer = vec![0; RUN].into_boxed_slice();
        let encoder = sink.encoder();
        let (present, taken) = (Vec::new(), Vec::new());
        Walker {
            engine,
            sink,
            encoder,
            buffer,
            present,
            taken,
            zeros: 0..0,
        }
        .run()
    };
    match catch_unwind(AssertUnwindSafe(walk)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => engine.fail(error),
        Err(payload) => {
            engine.fail(Error::Panicked {
                thread: "walker",
                message: panic_message(&*payload),
            });
        }
    }
}

/// A chunk that this walker has claimed and copied.
struct Taken {
    chunk: u64,
    /// Where in the walker's buffer; `None` for a chunk that was not there.
    plain: Option<Range<usize>>,
}

struct Walker<'a> {
    engine: &'a Engine,
    sink: &'a dyn ChunkSink,
    encoder: Box<dyn ChunkEncoder + 'a>,
    buffer: Box<[u8]>,
    /// Scratch: which pages of the run are there.
    present: Vec<u8>,
    taken: Vec<Taken>,
    /// Zero chunks not yet told to the sink, one range as long as they follow each other.
    zeros: Range<u64>,
}

impl Walker<'_> {
    fn run(&mut self) -> Result<()> {
        let engine = self.engine;
        while !engine.should_stop() {
            self.encode_copies()?;
            if let Some(run) = engine.next_run() {
                self.copy_run(&run)?;
                self.encode_run()?;
                continue;
            }
            self.flush_zeros()?;
            match engine.queue.wait(|| engine.all_done() || engine.should_stop()) {
                Some(copy) => self.encode_copy(copy)?,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Copies what is still pending of a run, and lifts the run's protection.
    fn copy_run(&mut self, run: &Span) -> Result<()> {
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

    /// Hands the chunks of a run to the sink; between two of them the handler's copies go first, since
    /// their buffers are what writers wait for.
    fn encode_run(&mut self) -> Result<()> {
        let taken = std::mem::take(&mut self.taken);
        for Taken { chunk, plain } in &taken {
            if self.engine.should_stop() {
                return Ok(());
            }
            match plain {
                None => self.put_zero(*chunk)?,
                Some(plain) => {
                    self.encoder
                        .put_chunk(ChunkNumber(*chunk), &self.buffer[plain.clone()])
                        .map_err(Error::Sink)?;
                    self.count_encoded(plain.len());
                }
            }
            self.encode_copies()?;
        }
        self.taken = taken;
        Ok(())
    }

    fn encode_copies(&mut self) -> Result<()> {
        while !self.engine.should_stop() {
            let Some(copy) = self.engine.queue.pop() else {
                break;
            };
            self.encode_copy(copy)?;
        }
        Ok(())
    }

    fn encode_copy(&mut self, copy: FaultCopy) -> Result<()> {
        let Some(buffer) = copy.buffer else {
            return self.put_zero(copy.chunk);
        };
        let len = self.engine.geometry.chunk(copy.chunk).bytes.len();
        self.encoder
            .put_chunk(ChunkNumber(copy.chunk), &buffer[..len])
            .map_err(Error::Sink)?;
        self.engine.pool.give(buffer);
        self.count_encoded(len);
        Ok(())
    }

    fn count_encoded(&self, len: usize) {
        self.engine.counters.encoded_bytes.add(len as u64);
        self.engine.count_done(1, len as u64);
    }

    /// Adds a chunk to the range of zero chunks, or begins another.
    fn put_zero(&mut self, chunk: u64) -> Result<()> {
        if self.zeros.end != chunk {
            self.flush_zeros()?;
            self.zeros = chunk..chunk;
        }
        self.zeros.end = chunk + 1;
        Ok(())
    }

    fn flush_zeros(&mut self) -> Result<()> {
        let zeros = std::mem::replace(&mut self.zeros, 0..0);
        if zeros.is_empty() {
            return Ok(());
        }
        let count = zeros.end - zeros.start;
        let bytes = self
            .engine
            .geometry
            .spans(zeros.clone())
            .map(|span| span.bytes.len() as u64)
            .sum();
        self.sink.put_zero(zeros).map_err(Error::Sink)?;
        self.engine.counters.unpopulated.add(count);
        self.engine.count_done(count, bytes);
        Ok(())
    }
}
