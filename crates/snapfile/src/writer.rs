//! Writes a snapshot in one pass, front to back, from many threads.
//!
//! Encoding happens on the callers' threads, in an [`Encoder`] each. What they share is short: a
//! lock to append a finished frame to a batch in memory and note it in the index, and a lock to
//! write a full batch out, during which others fill the next one. So memory is two batches plus
//! the index, whatever the size of the guest, and a slow output holds the encoders back.
//!
//! Locks are taken in the order state, output. An error of the output is final.

mod duplicates;
mod encoder;
mod finish;
mod shared;

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use encoder::Encoder;

use crate::chunk::{ChunkCounts, ChunkEntry, ChunkKind, Codec, Extent};
use crate::digest::Digest;
use crate::error::{Error, LimitExceeded, ParentError, Result, Usage};
use crate::footer::Summary;
use crate::format;
use crate::header::{self, Architecture, FileId, Header, ParentReference};
use crate::index::IndexShape;
use crate::limits;
use crate::memory_map::{ChunkLayout, ChunkNumber, ChunkSize, MemoryMap};
use crate::reader::Snapshot;
use crate::section::{Section, SectionEntry, SectionKind, map};
use shared::Shared;

/// The parent of an incremental snapshot.
#[derive(Clone, Debug)]
pub struct Parent {
    /// The open parent; chunks equal to its chunks are not stored again.
    pub snapshot: Arc<Snapshot>,
    /// Path of the parent relative to the directory of the new file; may be empty.
    pub hint: String,
}

/// Identity and time of a file that must come out the same again, such as a test vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedIdentity {
    /// Identity of the file.
    pub file_id: FileId,
    /// When the file was begun, in nanoseconds since the Unix epoch.
    pub created_unix_ns: u64,
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
    /// Binary logarithm of the entries in an index leaf; chosen by the size of memory if `None`.
    pub leaf_entries_log2: Option<u8>,
    /// Identity and time instead of a random identity and the present.
    pub fixed_identity: Option<FixedIdentity>,
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
            leaf_entries_log2: None,
            fixed_identity: None,
        }
    }
}

/// What has been written so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterProgress {
    /// Bytes of guest memory described.
    pub plain_bytes: u64,
    /// Bytes of the file so far, including those still in memory.
    pub file_bytes: u64,
    /// Chunks described, by kind.
    pub chunks: ChunkCounts,
}

/// Writes a snapshot in one pass to any [`Write`]; shared by all encoder threads.
#[derive(Debug)]
pub struct Writer<W> {
    map: MemoryMap,
    header: Header,
    header_crc: u32,
    codec: Codec,
    deduplicate: bool,
    align_raw: bool,
    parent: Option<Arc<Snapshot>>,
    layout: ChunkLayout,
    shared: Shared<W>,
}

impl<W: Write + Send> Writer<W> {
    /// Begins a snapshot: writes the header and the memory map.
    ///
    /// Refuses a parent whose memory map, architecture or chunk size differ, a memory map that the
    /// chunk size cannot cover within the limits, and strings that are too long.
    pub fn new(output: W, map: &MemoryMap, options: WriterOptions) -> Result<Self> {
        let layout = ChunkLayout::new(map, options.chunk_size);
        let shape = IndexShape::choose(layout.clone(), options.leaf_entries_log2)?;
        let identity = match options.fixed_identity {
            Some(identity) => identity,
            None => FixedIdentity {
                file_id: random_file_id()?,
                created_unix_ns: now(),
            },
        };
        if let Some(parent) = &options.parent {
            check_parent(&parent.snapshot, map, &options)?;
        }
        let header = Header {
            major: format::MAJOR,
            minor: format::MINOR,
            incompatible: 0,
            read_only_compatible: 0,
            compatible: 0,
            chunk_size: options.chunk_size,
            leaf_entries_log2: shape.leaf_entries_log2,
            architecture: options.architecture,
            memory_bytes: map.len_bytes(),
            chunk_count: layout.chunk_count(),
            file_id: identity.file_id,
            created_unix_ns: identity.created_unix_ns,
            parent: options.parent.as_ref().map(|parent| ParentReference {
                root_digest: parent.snapshot.root_digest(),
                hint: parent.hint.clone(),
            }),
            producer: options.producer,
        };
        let page = header.encode()?;
        let writer = Self {
            map: map.clone(),
            header,
            header_crc: header::checksum(&page),
            codec: options.codec,
            deduplicate: options.deduplicate,
            align_raw: options.align_raw,
            parent: options.parent.map(|parent| parent.snapshot),
            layout,
            shared: Shared::new(output, shape, &page),
        };
        writer.append_section(&map::to_section(map))?;
        Ok(writer)
    }

    /// Returns how memory is cut into chunks.
    pub fn layout(&self) -> &ChunkLayout {
        &self.layout
    }

    /// Returns the header of the file.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Makes an encoder; every thread has its own.
    pub fn encoder(&self) -> Encoder<'_, W> {
        Encoder::new(self)
    }

    /// Records chunks that are known to be zero without looking at any bytes.
    pub fn put_zero(&self, chunks: Range<u64>) -> Result<()> {
        if chunks.is_empty() {
            return Ok(());
        }
        self.check_number(ChunkNumber(chunks.end - 1))?;
        let mut state = self.shared.lock()?;
        if let Some(chunk) = state.index.first_described(chunks.clone()) {
            return Err(Usage::ChunkTwice { chunk }.into());
        }
        let entry = ChunkEntry::without_data(ChunkKind::Zero, 0, Digest::NONE);
        let count = chunks.end - chunks.start;
        state.push_extent(Extent {
            first: ChunkNumber(chunks.start),
            count,
            entry,
        });
        state.index.set_zero(chunks.clone());
        let bytes = self
            .layout
            .guest_ranges(chunks)
            .0
            .iter()
            .map(|range| range.end - range.start)
            .sum();
        self.shared.count(&state, ChunkKind::Zero, count, bytes);
        self.shared.write_full_batch(state)
    }

    /// Writes a section; vmstate, platform and disk table become part of the root digest.
    pub fn put_section(&self, section: &Section) -> Result<()> {
        if section.kind.code() == SectionKind::MemoryMap.code() {
            return Err(refused(section));
        }
        self.append_section(section)
    }

    fn append_section(&self, section: &Section) -> Result<()> {
        let mut guard = self.shared.lock()?;
        let state = &mut *guard;
        let number = state.sections.len() as u64;
        LimitExceeded::check("sections", number + 1, limits::MAX_SECTIONS)?;
        let twin =
            |other: &&SectionEntry| other.kind.code() == section.kind.code() && other.name == section.name;
        if state.sections.iter().any(|other| twin(&other)) {
            return Err(refused(section));
        }
        let written: u64 = state
            .sections
            .iter()
            .map(|other| u64::from(other.len_bytes))
            .sum();
        let total = written + section.payload.len() as u64;
        LimitExceeded::check("bytes of all sections", total, limits::MAX_SECTIONS_BYTES)?;
        let is_state = SectionKind::from_code(section.kind.code())
            .is_state()
            .unwrap_or(false);
        let offset = state.offset();
        let entry = section.append(number, offset, is_state, &mut state.batch)?;
        state.frame_count += 1;
        state.sections.push(entry);
        self.shared.write_full_batch(guard)
    }

    /// Returns what has been written so far; cheap.
    pub fn progress(&self) -> WriterProgress {
        self.shared.progress()
    }

    /// Writes index, directory and footer and flushes; every chunk must have been put.
    ///
    /// Only the bytes are complete then: making a file durable is the caller's, see
    /// [`SnapshotFile::commit`](crate::SnapshotFile::commit).
    pub fn finish(self) -> Result<(W, Summary)> {
        finish::finish(self)
    }

    fn check_number(&self, chunk: ChunkNumber) -> Result<()> {
        let chunk_count = self.layout.chunk_count();
        if chunk.0 < chunk_count {
            return Ok(());
        }
        Err(Usage::NoSuchChunk {
            chunk: chunk.0,
            chunk_count,
        }
        .into())
    }
}

fn refused(section: &Section) -> Error {
    Usage::Section {
        kind: section.kind.code(),
        name: section.name.clone(),
    }
    .into()
}

/// Refuses a parent that the new snapshot cannot refer to (spec 11.2, 11.5).
fn check_parent(parent: &Snapshot, map: &MemoryMap, options: &WriterOptions) -> Result<()> {
    let differs = |what| Err(ParentError::Layout { what }.into());
    if parent.memory_map() != map {
        return differs("memory map");
    }
    if parent.chunk_size() != options.chunk_size {
        return differs("chunk size");
    }
    if parent.header().architecture != options.architecture {
        return differs("architecture");
    }
    if parent.depth() >= limits::MAX_PARENT_DEPTH {
        return Err(ParentError::TooDeep {
            limit: limits::MAX_PARENT_DEPTH,
        }
        .into());
    }
    Ok(())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn random_file_id() -> Result<FileId> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(std::io::Error::from)?;
    Ok(FileId(id))
}
