//! Goes over the file frame by frame, so that every byte lies under a checksum that is checked.
//!
//! Frame headers are read one after the other under a lock, which also decides the order and finds
//! the way back after a broken one ([`Walker`]); the frames themselves, a megabyte at a time, are
//! read and checked by all threads at once ([`Checker`]). Nothing is kept but sums.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::VerifyOptions;
use super::findings::Findings;
use super::fingerprint::Fingerprint;
use super::frame::{Checker, Tally};
use super::frame_map::FrameMap;
use super::index::{Index, Leaves};
use super::mismatch::name_mismatches;
use super::sequence::Sequence;
use super::structures::{Structures, read_frame_header};
use crate::error::{Corruption, Error, Result};
use crate::format::HEADER_LEN;
use crate::frame::{FRAME_HEADER_LEN, FrameInfo};
use crate::storage::ReadAt;

/// Bytes that a thread takes at a time; more if one frame is larger.
const BATCH_BYTES: u64 = 1 << 20;

/// What the walk adds up to.
#[derive(Debug)]
pub(super) struct Walked {
    pub(super) checked_bytes: u64,
    pub(super) frames: u64,
    pub(super) decoded_chunks: u64,
}

/// Walks over the whole file and compares what the frames add up to with index and footer.
pub(super) fn walk(
    storage: &dyn ReadAt,
    structures: &Structures,
    index: &Index,
    options: &VerifyOptions<'_>,
    findings: &Findings,
) -> Result<Walked> {
    let walk = Walk {
        storage,
        structures,
        options,
        findings,
        walker: Mutex::new(Walker::new()),
        stop: AtomicBool::new(false),
        done_bytes: AtomicU64::new(0),
    };
    let tallies = match options.threads.get() {
        1 => vec![walk.work()?],
        threads => std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| walk.work())).collect();
            let join = |worker: std::thread::ScopedJoinHandle<'_, Result<Tally>>| match worker.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            workers.into_iter().map(join).collect::<Result<Vec<Tally>>>()
        })?,
    };
    let walker = walk.walker.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut fingerprint = Fingerprint::default();
    tallies
        .iter()
        .for_each(|tally| fingerprint.merge(&tally.fingerprint));
    if !findings.has_lost_frames() {
        let agrees = index.fingerprint.is_none_or(|expected| expected == fingerprint);
        if !agrees {
            name_mismatches(storage, structures, findings)?;
        }
        compare_with_footer(structures, &walker, &tallies, findings);
    }
    Ok(Walked {
        checked_bytes: walker.checked_bytes,
        frames: walker.sequence.frames,
        decoded_chunks: tallies.iter().map(|tally| tally.decoded_chunks).sum(),
    })
}

/// Compares the sums over all frames with those that the footer states (spec 10.5).
fn compare_with_footer(structures: &Structures, walker: &Walker, tallies: &[Tally], findings: &Findings) {
    let Some(footer) = &structures.footer else { return };
    let offset = structures.footer_offset();
    let stored_bytes: u64 = tallies.iter().map(|tally| tally.stored_bytes).sum();
    let fields = [
        ("stored bytes", footer.stored_bytes == stored_bytes),
        (
            "frame count",
            footer.frame_count == walker.sequence.frames.saturating_sub(1),
        ),
    ];
    for (field, _) in fields.iter().filter(|(_, agrees)| !agrees) {
        findings.corrupt(Corruption::FooterField { offset, field });
    }
}

/// What all threads share.
struct Walk<'a> {
    storage: &'a dyn ReadAt,
    structures: &'a Structures,
    options: &'a VerifyOptions<'a>,
    findings: &'a Findings,
    walker: Mutex<Walker>,
    /// Set by the first thread that fails, so that the others stop early.
    stop: AtomicBool,
    done_bytes: AtomicU64,
}

impl Walk<'_> {
    fn work(&self) -> Result<Tally> {
        let leaves = Leaves::new(self.storage, self.structures);
        let mut checker = Checker::new(self.structures, leaves, self.options, self.findings);
        let outcome = self.check_batches(&mut checker);
        if outcome.is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
        outcome.map(|()| checker.tally)
    }

    fn check_batches(&self, checker: &mut Checker<'_>) -> Result<()> {
        let mut bytes = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let batch = self
                .walker
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .next_batch(self)?;
            let (Some(first), Some(last)) = (batch.first(), batch.last()) else {
                break;
            };
            let (start, end) = (first.offset, last.end());
            bytes.resize(usize::try_from(end - start).unwrap_or(0), 0);
            self.storage.read_exact_at(&mut bytes, start)?;
            let mut rest = bytes.as_slice();
            for frame in &batch {
                let (head, tail) = rest.split_at(frame_len(frame).min(rest.len()));
                rest = tail;
                let (_, padded) = head.split_at(header_len().min(head.len()));
                checker.check(frame, padded)?;
            }
            self.report(end - start)?;
        }
        Ok(())
    }

    fn report(&self, len_bytes: u64) -> Result<()> {
        let done = self.done_bytes.fetch_add(len_bytes, Ordering::Relaxed) + len_bytes;
        match self.options.progress {
            Some(progress) if progress(done, self.structures.file_bytes).is_break() => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }
}

fn header_len() -> usize {
    usize::try_from(FRAME_HEADER_LEN).unwrap_or(usize::MAX)
}

fn frame_len(frame: &FrameInfo) -> usize {
    usize::try_from(frame.end() - frame.offset).unwrap_or(usize::MAX)
}

/// Reads frame headers in file order.
struct Walker {
    /// Where the next frame begins.
    offset: u64,
    sequence: Sequence,
    /// Built when the first broken frame header is met.
    frame_map: Option<FrameMap>,
    /// Bytes of the header and of the frames handed out.
    checked_bytes: u64,
}

impl Walker {
    fn new() -> Self {
        let offset = HEADER_LEN as u64;
        Self {
            offset,
            sequence: Sequence::new(),
            frame_map: None,
            checked_bytes: offset,
        }
    }

    /// Returns the next frames, which lie in one piece; none at the end of the file.
    fn next_batch(&mut self, walk: &Walk<'_>) -> Result<Vec<FrameInfo>> {
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        while batch_bytes < BATCH_BYTES && self.offset < walk.structures.file_bytes {
            let read = read_frame_header(walk.storage, walk.structures.file_bytes, self.offset);
            match read {
                Ok(frame) => {
                    if let Err(corruption) = self.sequence.admit(&frame) {
                        walk.findings.corrupt(corruption);
                    }
                    batch_bytes += frame.end() - frame.offset;
                    self.offset = frame.end();
                    batch.push(frame);
                }
                // What was handed out so far is one piece; what follows the gap is another.
                Err(Error::Corrupt(_) | Error::Unsupported(_)) if !batch.is_empty() => break,
                Err(error @ (Error::Corrupt(_) | Error::Unsupported(_))) => {
                    self.resynchronise(walk, error)?
                }
                Err(error) => return Err(error),
            }
        }
        let led_to_footer = self.sequence.is_complete() || walk.structures.incomplete;
        if batch.is_empty() && !led_to_footer && !walk.findings.has_lost_frames() {
            // The file ends with a footer, but another frame covers it.
            let offset = walk.structures.footer_offset();
            walk.findings.corrupt(Corruption::FrameOrder {
                frame: "footer",
                offset,
            });
        }
        self.checked_bytes += batch_bytes;
        Ok(batch)
    }

    /// Records a broken frame header and finds the next frame.
    fn resynchronise(&mut self, walk: &Walk<'_>, error: Error) -> Result<()> {
        let file_bytes = walk.structures.file_bytes;
        let offset = self.offset;
        if walk.structures.incomplete && is_cut_off(&error, file_bytes, offset) {
            // That the last frame is cut off is what an incomplete file is about.
            self.offset = file_bytes;
            return Ok(());
        }
        let error = match error {
            // A type of frame that must not be skipped: the file needs a newer reader, unless
            // damage has led here.
            Error::Unsupported(_) if self.frame_map.is_some() => Corruption::FrameMagic { offset }.into(),
            other => other,
        };
        let frame_map = match &mut self.frame_map {
            Some(frame_map) => frame_map,
            None => self
                .frame_map
                .insert(FrameMap::build(walk.storage, walk.structures, walk.findings)?),
        };
        match (error, frame_map.chunk_at(offset)) {
            (Error::Corrupt(corruption), Some(chunk)) => {
                let shape = walk.structures.shape.as_ref();
                let guest = shape
                    .map(|shape| shape.layout.guest_ranges(chunk..chunk + 1))
                    .unwrap_or_default();
                walk.findings.lost_chunk(chunk, corruption, guest);
            }
            (error, _) => {
                walk.findings.note::<()>(Err(error))?;
            }
        }
        walk.findings.lose_frames();
        self.sequence.skip();
        self.offset = frame_map
            .next_frame(walk.storage, file_bytes, offset)?
            .unwrap_or(file_bytes)
            .min(file_bytes);
        Ok(())
    }
}

/// Returns whether a frame is broken because the file ends in it.
fn is_cut_off(error: &Error, file_bytes: u64, offset: u64) -> bool {
    matches!(error, Error::Corrupt(Corruption::FrameLength { .. })) || offset + FRAME_HEADER_LEN > file_bytes
}
