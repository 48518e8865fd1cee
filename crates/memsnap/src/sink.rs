//! Where captured chunks go: the one thing that a capture asks of a snapshot format.

use std::error::Error as StdError;
use std::io::Write;
use std::ops::Range;

use snapfile::{ChunkNumber, Encoder, Writer};

/// Why a sink refused; a capture hands it on as it is.
pub type SinkError = Box<dyn StdError + Send + Sync>;

/// Takes every chunk of a capture exactly once, in any order, from several threads.
///
/// A sink may take its time, but it must never wait for the captured memory to become writable: the
/// writer may be waiting for the sink.
pub trait ChunkSink: Sync {
    /// Makes an encoder; every walker has its own.
    fn encoder(&self) -> Box<dyn ChunkEncoder + '_>;

    /// Takes chunks that are known to be zero.
    ///
    /// # Errors
    /// Any error abandons the capture.
    fn put_zero(&self, chunks: Range<u64>) -> Result<(), SinkError>;
}

/// One walker's way into a sink.
pub trait ChunkEncoder {
    /// Takes the content of a chunk; `plain` is shorter than the chunk size only at a region's end.
    ///
    /// # Errors
    /// Any error abandons the capture.
    fn put_chunk(&mut self, chunk: ChunkNumber, plain: &[u8]) -> Result<(), SinkError>;
}

impl<W: Write + Send> ChunkSink for Writer<W>
where
    Writer<W>: Sync,
{
    fn encoder(&self) -> Box<dyn ChunkEncoder + '_> {
        Box::new(Writer::encoder(self))
    }

    fn put_zero(&self, chunks: Range<u64>) -> Result<(), SinkError> {
        Ok(Writer::put_zero(self, chunks)?)
    }
}

impl<W: Write + Send> ChunkEncoder for Encoder<'_, W> {
    fn put_chunk(&mut self, chunk: ChunkNumber, plain: &[u8]) -> Result<(), SinkError> {
        Ok(Encoder::put_chunk(self, chunk, plain)?)
    }
}
