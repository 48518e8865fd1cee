//! Reads any chunk of a snapshot at random.

use std::path::Path;
use std::sync::Arc;

use crate::chunk::ChunkEntry;
use crate::digest::Digest;
use crate::error::Result;
use crate::header::Header;
use crate::memory_map::{ChunkLayout, ChunkNumber, ChunkSize, MemoryMap};
use crate::section::{SectionEntry, SectionKind};
use crate::storage::ReadAt;
use crate::writer::Summary;

/// An open snapshot file.
#[derive(Debug)]
pub struct Snapshot {}

impl Snapshot {
    /// Opens a file; a parent that it names is not opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let _ = path;
        unimplemented!()
    }

    /// Opens a file and, following their hints, all its parents.
    pub fn open_with_parents(path: impl AsRef<Path>) -> Result<Self> {
        let _ = path;
        unimplemented!()
    }

    /// Opens a snapshot in any storage.
    pub fn from_storage(storage: Box<dyn ReadAt>) -> Result<Self> {
        let _ = storage;
        unimplemented!()
    }

    /// Gives the snapshot its parent, which must have the root digest that the header names.
    pub fn with_parent(self, parent: Arc<Snapshot>) -> Result<Self> {
        let _ = parent;
        unimplemented!()
    }

    /// Returns the parent, if one was given or found.
    pub fn parent(&self) -> Option<&Arc<Snapshot>> {
        unimplemented!()
    }

    /// Returns the header.
    pub fn header(&self) -> &Header {
        unimplemented!()
    }

    /// Returns the memory map.
    pub fn memory_map(&self) -> &MemoryMap {
        unimplemented!()
    }

    /// Returns how memory is cut into chunks.
    pub fn layout(&self) -> &ChunkLayout {
        unimplemented!()
    }

    /// Returns the chunk size.
    pub fn chunk_size(&self) -> ChunkSize {
        unimplemented!()
    }

    /// Returns the root digest that the footer states.
    pub fn root_digest(&self) -> Digest {
        unimplemented!()
    }

    /// Returns the figures of the footer.
    pub fn summary(&self) -> &Summary {
        unimplemented!()
    }

    /// Returns all sections in file order.
    pub fn sections(&self) -> &[SectionEntry] {
        unimplemented!()
    }

    /// Returns the section of that kind and name.
    pub fn section(&self, kind: SectionKind, name: &str) -> Option<&SectionEntry> {
        let _ = (kind, name);
        unimplemented!()
    }

    /// Reads the plain payload of a section.
    pub fn read_section(&self, entry: &SectionEntry) -> Result<Vec<u8>> {
        let _ = entry;
        unimplemented!()
    }

    /// Looks a chunk up in the index.
    pub fn chunk_entry(&self, chunk: ChunkNumber) -> Result<ChunkEntry> {
        let _ = chunk;
        unimplemented!()
    }

    /// Makes a decoder; every thread has its own.
    pub fn decoder(&self) -> Decoder<'_> {
        Decoder { snapshot: self }
    }
}

/// Decodes chunks on one thread; owns the codec's context and buffers.
#[derive(Debug)]
pub struct Decoder<'a> {
    snapshot: &'a Snapshot,
}

impl Decoder<'_> {
    /// Fills `plain` with the chunk's content; `plain` is as long as the chunk's part of guest memory.
    pub fn read_chunk(&mut self, chunk: ChunkNumber, plain: &mut [u8]) -> Result<()> {
        let _ = (self.snapshot, chunk, plain);
        unimplemented!()
    }
}
