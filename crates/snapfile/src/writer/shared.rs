//! What the encoder threads share: the batch of finished frames, the index, the output.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};

use super::WriterProgress;
use super::duplicates::Duplicates;
use crate::chunk::{ChunkCounts, ChunkEntry, ChunkKind, Extent};
use crate::digest::Digest;
use crate::error::{Error, Result, Usage};
use crate::format::{FrameHeader, FrameType, HEADER_LEN};
use crate::frame::{self, FRAME_HEADER_LEN, FrameDraft};
use crate::index::IndexShape;
use crate::index::build::IndexBuilder;
use crate::memory_map::ChunkNumber;
use crate::section::SectionEntry;

/// Bytes of frames that are gathered before they are written out.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// Extents that are gathered before they become a frame.
const EXTENTS_PER_FRAME: usize = 1024;
/// How many of the last extents are tried for one that a new run of zeros continues.
const MERGE_WINDOW: usize = 8;

/// The writer's state; only whoever holds its lock appends to the file.
#[derive(Debug)]
pub(super) struct State {
    /// Frames that are not written out yet.
    pub(super) batch: Vec<u8>,
    /// Bytes of the file before the batch.
    written: u64,
    /// Chunks described without a frame of their own, since the last extents frame.
    extents: Vec<Extent>,
    /// Every chunk described so far.
    pub(super) index: IndexBuilder,
    /// Data chunks by digest.
    pub(super) duplicates: Duplicates,
    /// Sections written so far.
    pub(super) sections: Vec<SectionEntry>,
    /// Frames appended so far.
    pub(super) frame_count: u64,
    /// Bytes of chunk payloads appended so far.
    pub(super) stored_bytes: u64,
}

impl State {
    /// Returns the offset in the file of what is appended next.
    pub(super) fn offset(&self) -> u64 {
        self.written + self.batch.len() as u64
    }

    /// Notes a chunk or a run of zeros for the next extents frame.
    pub(super) fn push_extent(&mut self, extent: Extent) {
        let continued = self.extents.iter_mut().rev().take(MERGE_WINDOW).find(|earlier| {
            let zeros = earlier.entry.kind == ChunkKind::Zero && extent.entry.kind == ChunkKind::Zero;
            zeros && earlier.first.0 + earlier.count == extent.first.0
        });
        match continued {
            Some(earlier) => earlier.count += extent.count,
            None => self.extents.push(extent),
        }
        if self.extents.len() >= EXTENTS_PER_FRAME {
            self.append_extents();
        }
    }

    /// Appends a frame with the extents gathered, if there are any.
    pub(super) fn append_extents(&mut self) {
        if self.extents.is_empty() {
            return;
        }
        let payload: Vec<u8> = self
            .extents
            .drain(..)
            .flat_map(|extent| extent.to_record().encode())
            .collect();
        FrameDraft::plain(FrameType::Extents, 0, &payload).append(&payload, &mut self.batch);
        self.frame_count += 1;
    }

    /// Appends the frame of a chunk and describes the chunk.
    pub(super) fn append_data(&mut self, header: &FrameHeader, kind: ChunkKind, payload: &[u8], align: bool) {
        if align && kind == ChunkKind::Raw {
            self.align_payload();
        }
        let location = self.offset();
        frame::append(header, payload, &mut self.batch);
        self.frame_count += 1;
        self.stored_bytes += u64::from(header.stored_len);
        let (stored_len, digest) = (header.stored_len, Digest(header.digest));
        let entry = ChunkEntry {
            kind,
            location,
            stored_len,
            digest,
        };
        self.index.set(ChunkNumber(header.key), entry);
    }

    /// Appends padding so that the payload of the next frame begins on a page boundary.
    fn align_payload(&mut self) {
        const PAGE: u64 = 4096;
        let payload_at = self.offset() + FRAME_HEADER_LEN;
        let mut gap = payload_at.next_multiple_of(PAGE) - payload_at;
        if gap == 0 {
            return;
        }
        if gap < FRAME_HEADER_LEN {
            gap += PAGE;
        }
        let payload = vec![0; usize::try_from(gap - FRAME_HEADER_LEN).unwrap_or(0)];
        FrameDraft::plain(FrameType::Padding, 0, &payload).append(&payload, &mut self.batch);
        self.frame_count += 1;
    }
}

/// The output with the batch that is being written to it.
#[derive(Debug)]
struct Output<W> {
    inner: W,
    batch: Vec<u8>,
}

/// State, output and counters, each with its own lock.
#[derive(Debug)]
pub(super) struct Shared<W> {
    state: Mutex<State>,
    output: Mutex<Output<W>>,
    /// Why the output has failed, if it has; the file can no longer be completed.
    failure: OnceLock<io::Error>,
    /// Figures for [`WriterProgress`]; relaxed, they order nothing.
    plain_bytes: AtomicU64,
    file_bytes: AtomicU64,
    chunks: [AtomicU64; 7],
}

impl<W: Write> Shared<W> {
    /// Makes the state of a file that begins with `header`.
    pub(super) fn new(output: W, shape: IndexShape, header: &[u8; HEADER_LEN]) -> Self {
        let chunk_count = shape.layout.chunk_count();
        let state = State {
            batch: header.to_vec(),
            written: 0,
            extents: Vec::new(),
            index: IndexBuilder::new(shape),
            duplicates: Duplicates::new(chunk_count),
            sections: Vec::new(),
            frame_count: 0,
            stored_bytes: 0,
        };
        Self {
            state: Mutex::new(state),
            output: Mutex::new(Output {
                inner: output,
                batch: Vec::new(),
            }),
            failure: OnceLock::new(),
            plain_bytes: AtomicU64::new(0),
            file_bytes: AtomicU64::new(HEADER_LEN as u64),
            chunks: Default::default(),
        }
    }

    /// Locks the state, unless an earlier error or panic has left the file unusable.
    ///
    /// Of several threads, whichever is heard first tells why the file failed: each is given the same cause.
    pub(super) fn lock(&self) -> Result<MutexGuard<'_, State>> {
        if let Some(failure) = self.failure.get() {
            return Err(repeat(failure).into());
        }
        self.state.lock().map_err(|_| Usage::WriteFailed.into())
    }

    /// Adds chunks to the counters.
    pub(super) fn count(&self, state: &State, kind: ChunkKind, count: u64, plain_bytes: u64) {
        if let Some(counter) = self.chunks.get(usize::from(kind.code())) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
        self.plain_bytes.fetch_add(plain_bytes, Ordering::Relaxed);
        self.file_bytes.store(state.offset(), Ordering::Relaxed);
    }

    /// Unlocks the state; a full batch is written out first or, if possible, meanwhile.
    pub(super) fn write_full_batch(&self, state: MutexGuard<'_, State>) -> Result<()> {
        if state.batch.len() < BATCH_BYTES {
            return Ok(());
        }
        self.write_batch(state)
    }

    /// Unlocks the state and writes its batch out, while others fill the next.
    pub(super) fn write_batch(&self, mut state: MutexGuard<'_, State>) -> Result<()> {
        let mut output = self.output.lock().map_err(|_| Error::from(Usage::WriteFailed))?;
        let Output { inner, batch } = &mut *output;
        batch.clear();
        std::mem::swap(&mut state.batch, batch);
        state.written += batch.len() as u64;
        // From here on the output's lock alone keeps the batches in order.
        drop(state);
        inner.write_all(batch).map_err(|error| {
            // Only the first failure is the cause; a later one follows from it.
            repeat(self.failure.get_or_init(|| error)).into()
        })
    }

    /// Returns the chunks counted so far, by kind.
    pub(super) fn counts(&self) -> ChunkCounts {
        let mut counts = ChunkCounts::default();
        for (kind, counter) in ChunkKind::ALL.iter().zip(&self.chunks) {
            counts.add(*kind, counter.load(Ordering::Relaxed));
        }
        counts
    }

    /// Returns the figures so far.
    pub(super) fn progress(&self) -> WriterProgress {
        WriterProgress {
            plain_bytes: self.plain_bytes.load(Ordering::Relaxed),
            file_bytes: self.file_bytes.load(Ordering::Relaxed),
            chunks: self.counts(),
        }
    }

    /// Returns the output after everything has been written to it.
    pub(super) fn into_output(self) -> Result<W> {
        let output = self
            .output
            .into_inner()
            .map_err(|_| Error::from(Usage::WriteFailed))?;
        Ok(output.inner)
    }
}

/// Returns an error that says the same.
fn repeat(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}
