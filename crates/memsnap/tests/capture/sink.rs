//! Sinks that keep, refuse, dawdle or panic.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use memsnap::{ChunkEncoder, ChunkSink, SinkError};
use snapfile::{ChunkLayout, ChunkNumber};

/// What a sink does besides keeping the chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Keep,
    /// Refuses a chunk after so many.
    FailAfter(u64),
    /// Panics at a chunk after so many.
    PanicAfter(u64),
    /// Takes so long for every chunk.
    Slow(Duration),
}

/// Keeps every chunk in memory and refuses to take one twice.
#[derive(Debug)]
pub struct MemorySink {
    behaviour: Behaviour,
    layout: ChunkLayout,
    taken: AtomicU64,
    chunks: Mutex<Vec<Option<Vec<u8>>>>,
}

impl MemorySink {
    pub fn new(layout: &ChunkLayout, behaviour: Behaviour) -> Self {
        let chunks = vec![None; usize::try_from(layout.chunk_count()).unwrap()];
        MemorySink {
            behaviour,
            layout: layout.clone(),
            taken: AtomicU64::new(0),
            chunks: Mutex::new(chunks),
        }
    }

    /// All chunks one after another.
    ///
    /// # Panics
    /// When one is missing.
    pub fn into_contents(self) -> Vec<u8> {
        let chunks = self.chunks.into_inner().unwrap().into_iter();
        chunks
            .map(|chunk| chunk.expect("every chunk is put"))
            .collect::<Vec<_>>()
            .concat()
    }

    fn keep(&self, chunk: u64, plain: Vec<u8>) -> Result<(), SinkError> {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        match self.behaviour {
            Behaviour::FailAfter(count) if taken >= count => return Err("the disk is full".into()),
            Behaviour::PanicAfter(count) if taken >= count => panic!("the encoder is broken"),
            Behaviour::Slow(duration) => thread::sleep(duration),
            _ => {}
        }
        let expected = self
            .layout
            .chunk(ChunkNumber(chunk))
            .map(|range| range.len_bytes as usize);
        assert_eq!(Some(plain.len()), expected, "chunk {chunk} has its length");
        let before = self.chunks.lock().unwrap()[usize::try_from(chunk)?].replace(plain);
        if before.is_some() {
            Err(format!("chunk {chunk} is put twice").into())
        } else {
            Ok(())
        }
    }
}

impl ChunkSink for MemorySink {
    fn encoder(&self) -> Box<dyn ChunkEncoder + '_> {
        Box::new(MemoryEncoder(self))
    }

    fn put_zero(&self, chunks: Range<u64>) -> Result<(), SinkError> {
        for chunk in chunks {
            let range = self.layout.chunk(ChunkNumber(chunk)).ok_or("no such chunk")?;
            self.keep(chunk, vec![0; range.len_bytes as usize])?;
        }
        Ok(())
    }
}

struct MemoryEncoder<'a>(&'a MemorySink);

impl ChunkEncoder for MemoryEncoder<'_> {
    fn put_chunk(&mut self, chunk: ChunkNumber, plain: &[u8]) -> Result<(), SinkError> {
        self.0.keep(chunk.0, plain.to_vec())
    }
}

/// The first page at which two contents differ.
pub fn assert_same(captured: &[u8], expected: &[u8]) {
    assert_eq!(captured.len(), expected.len());
    let mut pages = captured.chunks(4096).zip(expected.chunks(4096)).enumerate();
    if let Some((page, _)) = pages.find(|(_, (left, right))| left != right) {
        panic!("page {page} is not as it was at the point in time");
    }
}
