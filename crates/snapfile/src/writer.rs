//! Writes a snapshot in one pass.

use std::io::Write;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use crate::chunk::{ChunkCounts, Codec};
use crate::digest::Digest;
use crate::error::Result;
use crate::header::{Architecture, FileId};
use crate::memory_map::{ChunkLayout, ChunkNumber, ChunkSize, MemoryMap};
use crate::reader::Snapshot;
use crate::section::Section;

/// The parent of an incremental snapshot.
#[derive(Clone, Debug)]
pub struct Parent {
    /// The open parent; chunks equal to its chunks are not stored again.
    pub snapshot: Arc<Snapshot>,
    /// Path of the parent relative to the directory of the new file.
    pub hint: String,
}

/// How a snapshot is written.
#[derive(Clone, Debug)]
pub struct WriterOptions {
    /// Compression of chunks; Zstandard level 1 by default.
    pub codec: Codec,
    /// Bytes of guest memory per chunk; 64 KiB by default.
    pub chunk_size: ChunkSize,
    /// Whether equal chunks are stored once; true by default.
    pub deduplicate: bool,
    /// Whether raw payloads begin on a page boundary of the file; false by default.
    pub align_raw: bool,
    /// The parent of an incremental snapshot.
    pub parent: Option<Parent>,
    /// Name and version of the program; at most 120 bytes.
    pub producer: String,
    /// Architecture of the guest.
    pub architecture: Architecture,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            codec: Codec::default(),
            chunk_size: ChunkSize::DEFAULT,
            deduplicate: true,
            align_raw: false,
            parent: None,
            producer: concat!("vmsnap ", env!("CARGO_PKG_VERSION")).to_owned(),
            architecture: Architecture::X86_64,
        }
    }
}

/// What has been written so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterProgress {
    /// Bytes of guest memory described.
    pub plain_bytes: u64,
    /// Bytes of the file so far.
    pub file_bytes: u64,
    /// Chunks described, by kind.
    pub chunks: ChunkCounts,
}

/// Figures of a finished snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Identity of the guest state.
    pub root_digest: Digest,
    /// Identity of the file.
    pub file_id: FileId,
    /// Bytes of the file.
    pub file_len: u64,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Bytes of encoded chunk payloads.
    pub stored_bytes: u64,
    /// Chunks by kind.
    pub chunks: ChunkCounts,
}

/// Writes a snapshot in one pass to any [`Write`]; shared by all encoder threads.
#[derive(Debug)]
pub struct Writer<W> {
    _output: PhantomData<fn() -> W>,
}

impl<W: Write + Send> Writer<W> {
    /// Begins a snapshot: writes the header and the memory map.
    pub fn new(output: W, map: &MemoryMap, options: WriterOptions) -> Result<Self> {
        let _ = (output, map, options);
        unimplemented!()
    }

    /// Returns how memory is cut into chunks.
    pub fn layout(&self) -> &ChunkLayout {
        unimplemented!()
    }

    /// Makes an encoder; every thread has its own.
    pub fn encoder(&self) -> Encoder<'_, W> {
        Encoder { writer: self }
    }

    /// Records chunks that are known to be zero without looking at any bytes.
    pub fn put_zero(&self, chunks: Range<u64>) -> Result<()> {
        let _ = chunks;
        unimplemented!()
    }

    /// Writes a section.
    pub fn put_section(&self, section: &Section) -> Result<()> {
        let _ = section;
        unimplemented!()
    }

    /// Returns what has been written so far; cheap.
    pub fn progress(&self) -> WriterProgress {
        unimplemented!()
    }

    /// Writes index, directory and footer and flushes; every chunk must have been put.
    pub fn finish(self) -> Result<(W, Summary)> {
        unimplemented!()
    }
}

/// Encodes chunks on one thread; owns the codec's context and buffers.
#[derive(Debug)]
pub struct Encoder<'a, W> {
    writer: &'a Writer<W>,
}

impl<W: Write + Send> Encoder<'_, W> {
    /// Encodes a chunk on the calling thread and appends it under a short lock.
    pub fn put_chunk(&mut self, chunk: ChunkNumber, plain: &[u8]) -> Result<()> {
        let _ = (self.writer, chunk, plain);
        unimplemented!()
    }
}
