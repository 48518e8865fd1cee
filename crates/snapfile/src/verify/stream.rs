//! Verifies a snapshot that can only be read front to back, as from a pipe.
//!
//! The stream reader checks every clause that can be checked on the way, and stops at the first
//! that is broken: what follows a broken frame in a pipe cannot be trusted to begin anywhere.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::findings::Findings;
use super::{VerifyOptions, VerifyReport};
use crate::error::{Error, Result};
use crate::stream::{StreamItem, StreamReader};

/// Verifies a snapshot front to back; reports the first damage.
///
/// Every chunk is decoded whatever the depth; chunks in a parent are not followed, and the total
/// that the progress callback is told is what has been read.
///
/// # Errors
/// As [`super::verify`].
pub fn verify_stream(input: impl Read, options: &VerifyOptions<'_>) -> Result<VerifyReport> {
    let findings = Findings::new(options.max_findings);
    let mut input = Counting {
        input,
        read_bytes: Arc::default(),
    };
    let mut decoded_chunks = 0;
    findings.note(read_all(&mut input, options, &mut decoded_chunks))?;
    let (damage, omitted) = findings.into_sorted();
    let read_bytes = input.read_bytes.load(Ordering::Relaxed);
    Ok(VerifyReport {
        damage,
        omitted,
        file_bytes: read_bytes,
        checked_bytes: read_bytes,
        frames: 0,
        decoded_chunks,
    })
}

fn read_all(
    input: &mut Counting<impl Read>,
    options: &VerifyOptions<'_>,
    decoded_chunks: &mut u64,
) -> Result<()> {
    let counter = Arc::clone(&input.read_bytes);
    let mut reader = StreamReader::new(input)?;
    loop {
        match reader.next_item()? {
            None => return Ok(()),
            Some(StreamItem::Data { .. }) => *decoded_chunks += 1,
            Some(_) => {}
        }
        let read_bytes = counter.load(Ordering::Relaxed);
        if options
            .progress
            .is_some_and(|progress| progress(read_bytes, read_bytes).is_break())
        {
            return Err(Error::Cancelled);
        }
    }
}

/// Counts the bytes that pass, also while the reader is borrowed.
struct Counting<R> {
    input: R,
    read_bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.input.read(buf)?;
        self.read_bytes.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}
