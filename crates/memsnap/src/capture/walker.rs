//! The walkers: they carry memory into the sink, each a run at a time, and the fault handler's copies first.
//!
//! A walker copies a run into its own buffer, gives the run back to the guest, and only then encodes. So
//! the guest waits for a copy at most, and memory in use is one run per walker.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use snapfile::ChunkNumber;

use crate::buffers::FaultCopy;
use crate::capture::engine::Engine;
use crate::capture::run_copy::RunCopy;
use crate::error::{Error, Result};
use crate::priority;
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
        if engine.guard.is_some() {
            priority::run_in_background();
        }
        let mut walker = Walker {
            engine,
            sink,
            encoder: sink.encoder(),
            zeros: 0..0,
        };
        walker.run(RunCopy::new(engine))
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

struct Walker<'a> {
    engine: &'a Engine,
    sink: &'a dyn ChunkSink,
    encoder: Box<dyn ChunkEncoder + 'a>,
    /// Zero chunks not yet told to the sink, one range as long as they follow each other.
    zeros: Range<u64>,
}

impl Walker<'_> {
    fn run(&mut self, mut copy: RunCopy<'_>) -> Result<()> {
        let engine = self.engine;
        while !engine.should_stop() {
            self.encode_fault_copies()?;
            if let Some(run) = engine.next_run() {
                copy.take(&run)?;
                self.encode_run(&copy)?;
                continue;
            }
            self.flush_zeros()?;
            match engine.queue.wait(|| engine.all_done() || engine.should_stop()) {
                Some(copy) => self.encode_fault_copy(copy)?,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Hands the chunks of a run to the sink; between two of them the handler's copies go first, since
    /// their buffers are what writers wait for.
    fn encode_run(&mut self, copy: &RunCopy<'_>) -> Result<()> {
        for (chunk, plain) in copy.chunks() {
            if self.engine.should_stop() {
                break;
            }
            match plain {
                None => self.put_zero(chunk)?,
                Some(plain) => self.put_chunk(chunk, plain)?,
            }
            self.encode_fault_copies()?;
        }
        Ok(())
    }

    fn encode_fault_copies(&mut self) -> Result<()> {
        while !self.engine.should_stop() {
            let Some(copy) = self.engine.queue.pop() else {
                break;
            };
            self.encode_fault_copy(copy)?;
        }
        Ok(())
    }

    fn encode_fault_copy(&mut self, copy: FaultCopy) -> Result<()> {
        let Some(buffer) = copy.buffer else {
            return self.put_zero(copy.chunk);
        };
        let len = self.engine.geometry.chunk(copy.chunk).bytes.len();
        self.put_chunk(copy.chunk, &buffer[..len])?;
        self.engine.pool.give(buffer);
        Ok(())
    }

    fn put_chunk(&mut self, chunk: u64, plain: &[u8]) -> Result<()> {
        self.encoder
            .put_chunk(ChunkNumber(chunk), plain)
            .map_err(Error::Sink)?;
        self.engine.counters.encoded_bytes.add(plain.len() as u64);
        self.engine.count_done(1, plain.len() as u64);
        Ok(())
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
