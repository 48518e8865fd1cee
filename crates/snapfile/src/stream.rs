//! Reads a snapshot front to back, as from a pipe.

use std::io::Read;
use std::ops::Range;

use crate::chunk::ChunkEntry;
use crate::digest::Digest;
use crate::error::Result;
use crate::header::Header;
use crate::memory_map::{ChunkLayout, ChunkNumber, MemoryMap};
use crate::section::Section;
use crate::writer::Summary;

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
    /// A chunk equal to one that came before.
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

/// Reads a snapshot front to back from any [`Read`].
#[derive(Debug)]
pub struct StreamReader<R> {
    _input: R,
}

impl<R: Read> StreamReader<R> {
    /// Reads the header and the memory map.
    pub fn new(input: R) -> Result<Self> {
        let _ = input;
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

    /// Returns what comes next; `None` after [`StreamItem::End`].
    pub fn next_item(&mut self) -> Result<Option<StreamItem<'_>>> {
        unimplemented!()
    }
}
