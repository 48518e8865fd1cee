//! What a frame must hold: its checksum, its fields, and its agreement with index and directory.
//!
//! One [`Checker`] per thread. It sees frames in any order, so it checks nothing about order, and
//! adds what a frame describes to a fingerprint that is compared with the index's at the end.

use std::sync::Arc;

use super::findings::Findings;
use super::fingerprint::Fingerprint;
use super::index::{Leaves, Lookup};
use super::structures::Structures;
use super::{Depth, VerifyOptions};
use crate::chunk::{ChunkEntry, ChunkKind, Extent};
use crate::codec::{self, Decompressor};
use crate::digest::{ChunkHasher, Digest};
use crate::error::{Corruption, Error, GuestRanges, Result};
use crate::format::{ExtentRecord, FrameType, HEADER_LEN};
use crate::frame::FrameInfo;
use crate::index::IndexShape;
use crate::memory_map::ChunkNumber;
use crate::reader::{DataFrame, Decoder, Snapshot};
use crate::section::{SectionEntry, SectionKind, directory};

/// What the frames seen by one thread add up to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) fingerprint: Fingerprint,
    pub(super) stored_bytes: u64,
    pub(super) decoded_chunks: u64,
}

/// Checks frames on one thread.
pub(super) struct Checker<'a> {
    structures: &'a Structures,
    findings: &'a Findings,
    deep: bool,
    lookup: Option<Lookup<'a>>,
    parent: Option<(&'a Arc<Snapshot>, Decoder<'a>)>,
    decompressor: Decompressor,
    hasher: ChunkHasher,
    plain: Vec<u8>,
    pub(super) tally: Tally,
}

impl<'a> Checker<'a> {
    pub(super) fn new(
        structures: &'a Structures,
        leaves: Option<Leaves<'a>>,
        options: &'a VerifyOptions<'_>,
        findings: &'a Findings,
    ) -> Self {
        Self {
            structures,
            findings,
            deep: options.depth == Depth::Deep,
            lookup: leaves.map(Lookup::new),
            parent: options.parent.as_ref().map(|parent| (parent, parent.decoder())),
            decompressor: Decompressor::default(),
            hasher: ChunkHasher::default(),
            plain: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Checks a frame, whose header is sound, with its payload and padding; records what is wrong.
    ///
    /// # Errors
    /// Those that are not about damage.
    pub(super) fn check(&mut self, frame: &FrameInfo, padded: &[u8]) -> Result<()> {
        if frame.frame_type == Some(FrameType::Data) {
            return self.check_data(frame, padded);
        }
        if frame.frame_type == Some(FrameType::Leaf) {
            self.check_leaf(frame, padded);
            return Ok(());
        }
        let Some(payload) = self.findings.note(frame.payload(padded))? else {
            // What a broken extents frame describes is not known, so the sums prove nothing.
            self.findings.lose_frames();
            return Ok(());
        };
        match frame.frame_type {
            Some(FrameType::Section) => self.check_section(frame, payload),
            Some(FrameType::Extents) => self.check_extents(frame, payload),
            Some(FrameType::Root) => {
                self.check_place(frame, "root offset", |footer| footer.root_offset);
                Ok(())
            }
            Some(FrameType::Directory) => {
                self.check_place(frame, "directory offset", |footer| footer.directory_offset);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn shape(&self) -> Option<&'a IndexShape> {
        self.structures.shape.as_ref()
    }

    fn guest(&self, chunk: u64) -> GuestRanges {
        self.shape().map_or_else(GuestRanges::default, |shape| {
            shape.chunk_guest(ChunkNumber(chunk))
        })
    }

    fn check_data(&mut self, frame: &FrameInfo, padded: &[u8]) -> Result<()> {
        let (chunk, offset, stored_len) = (frame.fields.key, frame.offset, frame.fields.stored_len);
        self.tally.stored_bytes += u64::from(stored_len);
        let entry = ChunkEntry {
            kind: frame.kind,
            location: offset,
            stored_len,
            digest: frame.digest(),
        };
        self.tally.fingerprint.add(chunk, &entry);
        let (chunk, guest) = (ChunkNumber(chunk), || self.guest(chunk));
        let range = self.shape().and_then(|shape| shape.layout.chunk(chunk));
        let checked = match (self.shape(), range) {
            (Some(_), None) => {
                let (chunk, field) = (chunk.0, "chunk number");
                Err(Corruption::ChunkFrame {
                    chunk,
                    offset,
                    field,
                    guest: guest(),
                }
                .into())
            }
            _ => {
                // Without a memory map, the length that the frame states must do.
                let len_bytes = range.map_or(frame.fields.plain_len, |range| range.len_bytes);
                DataFrame { frame, chunk }.payload(padded, u64::from(len_bytes), &guest)
            }
        };
        match checked {
            Ok(payload) if self.deep => self.decode(frame, payload),
            Ok(_) => Ok(()),
            Err(error) => self.lose(chunk.0, error),
        }
    }

    /// Records an error by which a data chunk is lost.
    fn lose(&self, chunk: u64, error: Error) -> Result<()> {
        match error {
            Error::Corrupt(corruption) => {
                self.findings.lost_chunk(chunk, corruption, self.guest(chunk));
                Ok(())
            }
            other => Err(other),
        }
    }

    /// Decodes a data chunk and compares its digest with the one stated.
    fn decode(&mut self, frame: &FrameInfo, payload: &[u8]) -> Result<()> {
        let (chunk, offset) = (frame.fields.key, frame.offset);
        self.plain
            .resize(usize::try_from(frame.fields.plain_len).unwrap_or(0), 0);
        if !self
            .decompressor
            .decompress(frame.kind, payload, &mut self.plain)?
        {
            return self.lose(
                chunk,
                Corruption::ChunkDecode {
                    chunk,
                    offset,
                    guest: self.guest(chunk),
                }
                .into(),
            );
        }
        self.check_digest(chunk, frame.digest())
    }

    /// Compares the digest of the content in `self.plain` with the one stated.
    fn check_digest(&mut self, chunk: u64, stored: Digest) -> Result<()> {
        self.tally.decoded_chunks += 1;
        let Some(shape) = self.shape() else { return Ok(()) };
        let place = shape.layout.chunk_in_region(ChunkNumber(chunk));
        let computed = self.hasher.digest(shape.layout.chunk_size(), place, &self.plain);
        if computed == stored {
            return Ok(());
        }
        self.lose(
            chunk,
            Corruption::ChunkDigest {
                chunk,
                stored,
                computed,
                guest: self.guest(chunk),
            }
            .into(),
        )
    }

    fn check_section(&self, frame: &FrameInfo, payload: &[u8]) -> Result<()> {
        let parsed = SectionEntry::parse(frame, payload).and_then(|(entry, stored)| {
            entry.decode_body(frame, stored)?;
            Ok(entry)
        });
        let Some(entry) = self.findings.note(parsed)? else {
            return Ok(());
        };
        if entry.kind == SectionKind::MemoryMap && entry.offset != HEADER_LEN as u64 {
            self.findings.corrupt(Corruption::MemoryMap {
                offset: entry.offset,
                field: "place",
            });
        }
        let Some(listed) = &self.structures.directory else {
            return Ok(());
        };
        let listed = listed.iter().find(|listed| listed.offset == entry.offset);
        let agreement = match listed {
            Some(listed) => directory::check_agreement(listed, &entry),
            None => {
                let (offset, name) = (entry.offset, entry.name);
                Err(Corruption::DirectoryMismatch {
                    offset,
                    name,
                    field: "entry",
                }
                .into())
            }
        };
        self.findings.note(agreement)?;
        Ok(())
    }

    /// A leaf is one that the root names; its entries are checked with the index.
    fn check_leaf(&self, frame: &FrameInfo, padded: &[u8]) {
        let (leaf, offset) = (frame.fields.key, frame.offset);
        let guest = || {
            self.shape()
                .map_or_else(GuestRanges::default, |shape| shape.leaf_guest(leaf))
        };
        if let Err((stored, computed)) = frame.checked_payload(padded) {
            self.findings.corrupt(Corruption::LeafChecksum {
                leaf,
                offset,
                stored,
                computed,
                guest: guest(),
            });
        }
        let Some(root) = &self.structures.root else { return };
        let entry = usize::try_from(leaf).ok().and_then(|leaf| root.get(leaf));
        if entry.is_none_or(|entry| entry.offset != offset) {
            let leaf_offset = entry.map_or(0, |entry| entry.offset);
            let offset = self
                .structures
                .footer
                .as_ref()
                .map_or(0, |footer| footer.root_offset);
            self.findings.corrupt(Corruption::RootEntry {
                offset,
                leaf,
                leaf_offset,
                guest: guest(),
            });
        }
    }

    /// Root and directory are where the footer says.
    fn check_place(
        &self,
        frame: &FrameInfo,
        field: &'static str,
        stated: impl Fn(&crate::format::FooterFields) -> u64,
    ) {
        let Some(value) = self.structures.footer.as_ref().map(stated) else {
            return;
        };
        if value != frame.offset {
            let offset = self.structures.footer_offset();
            self.findings
                .corrupt(Corruption::FooterTarget { offset, field, value });
        }
    }

    fn check_extents(&mut self, frame: &FrameInfo, payload: &[u8]) -> Result<()> {
        let Some(shape) = self.shape() else { return Ok(()) };
        let invalid = |record, field| Corruption::ExtentRecord {
            offset: frame.offset,
            record,
            field,
        };
        let (records, rest) = payload.as_chunks::<{ ExtentRecord::LEN }>();
        if records.is_empty() || !rest.is_empty() {
            self.findings.corrupt(invalid(records.len() as u64, "length"));
            return Ok(());
        }
        for (number, record) in (0..).zip(records) {
            match Extent::from_record(&ExtentRecord::decode(record), shape.layout.chunk_count()) {
                Err(field) => self.findings.corrupt(invalid(number, field)),
                Ok(extent) if extent.entry.kind == ChunkKind::Zero => {
                    self.tally.fingerprint.add_zeros(extent.first.0, extent.count);
                }
                Ok(extent) => {
                    self.tally.fingerprint.add(extent.first.0, &extent.entry);
                    self.check_extent(frame, &extent, shape)?;
                }
            }
        }
        Ok(())
    }

    fn check_extent(&mut self, frame: &FrameInfo, extent: &Extent, shape: &IndexShape) -> Result<()> {
        match extent.entry.kind {
            ChunkKind::Duplicate => self.check_duplicate(frame, extent),
            ChunkKind::Parent => self.check_parent_chunk(extent, shape),
            ChunkKind::Fill if self.deep => {
                let range = shape.layout.chunk(extent.first);
                let len = range.and_then(|range| usize::try_from(range.len_bytes).ok());
                self.plain.resize(len.unwrap_or(0), 0);
                codec::fill(&mut self.plain, extent.entry.location.to_le_bytes());
                self.check_digest(extent.first.0, extent.entry.digest)
            }
            _ => Ok(()),
        }
    }

    /// The source of a duplicate is an earlier data chunk of the same digest (spec 8.10).
    fn check_duplicate(&mut self, frame: &FrameInfo, extent: &Extent) -> Result<()> {
        let (chunk, source_chunk) = (extent.first.0, extent.entry.location);
        let Some(lookup) = &mut self.lookup else {
            return Ok(());
        };
        let source = lookup.entry(source_chunk, self.findings)?;
        let valid = source.is_some_and(|source| {
            source.kind.is_data() && source.location < frame.offset && source.digest == extent.entry.digest
        });
        // A leaf that cannot be read is a finding of its own.
        if !valid && (source.is_some() || self.findings.is_empty()) {
            let guest = self.guest(chunk);
            self.findings.corrupt(Corruption::DuplicateSource {
                chunk,
                source_chunk,
                guest,
            });
        }
        Ok(())
    }

    /// A chunk in the parent has the digest that the parent states, and its content (spec 11.4).
    fn check_parent_chunk(&mut self, extent: &Extent, shape: &IndexShape) -> Result<()> {
        let (chunk, stored) = (extent.first.0, extent.entry.digest);
        let guest = self.guest(chunk);
        if self
            .structures
            .header
            .as_ref()
            .is_some_and(|header| header.parent.is_none())
        {
            self.findings
                .corrupt(Corruption::UnexpectedParent { chunk, guest });
            return Ok(());
        }
        let Some((parent, decoder)) = self.parent.as_mut().filter(|_| self.deep) else {
            return Ok(());
        };
        let entry = parent.chunk_entry(extent.first)?;
        if entry.digest != stored {
            self.findings.corrupt(Corruption::ParentDigest {
                chunk,
                stored,
                found: entry.digest,
                guest,
            });
            return Ok(());
        }
        let len = shape
            .layout
            .chunk(extent.first)
            .and_then(|range| usize::try_from(range.len_bytes).ok());
        self.plain.resize(len.unwrap_or(0), 0);
        match decoder.read_chunk(extent.first, &mut self.plain) {
            Ok(()) => self.check_digest(chunk, stored),
            // Damage in the parent loses this chunk as well; the message names the parent's structure.
            Err(error) => self.lose(chunk, error),
        }
    }
}
