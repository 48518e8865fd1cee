//! What the writer refuses, and how it behaves when its output fails.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the guests are small and their bytes made up"
)]

mod common;

use std::io::{self, Write};

use common::fixed_options;
use snapfile::{
    ChunkNumber, ChunkSize, Codec, Encoding, Error, MemoryMap, MemoryRegion, Section, SectionKind, Usage,
    Writer, WriterOptions,
};

fn map(len_bytes: u64) -> MemoryMap {
    MemoryMap::new(vec![MemoryRegion {
        guest_address: 0,
        len_bytes,
    }])
    .unwrap()
}

fn section(name: &str, len: usize) -> Section {
    let (kind, encoding) = (SectionKind::VmState, Encoding::Bytes);
    Section {
        kind,
        name: name.to_owned(),
        version: 1,
        encoding,
        payload: vec![1; len],
    }
}

#[test]
fn chunks_are_put_once_whole_and_all_of_them() {
    let writer = Writer::new(Vec::new(), &map(5 * 4096), fixed_options(8192, Codec::default())).unwrap();
    let mut encoder = writer.encoder();
    encoder.put_chunk(ChunkNumber(1), &[1; 8192]).unwrap();
    let usage = |result: snapfile::Result<()>| match result.unwrap_err() {
        Error::Usage(usage) => usage,
        other => panic!("{other}"),
    };
    assert_eq!(
        usage(encoder.put_chunk(ChunkNumber(1), &[1; 8192])),
        Usage::ChunkTwice { chunk: 1 }
    );
    assert_eq!(usage(writer.put_zero(0..2)), Usage::ChunkTwice { chunk: 1 });
    let short = Usage::ChunkLength {
        chunk: 2,
        expected: 4096,
        found: 8192,
    };
    assert_eq!(usage(encoder.put_chunk(ChunkNumber(2), &[1; 8192])), short);
    let outside = Usage::NoSuchChunk {
        chunk: 3,
        chunk_count: 3,
    };
    assert_eq!(usage(encoder.put_chunk(ChunkNumber(3), &[1; 8192])), outside);
    assert_eq!(usage(writer.put_zero(2..4)), outside);
    writer.put_zero(2..3).unwrap();
    writer.put_zero(3..3).unwrap();
    drop(encoder);
    assert_eq!(
        usage(writer.finish().map(|_| ())),
        Usage::ChunksMissing { first: 0, count: 1 }
    );
}

#[test]
fn sections_are_put_once_and_within_the_limits() {
    let writer = Writer::new(Vec::new(), &map(4096), fixed_options(4096, Codec::default())).unwrap();
    writer.put_section(&section("vm", 3)).unwrap();
    let map_section = Section {
        kind: SectionKind::MemoryMap,
        ..section("", 3)
    };
    for refused in [section("vm", 4), map_section, section("a\0b", 1)] {
        assert!(
            matches!(writer.put_section(&refused), Err(Error::Usage(_))),
            "{:?}",
            refused.name
        );
    }
    for refused in [section(&"x".repeat(256), 1), section("long", (64 << 20) + 1)] {
        assert!(matches!(
            writer.put_section(&refused),
            Err(Error::LimitExceeded(_))
        ));
    }
    writer.put_section(&section(&"x".repeat(255), 1)).unwrap();
}

#[test]
fn memory_beyond_the_limits_is_refused() {
    let region = |guest_address, len_bytes| MemoryRegion {
        guest_address,
        len_bytes,
    };
    let too_much = MemoryMap::new(vec![region(0, (1 << 46) + 4096)]);
    assert!(matches!(too_much, Err(Error::LimitExceeded(_))));
    let too_many = MemoryMap::new((0..1025).map(|n| region(n * 8192, 4096)).collect());
    assert!(matches!(too_many, Err(Error::LimitExceeded(_))));
    let chunk_size = ChunkSize::new(4096).unwrap();
    let largest = Writer::new(
        Vec::new(),
        &map(1 << 46),
        WriterOptions {
            chunk_size,
            ..WriterOptions::default()
        },
    );
    assert!(
        largest.is_ok(),
        "the largest guest has an index with the smallest chunks"
    );
}

/// Fails when it has taken some bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0 -= bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_failed_output_is_final_and_every_caller_learns_the_cause() {
    let options = WriterOptions {
        deduplicate: false,
        ..fixed_options(1 << 20, Codec::Raw)
    };
    let writer = Writer::new(Full(3 << 20), &map(16 << 20), options).unwrap();
    let mut encoder = writer.encoder();
    let mut chunk = vec![0; 1 << 20];
    let mut failures = Vec::new();
    for n in 0..16 {
        chunk[n] = 1;
        failures.extend(encoder.put_chunk(ChunkNumber(n as u64), &chunk).err());
    }
    let full =
        |error: &Error| matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::StorageFull);
    assert!(failures.len() > 1 && failures.iter().all(full));
    drop(encoder);
    assert!(writer.finish().is_err_and(|error| full(&error)));
}

/// Panics instead of writing.
struct Panics;

impl Write for Panics {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        panic!("the output is broken")
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_panic_of_the_output_leaves_the_writer_failed() {
    let writer = Writer::new(Panics, &map(2 << 20), fixed_options(2 << 20, Codec::Raw)).unwrap();
    let mut chunk = vec![0; 2 << 20];
    chunk[5] = 1;
    let put = std::panic::AssertUnwindSafe(|| writer.encoder().put_chunk(ChunkNumber(0), &chunk));
    assert!(std::panic::catch_unwind(put).is_err());
    assert!(matches!(writer.finish(), Err(Error::Usage(Usage::WriteFailed))));
}
