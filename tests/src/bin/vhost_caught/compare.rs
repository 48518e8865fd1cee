//! A sink that compares every chunk with a copy of memory.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use memsnap::{ChunkEncoder, ChunkSink, SinkError};
use snapfile::ChunkNumber;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::{CHUNK_BYTES, Result};

/// The copy, and how many chunks were and were not equal to it.
#[derive(Debug)]
pub struct Comparison {
    copy: Vec<u8>,
    chunks: AtomicU64,
    differences: AtomicU64,
}

impl Comparison {
    /// Copies all memory, which is one region from address zero, while nobody writes it.
    pub fn with_copy_of(memory: &GuestMemoryMmap) -> Result<Self> {
        let mut copy = vec![0; usize::try_from(memory.last_addr().0 + 1)?];
        memory.read_slice(&mut copy, GuestAddress(0))?;
        Ok(Comparison {
            copy,
            chunks: AtomicU64::new(0),
            differences: AtomicU64::new(0),
        })
    }

    /// Chunks compared.
    pub fn chunks(&self) -> u64 {
        self.chunks.load(Ordering::Acquire)
    }

    /// Chunks that were not equal to the copy.
    pub fn differences(&self) -> u64 {
        self.differences.load(Ordering::Acquire)
    }

    fn compare(&self, chunk: u64, equal: impl FnOnce(&[u8]) -> bool) {
        let size = usize::try_from(CHUNK_BYTES).unwrap_or(usize::MAX);
        let start = usize::try_from(chunk).unwrap_or(usize::MAX).saturating_mul(size);
        let oracle = self
            .copy
            .get(start..self.copy.len().min(start.saturating_add(size)));
        self.chunks.fetch_add(1, Ordering::AcqRel);
        if !oracle.is_some_and(equal) {
            self.differences.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl ChunkSink for Comparison {
    fn encoder(&self) -> Box<dyn ChunkEncoder + '_> {
        Box::new(Comparer(self))
    }

    fn put_zero(&self, chunks: Range<u64>) -> std::result::Result<(), SinkError> {
        chunks.for_each(|chunk| self.compare(chunk, |oracle| oracle.iter().all(|byte| *byte == 0)));
        Ok(())
    }
}

#[derive(Debug)]
struct Comparer<'a>(&'a Comparison);

impl ChunkEncoder for Comparer<'_> {
    fn put_chunk(&mut self, chunk: ChunkNumber, plain: &[u8]) -> std::result::Result<(), SinkError> {
        self.0.compare(chunk.0, |oracle| oracle == plain);
        Ok(())
    }
}
