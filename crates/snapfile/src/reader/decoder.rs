//! Decodes chunks on one thread.

use std::sync::Arc;

use super::Snapshot;
use crate::chunk::{ChunkEntry, ChunkKind};
use crate::codec::{self, Decompressor};
use crate::digest::{ChunkHasher, Digest};
use crate::error::{Corruption, Error, GuestRanges, ParentError, Result, Usage};
use crate::format::{FrameHeader, FrameType, align8};
use crate::frame::{FRAME_HEADER_LEN, FrameInfo};
use crate::index::Leaf;
use crate::memory_map::ChunkNumber;

/// Decodes chunks on one thread; owns the codec's context and buffers.
#[derive(Debug)]
pub struct Decoder<'a> {
    snapshot: &'a Snapshot,
    check_digests: bool,
    /// The leaf used last: neighbouring chunks need no lock.
    leaf: Option<(u64, Option<Arc<Leaf>>)>,
    decompressor: Decompressor,
    hasher: ChunkHasher,
    frame: Vec<u8>,
    source: Vec<u8>,
    parent: Option<Box<Decoder<'a>>>,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            snapshot,
            check_digests: false,
            leaf: None,
            decompressor: Decompressor::default(),
            hasher: ChunkHasher::default(),
            frame: Vec::new(),
            source: Vec::new(),
            parent: None,
        }
    }

    /// Also compares the digest of every chunk that is read with the one stated (spec 8.14).
    ///
    /// Checksums find accidents; digests find content that was replaced together with them.
    pub fn check_digests(mut self, check: bool) -> Self {
        self.check_digests = check;
        self
    }

    /// Looks a chunk up in the index; faster than [`Snapshot::chunk_entry`] for neighbours.
    pub fn chunk_entry(&mut self, chunk: ChunkNumber) -> Result<ChunkEntry> {
        let number = self.snapshot.shape().leaf_of(chunk);
        if self.leaf.as_ref().is_none_or(|(kept, _)| *kept != number) {
            self.leaf = Some((number, self.snapshot.leaf(number)?));
        }
        let leaf = self.leaf.as_ref().and_then(|(_, leaf)| leaf.as_deref());
        self.snapshot.entry_in(leaf, chunk)
    }

    /// Fills `plain` with the chunk's content; `plain` is as long as the chunk's part of guest memory.
    ///
    /// On an error the content of `plain` is unspecified.
    pub fn read_chunk(&mut self, chunk: ChunkNumber, plain: &mut [u8]) -> Result<()> {
        let entry = self.chunk_entry(chunk)?;
        let expected = self.len_bytes(chunk);
        if u64::from(expected) != plain.len() as u64 {
            return Err(Usage::ChunkLength {
                chunk: chunk.0,
                expected,
                found: plain.len(),
            }
            .into());
        }
        match entry.kind {
            ChunkKind::Zero => plain.fill(0),
            ChunkKind::Fill => codec::fill(plain, entry.location.to_le_bytes()),
            ChunkKind::Raw | ChunkKind::Zstd | ChunkKind::Lz4 => self.read_data(chunk, &entry, plain)?,
            ChunkKind::Duplicate => self.read_duplicate(chunk, &entry, plain)?,
            ChunkKind::Parent => self.read_parent(chunk, &entry, plain)?,
        }
        if self.check_digests {
            self.check_digest(chunk, &entry, plain)?;
        }
        Ok(())
    }

    fn len_bytes(&self, chunk: ChunkNumber) -> u32 {
        self.snapshot
            .layout()
            .chunk(chunk)
            .map_or(0, |range| range.len_bytes)
    }

    fn read_data(&mut self, chunk: ChunkNumber, entry: &ChunkEntry, plain: &mut [u8]) -> Result<()> {
        let padded_len = align8(u64::from(entry.stored_len));
        let frame_len = FRAME_HEADER_LEN + padded_len;
        self.frame
            .resize(usize::try_from(frame_len).unwrap_or(usize::MAX), 0);
        self.snapshot
            .storage()
            .read_exact_at(&mut self.frame, entry.location)?;
        let offset = entry.location;
        let short = || {
            Error::from(Corruption::FrameTarget {
                frame: FrameType::Data.name(),
                offset,
            })
        };
        let (head, padded) = self
            .frame
            .split_first_chunk::<{ FrameHeader::LEN }>()
            .ok_or_else(short)?;
        let frame = FrameInfo::parse(head, offset)?;
        let shape = self.snapshot.shape();
        check_frame(&frame, chunk, entry, || shape.chunk_guest(chunk))?;
        let data = DataFrame { frame: &frame, chunk };
        data.decode(padded, plain, &mut self.decompressor, || shape.chunk_guest(chunk))
    }

    fn read_duplicate(&mut self, chunk: ChunkNumber, entry: &ChunkEntry, plain: &mut [u8]) -> Result<()> {
        let source_chunk = ChunkNumber(entry.location);
        let source = self.chunk_entry(source_chunk)?;
        if !source.kind.is_data() || source.digest != entry.digest {
            let guest = self.snapshot.shape().chunk_guest(chunk);
            return Err(Corruption::DuplicateSource {
                chunk: chunk.0,
                source_chunk: source_chunk.0,
                guest,
            }
            .into());
        }
        let len = usize::try_from(self.len_bytes(source_chunk)).unwrap_or(usize::MAX);
        if len == plain.len() {
            return self.read_data(source_chunk, &source, plain);
        }
        let mut content = std::mem::take(&mut self.source);
        content.clear();
        content.resize(len, 0);
        let read = self.read_data(source_chunk, &source, &mut content);
        // Equal digests mean that the longer of the two ends in zeros (spec 8.10).
        content.resize(plain.len(), 0);
        plain.copy_from_slice(&content);
        self.source = content;
        read
    }

    fn read_parent(&mut self, chunk: ChunkNumber, entry: &ChunkEntry, plain: &mut [u8]) -> Result<()> {
        let snapshot = self.snapshot;
        let Some(parent) = snapshot.parent() else {
            let reference = snapshot.header().parent.as_ref();
            return Err(ParentError::Missing {
                root_digest: reference.map_or(Digest::NONE, |parent| parent.root_digest),
                hint: reference.map_or_else(String::new, |parent| parent.hint.clone()),
            }
            .into());
        };
        let decoder = self.parent.get_or_insert_with(|| Box::new(Decoder::new(parent)));
        let found = decoder.chunk_entry(chunk)?.digest;
        if found != entry.digest {
            let guest = snapshot.shape().chunk_guest(chunk);
            return Err(Corruption::ParentDigest {
                chunk: chunk.0,
                stored: entry.digest,
                found,
                guest,
            }
            .into());
        }
        decoder.read_chunk(chunk, plain)
    }

    fn check_digest(&mut self, chunk: ChunkNumber, entry: &ChunkEntry, plain: &[u8]) -> Result<()> {
        let layout = self.snapshot.layout();
        let computed = self
            .hasher
            .digest(layout.chunk_size(), layout.chunk_in_region(chunk), plain);
        if computed == entry.digest {
            return Ok(());
        }
        let guest = self.snapshot.shape().chunk_guest(chunk);
        Err(Corruption::ChunkDigest {
            chunk: chunk.0,
            stored: entry.digest,
            computed,
            guest,
        }
        .into())
    }
}

/// Refuses a frame that does not agree with the index entry that led to it (spec 9.7).
fn check_frame(
    frame: &FrameInfo,
    chunk: ChunkNumber,
    entry: &ChunkEntry,
    guest: impl Fn() -> GuestRanges,
) -> Result<()> {
    if frame.frame_type != Some(FrameType::Data) {
        return Err(Corruption::FrameTarget {
            frame: FrameType::Data.name(),
            offset: frame.offset,
        }
        .into());
    }
    let fields = [
        ("chunk number", frame.fields.key == chunk.0),
        ("kind", frame.kind == entry.kind),
        ("stored length", frame.fields.stored_len == entry.stored_len),
        ("digest", frame.digest() == entry.digest),
    ];
    match fields.iter().find(|(_, agrees)| !agrees) {
        None => Ok(()),
        Some((field, _)) => {
            let offset = frame.offset;
            Err(Corruption::IndexFrame {
                chunk: chunk.0,
                offset,
                field,
                guest: guest(),
            }
            .into())
        }
    }
}

/// A data frame of a chunk whose header has been checked.
#[derive(Debug)]
pub(crate) struct DataFrame<'a> {
    pub(crate) frame: &'a FrameInfo,
    pub(crate) chunk: ChunkNumber,
}

impl DataFrame<'_> {
    /// Checks the lengths (spec 8.4) and the checksum (spec 8.6) and returns the payload.
    pub(crate) fn payload<'b>(
        &self,
        padded: &'b [u8],
        len_bytes: u64,
        guest: &impl Fn() -> GuestRanges,
    ) -> Result<&'b [u8]> {
        let (chunk, offset) = (self.chunk.0, self.frame.offset);
        let invalid = |field| {
            Error::from(Corruption::ChunkFrame {
                chunk,
                offset,
                field,
                guest: guest(),
            })
        };
        let (stored_len, plain_len) = (self.frame.fields.stored_len, self.frame.fields.plain_len);
        if u64::from(plain_len) != len_bytes {
            return Err(invalid("plain length"));
        }
        let fits = match self.frame.kind {
            ChunkKind::Raw => stored_len == plain_len,
            _ => stored_len > 0 && stored_len < plain_len,
        };
        if !fits {
            return Err(invalid("stored length"));
        }
        let payload = self.frame.checked_payload(padded);
        payload.map_err(|(stored, computed)| {
            Corruption::ChunkChecksum {
                chunk,
                offset,
                stored,
                computed,
                guest: guest(),
            }
            .into()
        })
    }

    /// As [`Self::payload`], and decodes the payload (spec 8.5).
    pub(crate) fn decode(
        &self,
        padded: &[u8],
        plain: &mut [u8],
        decompressor: &mut Decompressor,
        guest: impl Fn() -> GuestRanges,
    ) -> Result<()> {
        let payload = self.payload(padded, plain.len() as u64, &guest)?;
        if decompressor.decompress(self.frame.kind, payload, plain)? {
            return Ok(());
        }
        let (chunk, offset) = (self.chunk.0, self.frame.offset);
        Err(Corruption::ChunkDecode {
            chunk,
            offset,
            guest: guest(),
        }
        .into())
    }
}
