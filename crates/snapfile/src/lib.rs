//! Reads and writes vmsnap snapshot files: page-indexed, compressed, verifiable.
//!
//! The bytes are defined in `fmt-spec/snapfile-v1.md`; comments here cite its clauses. A file is a
//! header, then frames, each with its own checksum: sections, chunks of guest memory, an index, a
//! directory, and a footer that commits it.
//!
//! ```text
//! header | memory map | chunks, extents, sections ... | index leaves | root | directory | footer
//! ```
//!
//! A [`Writer`] makes it in one pass from any number of threads, to a file or a pipe. A
//! [`Snapshot`] reads any chunk of a file at random, a [`StreamReader`] all of it front to back.
//! The crate knows bytes, not machines: what the sections hold is for others to say.
//!
//! ```
//! use snapfile::{ChunkNumber, MemoryMap, MemoryRegion, Snapshot, Writer, WriterOptions};
//! # fn main() -> snapfile::Result<()> {
//! let map = MemoryMap::new(vec![MemoryRegion { guest_address: 0, len_bytes: 1 << 20 }])?;
//! let writer = Writer::new(Vec::new(), &map, WriterOptions::default())?;
//! writer.encoder().put_chunk(ChunkNumber(0), &[7; 65536])?;
//! writer.put_zero(1..writer.layout().chunk_count())?;
//! let (file, summary) = writer.finish()?; // not a snapshot before this line
//!
//! let snapshot = Snapshot::from_storage(Box::new(file))?;
//! let mut plain = vec![0; 65536];
//! snapshot.decoder().read_chunk(ChunkNumber(0), &mut plain)?;
//! assert_eq!((plain[9], snapshot.root_digest()), (7, summary.root_digest));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
// Bytes from outside never panic: parsing neither indexes nor unwraps.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod chunk;
mod codec;
pub mod diff;
mod digest;
mod error;
mod fields;
mod footer;
mod format;
mod frame;
mod header;
mod index;
mod intervals;
pub mod limits;
mod memory_map;
mod parent;
mod reader;
mod section;
mod storage;
mod stream;
pub mod verify;
mod writer;

pub use chunk::{ChunkCounts, ChunkEntry, ChunkKind, Codec};
pub use digest::Digest;
pub use error::{Corruption, Error, GuestRanges, LimitExceeded, ParentError, Result, Unsupported, Usage};
pub use footer::Summary;
pub use header::{Architecture, FORMAT_VERSION, FileId, Header, ParentReference};
pub use memory_map::{ChunkLayout, ChunkNumber, ChunkRange, ChunkSize, MemoryMap, MemoryRegion, PAGE_SIZE};
pub use reader::{Decoder, Snapshot};
pub use section::{Encoding, Section, SectionEntry, SectionKind};
pub use storage::{ReadAt, SnapshotFile};
pub use stream::{StreamItem, StreamReader};
pub use writer::{Encoder, FixedIdentity, Parent, Writer, WriterOptions, WriterProgress};
