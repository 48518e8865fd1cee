//! Reads and writes vmsnap snapshot files: page-indexed, compressed, verifiable.
#![forbid(unsafe_code)]

mod chunk;
mod digest;
mod error;
mod header;
pub mod limits;
mod memory_map;
mod reader;
mod section;
mod storage;
mod stream;
mod writer;

pub use chunk::{ChunkCounts, ChunkEntry, ChunkKind, Codec};
pub use digest::Digest;
pub use error::{Corruption, Error, LimitExceeded, Result, Usage};
pub use header::{Architecture, FileId, Header, ParentReference};
pub use memory_map::{ChunkLayout, ChunkNumber, ChunkRange, ChunkSize, MemoryMap, MemoryRegion, PAGE_SIZE};
pub use reader::{Decoder, Snapshot};
pub use section::{Encoding, Section, SectionEntry, SectionKind};
pub use storage::{ReadAt, SnapshotFile};
pub use stream::{StreamItem, StreamReader};
pub use writer::{Encoder, Parent, Summary, Writer, WriterOptions, WriterProgress};
