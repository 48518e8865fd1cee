//! Reads any chunk of a snapshot at random.
//!
//! Opening reads the header, the footer, the memory map, the index root and the directory, and
//! checks that they belong together; leaves and chunks are read when they are asked for. Every
//! byte that leads to an answer has passed its checksum. A [`Decoder`] holds what one thread needs
//! to decode chunks without allocating.

mod decoder;
mod leaves;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

pub(crate) use decoder::DataFrame;
pub use decoder::Decoder;

use crate::chunk::{ChunkEntry, ChunkKind};
use crate::digest::Digest;
use crate::error::{Corruption, Error, Result, Usage};
use crate::footer::{self, FOOTER_LEN, Summary};
use crate::format::{self, FOOTER_FRAME_LEN, FooterFields, FrameHeader, FrameType, HEADER_LEN};
use crate::frame::{FRAME_HEADER_LEN, FrameInfo};
use crate::header::{self, FileId, Header};
use crate::index::{self, IndexShape};
use crate::memory_map::{ChunkLayout, ChunkNumber, ChunkSize, MemoryMap};
use crate::parent;
use crate::section::{SectionEntry, SectionKind, directory, map};
use crate::storage::{ReadAt, open_regular};
use leaves::Leaves;

/// An open snapshot file, for any number of threads.
pub struct Snapshot {
    storage: Box<dyn ReadAt>,
    file_len: u64,
    header: Header,
    map: MemoryMap,
    shape: IndexShape,
    sections: Vec<SectionEntry>,
    summary: Summary,
    leaves: Leaves,
    parent: Option<Arc<Snapshot>>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Snapshot");
        debug
            .field("header", &self.header)
            .field("summary", &self.summary);
        debug.field("parent", &self.parent).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Opens a file; a parent that it names is not opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_storage(Box::new(open_regular(path.as_ref())?))
    }

    /// Opens a file and, following their hints, all its parents.
    ///
    /// The hints are paths that the file states; use this only where the file may name paths.
    pub fn open_with_parents(path: impl AsRef<Path>) -> Result<Self> {
        parent::open_chain(path.as_ref())
    }

    /// Opens a snapshot in any storage.
    pub fn from_storage(storage: Box<dyn ReadAt>) -> Result<Self> {
        let file_len = storage.len()?;
        let (header, header_crc) = read_header(storage.as_ref(), file_len)?;
        let (footer_frame, fields) = read_footer(storage.as_ref(), file_len)?;
        let files = Files {
            storage: storage.as_ref(),
            end: footer_frame.offset,
        };

        let (frame, padded) = files.frame(HEADER_LEN as u64)?;
        frame.expect(FrameType::Section, 0)?;
        let (map_entry, stored) = SectionEntry::parse(&frame, frame.payload(&padded)?)?;
        let map = map::from_section(&map_entry, &map_entry.decode_body(&frame, stored)?)?;
        let layout = ChunkLayout::new(&map, header.chunk_size);
        header.check_layout(&layout)?;
        let shape = IndexShape {
            layout,
            leaf_entries_log2: header.leaf_entries_log2,
        };

        let (frame, padded) = files.frame(fields.root_offset)?;
        frame.expect(FrameType::Root, 0)?;
        let root = index::parse_root(&frame, frame.payload(&padded)?, &shape)?;
        check_crc("root checksum", &footer_frame, fields.root_crc, &frame)?;

        let (frame, padded) = files.frame(fields.directory_offset)?;
        frame.expect(FrameType::Directory, 0)?;
        let sections = directory::parse(&frame, frame.payload(&padded)?)?;
        check_crc("directory checksum", &footer_frame, fields.directory_crc, &frame)?;
        match sections.first() {
            Some(first) => directory::check_agreement(first, &map_entry)?,
            None => {
                return Err(Corruption::MemoryMap {
                    offset: frame.offset,
                    field: "place",
                }
                .into());
            }
        }

        let summary = footer::summary(&fields, header.memory_bytes);
        let agreements = [
            ("file id", summary.file_id == header.file_id),
            ("header checksum", fields.header_crc == header_crc),
            (
                "section count",
                u64::from(fields.section_count) == sections.len() as u64,
            ),
            ("chunk count", summary.chunks.total() == header.chunk_count),
        ];
        check_footer(&footer_frame, &agreements)?;
        let leaves = Leaves::new(root, fields.root_offset);
        Ok(Self {
            storage,
            file_len,
            header,
            map,
            shape,
            sections,
            summary,
            leaves,
            parent: None,
        })
    }

    /// Gives the snapshot its parent, which must have the root digest that the header names.
    pub fn with_parent(mut self, parent: Arc<Snapshot>) -> Result<Self> {
        parent::check(&self, &parent)?;
        self.parent = Some(parent);
        Ok(self)
    }

    /// Returns the parent, if one was given or found.
    pub fn parent(&self) -> Option<&Arc<Snapshot>> {
        self.parent.as_ref()
    }

    /// Returns how many parents are open behind this snapshot.
    pub fn depth(&self) -> usize {
        self.chain().count() - 1
    }

    /// Returns this snapshot and its parents, nearest first.
    pub(crate) fn chain(&self) -> impl Iterator<Item = &Snapshot> {
        std::iter::successors(Some(self), |snapshot| snapshot.parent.as_deref())
    }

    /// Returns the header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the identity of the file.
    pub fn file_id(&self) -> FileId {
        self.header.file_id
    }

    /// Returns the memory map.
    pub fn memory_map(&self) -> &MemoryMap {
        &self.map
    }

    /// Returns how memory is cut into chunks.
    pub fn layout(&self) -> &ChunkLayout {
        &self.shape.layout
    }

    /// Returns the chunk size.
    pub fn chunk_size(&self) -> ChunkSize {
        self.header.chunk_size
    }

    /// Returns the root digest that the footer states.
    pub fn root_digest(&self) -> Digest {
        self.summary.root_digest
    }

    /// Returns the figures of the footer.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Returns all sections in file order.
    pub fn sections(&self) -> &[SectionEntry] {
        &self.sections
    }

    /// Returns the section of that kind and name.
    pub fn section(&self, kind: SectionKind, name: &str) -> Option<&SectionEntry> {
        self.sections
            .iter()
            .find(|section| section.kind == kind && section.name == name)
    }

    /// Reads the plain payload of a section, checked by checksum and digest.
    pub fn read_section(&self, entry: &SectionEntry) -> Result<Vec<u8>> {
        let key = self
            .sections
            .iter()
            .position(|section| section.offset == entry.offset)
            .unwrap_or(usize::MAX);
        let (frame, padded) = self.files().frame(entry.offset)?;
        frame.expect(FrameType::Section, key as u64)?;
        let (found, stored) = SectionEntry::parse(&frame, frame.payload(&padded)?)?;
        directory::check_agreement(entry, &found)?;
        found.decode_body(&frame, stored)
    }

    /// Looks a chunk up in the index.
    pub fn chunk_entry(&self, chunk: ChunkNumber) -> Result<ChunkEntry> {
        let leaf = self.shape.leaf_of(chunk);
        let leaf = self.leaf(leaf)?;
        self.entry_in(leaf.as_deref(), chunk)
    }

    /// Makes a decoder; every thread has its own.
    pub fn decoder(&self) -> Decoder<'_> {
        Decoder::new(self)
    }

    /// Returns how chunks are spread over index leaves.
    pub(crate) fn shape(&self) -> &IndexShape {
        &self.shape
    }

    /// Returns the bytes of the file.
    pub(crate) fn storage(&self) -> &dyn ReadAt {
        self.storage.as_ref()
    }

    /// Returns the offset of the footer, before which all other frames end.
    pub(crate) fn footer_offset(&self) -> u64 {
        self.file_len.saturating_sub(FOOTER_LEN)
    }

    /// Returns a leaf of the index; `None` if all its chunks are zero.
    pub(crate) fn leaf(&self, leaf: u64) -> Result<Option<Arc<index::Leaf>>> {
        self.leaves.get(leaf, &self.files(), &self.shape)
    }

    /// Returns the entry of a chunk from its leaf.
    pub(crate) fn entry_in(&self, leaf: Option<&index::Leaf>, chunk: ChunkNumber) -> Result<ChunkEntry> {
        let chunk_count = self.shape.layout.chunk_count();
        if chunk.0 >= chunk_count {
            return Err(Usage::NoSuchChunk {
                chunk: chunk.0,
                chunk_count,
            }
            .into());
        }
        let Some(raw) = leaf.and_then(|leaf| leaf.raw_entry(chunk)) else {
            return Ok(self.shape.zero_entry(chunk));
        };
        let entry = self.shape.parse_entry(chunk, &raw, self.leaves.data_end())?;
        if entry.kind == ChunkKind::Parent && self.header.parent.is_none() {
            let guest = self.shape.chunk_guest(chunk);
            return Err(Corruption::UnexpectedParent {
                chunk: chunk.0,
                guest,
            }
            .into());
        }
        Ok(entry)
    }

    fn files(&self) -> Files<'_> {
        Files {
            storage: self.storage.as_ref(),
            end: self.footer_offset(),
        }
    }
}

/// Reads whole frames that end at or before `end`.
#[derive(Clone, Copy)]
pub(crate) struct Files<'a> {
    pub(crate) storage: &'a dyn ReadAt,
    pub(crate) end: u64,
}

impl Files<'_> {
    /// Reads and checks the frame header at `offset`, and that the whole frame is there (spec 5.5).
    pub(crate) fn frame_header(&self, offset: u64) -> Result<FrameInfo> {
        let mut head = [0; FrameHeader::LEN];
        if offset
            .checked_add(FRAME_HEADER_LEN)
            .is_none_or(|end| end > self.end)
        {
            let len_bytes = FRAME_HEADER_LEN;
            return Err(Corruption::FrameLength {
                frame: "frame",
                offset,
                len_bytes,
            }
            .into());
        }
        self.storage.read_exact_at(&mut head, offset)?;
        let frame = FrameInfo::parse(&head, offset)?;
        if frame.end() > self.end {
            let len_bytes = u64::from(frame.fields.stored_len);
            return Err(Corruption::FrameLength {
                frame: frame.name(),
                offset,
                len_bytes,
            }
            .into());
        }
        Ok(frame)
    }

    /// Reads the frame at `offset` with payload and padding, the payload's checksum yet unchecked.
    pub(crate) fn frame(&self, offset: u64) -> Result<(FrameInfo, Vec<u8>)> {
        let frame = self.frame_header(offset)?;
        let mut padded = vec![0; usize::try_from(frame.padded_len()).unwrap_or(usize::MAX)];
        self.storage
            .read_exact_at(&mut padded, offset + FRAME_HEADER_LEN)?;
        Ok((frame, padded))
    }
}

/// Reads and checks the header and returns it with its checksum.
pub(crate) fn read_header(storage: &dyn ReadAt, file_len: u64) -> Result<(Header, u32)> {
    let mut page = [0; HEADER_LEN];
    let there = usize::try_from(file_len).unwrap_or(HEADER_LEN).min(HEADER_LEN);
    if let Some(start) = page.get_mut(..there) {
        storage.read_exact_at(start, 0)?;
    }
    if there < HEADER_LEN {
        let magic = format::MAGIC
            .get(..there.min(format::MAGIC.len()))
            .unwrap_or(&format::MAGIC);
        if !page.starts_with(magic) {
            return Err(Corruption::Magic {}.into());
        }
        return Err(Error::Incomplete { len_bytes: file_len });
    }
    Ok((Header::parse(&page)?, header::checksum(&page)))
}

/// Reads and checks the footer (spec 10.2 to 10.4).
pub(crate) fn read_footer(storage: &dyn ReadAt, file_len: u64) -> Result<(FrameInfo, FooterFields)> {
    let mut tail = [0; FOOTER_FRAME_LEN];
    let incomplete = Error::Incomplete { len_bytes: file_len };
    let Some(offset) = file_len
        .checked_sub(FOOTER_LEN)
        .filter(|offset| *offset >= HEADER_LEN as u64)
    else {
        return Err(incomplete);
    };
    storage.read_exact_at(&mut tail, offset)?;
    if !footer::is_footer(&tail) {
        return Err(incomplete);
    }
    footer::parse(&tail, file_len)
}

/// Refuses a frame with another payload checksum than the footer states (spec 10.4).
fn check_crc(field: &'static str, footer: &FrameInfo, stated: u32, frame: &FrameInfo) -> Result<()> {
    if stated == frame.fields.payload_crc {
        return Ok(());
    }
    Err(Corruption::FooterTarget {
        offset: footer.offset,
        field,
        value: u64::from(stated),
    }
    .into())
}

/// Refuses a footer that does not agree with the rest of the file (spec 10.5).
pub(crate) fn check_footer(footer: &FrameInfo, agreements: &[(&'static str, bool)]) -> Result<()> {
    match agreements.iter().find(|(_, agrees)| !agrees) {
        None => Ok(()),
        Some((field, _)) => Err(Corruption::FooterField {
            offset: footer.offset,
            field,
        }
        .into()),
    }
}
