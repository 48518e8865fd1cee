//! Reads a snapshot front to back, as from a pipe (spec 5.10).
//!
//! Every frame is checked when it comes, and at the end the index, the directory and the footer
//! are checked against what came, so that [`StreamItem::End`] means: all of it, and all of it
//! right. Memory is the runs of chunks seen and one frame, not the guest. `tally` compares the
//! index with the frames without keeping either.
//!
//! | phase     | SECTION, DATA, EXTENTS | LEAF      | ROOT      | DIRECTORY | FOOTER |
//! |-----------|------------------------|-----------|-----------|-----------|--------|
//! | data      | data                   | leaves    | directory | error     | error  |
//! | leaves    | error                  | leaves    | directory | error     | error  |
//! | directory | error                  | error     | error     | footer    | error  |
//! | footer    | error                  | error     | error     | error     | end    |

mod input;
mod tally;

use std::io::Read;
use std::ops::Range;

use crate::chunk::{ChunkEntry, ChunkKind, Extent};
use crate::codec::Decompressor;
use crate::digest::{ChunkHasher, Digest, root_digest};
use crate::error::{Corruption, Error, LimitExceeded, Result};
use crate::footer::{self, Summary};
use crate::format::{ExtentRecord, FrameType, HEADER_LEN};
use crate::frame::FrameInfo;
use crate::header::{self, Header};
use crate::index::{self, IndexShape, Leaf};
use crate::limits;
use crate::memory_map::{ChunkLayout, ChunkNumber, MemoryMap};
use crate::reader::{DataFrame, check_footer};
use crate::section::{Section, SectionEntry, directory, map};
use input::Input;
use tally::Tally;

/// What a [`StreamReader`] comes across.
#[derive(Debug)]
pub enum StreamItem<'a> {
    /// A section other than the memory map.
    Section(Section),
    /// Chunks of zeros.
    Zero(Range<u64>),
    /// A chunk with its plain content.
    Data {
        /// The chunk.
        chunk: ChunkNumber,
        /// Its index entry.
        entry: ChunkEntry,
        /// Its plain content, as long as its part of guest memory.
        plain: &'a [u8],
    },
    /// A chunk of one repeated pattern.
    Fill {
        /// The chunk.
        chunk: ChunkNumber,
        /// The 8 bytes that repeat.
        pattern: [u8; 8],
        /// Digest of the chunk.
        digest: Digest,
    },
    /// A chunk equal to one that came before; the longer of the two ends in zeros.
    Duplicate {
        /// The chunk.
        chunk: ChunkNumber,
        /// The data chunk it equals.
        source: ChunkNumber,
        /// Digest of the chunk.
        digest: Digest,
    },
    /// A chunk equal to the parent's.
    Parent {
        /// The chunk.
        chunk: ChunkNumber,
        /// Digest of the chunk.
        digest: Digest,
    },
    /// The footer: the snapshot is complete.
    End(Summary),
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Data,
    Leaves,
    Directory,
    Footer,
    End,
}

/// Reads a snapshot front to back from any [`Read`].
#[derive(Debug)]
pub struct StreamReader<R> {
    input: Input<R>,
    header: Header,
    header_crc: u32,
    map: MemoryMap,
    shape: IndexShape,
    phase: Phase,
    sections: Vec<SectionEntry>,
    tally: Tally,
    /// Extents of the last frame that have not been handed out, in reverse.
    extents: Vec<Extent>,
    check_digests: bool,
    decompressor: Decompressor,
    hasher: ChunkHasher,
    padded: Vec<u8>,
    plain: Vec<u8>,
}

/// What a frame comes to, before the borrow of its content begins.
enum Step {
    Section(Section),
    Data(ChunkNumber, ChunkEntry),
    Nothing,
    End(Summary),
}

impl<R: Read> StreamReader<R> {
    /// Reads the header and the memory map.
    pub fn new(input: R) -> Result<Self> {
        let mut input = Input::new(input);
        let page: [u8; HEADER_LEN] = input.header_page()?;
        let header = Header::parse(&page)?;
        let mut padded = Vec::new();
        let frame = input.frame(&mut padded)?;
        if frame.frame_type != Some(FrameType::Section) || frame.fields.key != 0 {
            return Err(Corruption::FrameOrder {
                frame: frame.name(),
                offset: frame.offset,
            }
            .into());
        }
        let (entry, stored) = SectionEntry::parse(&frame, frame.payload(&padded)?)?;
        let map = map::from_section(&entry, &entry.decode_body(&frame, stored)?)?;
        let layout = ChunkLayout::new(&map, header.chunk_size);
        header.check_layout(&layout)?;
        let shape = IndexShape {
            layout,
            leaf_entries_log2: header.leaf_entries_log2,
        };
        Ok(Self {
            input,
            header_crc: header::checksum(&page),
            header,
            map,
            tally: Tally::new(&shape),
            shape,
            phase: Phase::Data,
            sections: vec![entry],
            extents: Vec::new(),
            check_digests: false,
            decompressor: Decompressor::default(),
            hasher: ChunkHasher::default(),
            padded,
            plain: Vec::new(),
        })
    }

    /// Also compares the digest of every data chunk with its content (spec 8.14).
    pub fn check_digests(mut self, check: bool) -> Self {
        self.check_digests = check;
        self
    }

    /// Returns the header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the memory map.
    pub fn memory_map(&self) -> &MemoryMap {
        &self.map
    }

    /// Returns how memory is cut into chunks.
    pub fn layout(&self) -> &ChunkLayout {
        &self.shape.layout
    }

    /// Returns what comes next; `None` after [`StreamItem::End`].
    pub fn next_item(&mut self) -> Result<Option<StreamItem<'_>>> {
        loop {
            if let Some(extent) = self.extents.pop() {
                return Ok(Some(extent_item(&extent)));
            }
            if self.phase == Phase::End {
                return Ok(None);
            }
            match self.step()? {
                Step::Nothing => {}
                Step::Section(section) => return Ok(Some(StreamItem::Section(section))),
                Step::Data(chunk, entry) => {
                    return Ok(Some(StreamItem::Data {
                        chunk,
                        entry,
                        plain: &self.plain,
                    }));
                }
                Step::End(summary) => return Ok(Some(StreamItem::End(summary))),
            }
        }
    }

    /// Reads one frame.
    fn step(&mut self) -> Result<Step> {
        let mut padded = std::mem::take(&mut self.padded);
        let frame = self.input.frame(&mut padded)?;
        self.advance_phase(&frame)?;
        let step = match frame.frame_type {
            Some(FrameType::Section) => self.section(&frame, &padded).map(Step::Section),
            Some(FrameType::Data) => self.data(&frame, &padded),
            Some(FrameType::Extents) => self.extents(&frame, &padded).map(|()| Step::Nothing),
            Some(FrameType::Leaf) => {
                let leaf = Leaf::parse(
                    &frame,
                    frame.fields.key,
                    std::mem::take(&mut padded),
                    None,
                    &self.shape,
                )?;
                self.tally
                    .leaf(&frame, &leaf, &self.shape)
                    .map(|()| Step::Nothing)
            }
            Some(FrameType::Root) => self.root(&frame, &padded).map(|()| Step::Nothing),
            Some(FrameType::Directory) => self.directory(&frame, &padded).map(|()| Step::Nothing),
            Some(FrameType::Footer) => self.footer(&frame, &padded).map(Step::End),
            Some(FrameType::Padding) | None => frame.payload(&padded).map(|_| Step::Nothing),
        };
        self.tally.frames += 1;
        self.padded = padded;
        step
    }

    /// Refuses a frame that may not come now (spec 5.8).
    fn advance_phase(&mut self, frame: &FrameInfo) -> Result<()> {
        let (from, next) = match frame.frame_type {
            Some(FrameType::Section | FrameType::Data | FrameType::Extents) => (Phase::Data, Phase::Data),
            Some(FrameType::Leaf) => (Phase::Leaves, Phase::Leaves),
            Some(FrameType::Root) => (Phase::Leaves, Phase::Directory),
            Some(FrameType::Directory) => (Phase::Directory, Phase::Footer),
            Some(FrameType::Footer) => (Phase::Footer, Phase::End),
            Some(FrameType::Padding) | None => return Ok(()),
        };
        let allowed = self.phase == from || (self.phase == Phase::Data && from == Phase::Leaves);
        if !allowed {
            return Err(Corruption::FrameOrder {
                frame: frame.name(),
                offset: frame.offset,
            }
            .into());
        }
        self.phase = next;
        Ok(())
    }

    fn section(&mut self, frame: &FrameInfo, padded: &[u8]) -> Result<Section> {
        let number = self.sections.len() as u64;
        LimitExceeded::check("sections", number + 1, limits::MAX_SECTIONS)?;
        frame.expect(FrameType::Section, number)?;
        let (entry, stored) = SectionEntry::parse(frame, frame.payload(padded)?)?;
        if self
            .sections
            .iter()
            .any(|other| other.kind == entry.kind && other.name == entry.name)
        {
            let (offset, kind) = (frame.offset, entry.kind.code());
            return Err(Corruption::SectionTwice {
                offset,
                kind,
                name: entry.name,
            }
            .into());
        }
        let total: u64 = self.sections.iter().map(|other| u64::from(other.len_bytes)).sum();
        let total = total + u64::from(entry.len_bytes);
        LimitExceeded::check("bytes of all sections", total, limits::MAX_SECTIONS_BYTES)?;
        let payload = entry.decode_body(frame, stored)?;
        let section = Section {
            kind: entry.kind,
            name: entry.name.clone(),
            version: entry.version,
            encoding: entry.encoding,
            payload,
        };
        self.sections.push(entry);
        Ok(section)
    }

    fn data(&mut self, frame: &FrameInfo, padded: &[u8]) -> Result<Step> {
        let chunk = ChunkNumber(frame.fields.key);
        let guest = || self.shape.chunk_guest(chunk);
        let Some(range) = self.shape.layout.chunk(chunk) else {
            let (offset, field) = (frame.offset, "chunk number");
            return Err(Corruption::ChunkFrame {
                chunk: chunk.0,
                offset,
                field,
                guest: guest(),
            }
            .into());
        };
        self.plain
            .resize(usize::try_from(range.len_bytes).unwrap_or(usize::MAX), 0);
        let data = DataFrame { frame, chunk };
        data.decode(padded, &mut self.plain, &mut self.decompressor, guest)?;
        let entry = ChunkEntry {
            kind: frame.kind,
            location: frame.offset,
            stored_len: frame.fields.stored_len,
            digest: frame.digest(),
        };
        if self.check_digests {
            let in_region = self.shape.layout.chunk_in_region(chunk);
            let computed = self.hasher.digest(self.header.chunk_size, in_region, &self.plain);
            if computed != entry.digest {
                let stored = entry.digest;
                return Err(Corruption::ChunkDigest {
                    chunk: chunk.0,
                    stored,
                    computed,
                    guest: guest(),
                }
                .into());
            }
        }
        self.tally.describe(
            frame.offset,
            &Extent {
                first: chunk,
                count: 1,
                entry,
            },
        )?;
        Ok(Step::Data(chunk, entry))
    }

    fn extents(&mut self, frame: &FrameInfo, padded: &[u8]) -> Result<()> {
        let invalid = |record, field| {
            let offset = frame.offset;
            Error::from(Corruption::ExtentRecord {
                offset,
                record,
                field,
            })
        };
        let (records, tail) = frame.payload(padded)?.as_chunks::<{ ExtentRecord::LEN }>();
        if records.is_empty() || !tail.is_empty() {
            return Err(invalid(records.len() as u64, "length"));
        }
        for (number, record) in (0..).zip(records) {
            let record = ExtentRecord::decode(record);
            let extent = Extent::from_record(&record, self.shape.layout.chunk_count())
                .map_err(|field| invalid(number, field))?;
            let chunk = extent.first;
            if extent.entry.kind == ChunkKind::Duplicate && !self.tally.is_data(extent.entry.location) {
                let (source_chunk, guest) = (extent.entry.location, self.shape.chunk_guest(chunk));
                return Err(Corruption::DuplicateSource {
                    chunk: chunk.0,
                    source_chunk,
                    guest,
                }
                .into());
            }
            if extent.entry.kind == ChunkKind::Parent && self.header.parent.is_none() {
                let guest = self.shape.chunk_guest(chunk);
                return Err(Corruption::UnexpectedParent {
                    chunk: chunk.0,
                    guest,
                }
                .into());
            }
            self.tally.describe(frame.offset, &extent)?;
            self.extents.push(extent);
        }
        self.extents.reverse();
        Ok(())
    }

    fn root(&mut self, frame: &FrameInfo, padded: &[u8]) -> Result<()> {
        let root = index::parse_root(frame, frame.payload(padded)?, &self.shape)?;
        self.tally.root(frame, &root, &self.shape)
    }

    fn directory(&mut self, frame: &FrameInfo, padded: &[u8]) -> Result<()> {
        let listed = directory::parse(frame, frame.payload(padded)?)?;
        for (listed, found) in listed.iter().zip(&self.sections) {
            if listed.offset != found.offset {
                let (entry, offset) = (found.name.clone(), found.offset);
                return Err(Corruption::DirectoryMismatch {
                    offset,
                    name: entry,
                    field: "offset",
                }
                .into());
            }
            directory::check_agreement(listed, found)?;
        }
        if listed.len() != self.sections.len() {
            let last = listed.last().or(self.sections.last());
            let (name, offset) = last.map_or((String::new(), 0), |last| (last.name.clone(), last.offset));
            return Err(Corruption::DirectoryMismatch {
                offset,
                name,
                field: "number of sections",
            }
            .into());
        }
        self.tally.directory = Some((frame.offset, frame.fields.payload_crc));
        Ok(())
    }

    /// Checks everything that the footer says (spec 10).
    fn footer(&mut self, frame: &FrameInfo, padded: &[u8]) -> Result<Summary> {
        let fields = footer::parse_payload(frame, frame.payload(padded)?)?;
        let summary = footer::summary(&fields, self.header.memory_bytes);
        if fields.file_len != frame.end() {
            return Err(Corruption::FileLength {
                stored: fields.file_len,
                actual: frame.end(),
            }
            .into());
        }
        self.tally.check_targets(frame, &fields)?;
        let agreements = [
            ("file id", summary.file_id == self.header.file_id),
            ("header checksum", fields.header_crc == self.header_crc),
            (
                "section count",
                u64::from(fields.section_count) == self.sections.len() as u64,
            ),
            ("chunk counts", summary.chunks == self.tally.counts),
            ("stored bytes", summary.stored_bytes == self.tally.stored_bytes),
            ("frame count", fields.frame_count == self.tally.frames),
        ];
        check_footer(frame, &agreements)?;
        let states = self.sections.iter().filter_map(SectionEntry::as_state).collect();
        let regions = self.tally.region_digests(&self.shape);
        let computed = root_digest(self.header.architecture.code(), &self.map, &regions, states);
        if computed != summary.root_digest {
            return Err(Corruption::RootDigest {
                stored: summary.root_digest,
                computed,
            }
            .into());
        }
        if self.input.has_more()? {
            return Err(Corruption::FileLength {
                stored: fields.file_len,
                actual: fields.file_len + 1,
            }
            .into());
        }
        Ok(summary)
    }
}

fn extent_item(extent: &Extent) -> StreamItem<'static> {
    let (chunk, value, digest) = (extent.first, extent.entry.location, extent.entry.digest);
    match extent.entry.kind {
        ChunkKind::Fill => StreamItem::Fill {
            chunk,
            pattern: value.to_le_bytes(),
            digest,
        },
        ChunkKind::Duplicate => StreamItem::Duplicate {
            chunk,
            source: ChunkNumber(value),
            digest,
        },
        ChunkKind::Parent => StreamItem::Parent { chunk, digest },
        _ => StreamItem::Zero(chunk.0..chunk.0 + extent.count),
    }
}
