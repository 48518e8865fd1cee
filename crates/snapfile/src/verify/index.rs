//! The index, leaf by leaf: is it well-formed, what does it add up to, where is chunk n?
//!
//! One pass over all leaves counts the chunks by kind, computes the root digest from the digests
//! that the entries state, and takes the fingerprint that the frames must match.

use std::collections::HashSet;
use std::ops::Range;

use super::Depth;
use super::findings::Findings;
use super::fingerprint::Fingerprint;
use super::structures::{Structures, read_frame_header, read_payload};
use crate::chunk::{ChunkCounts, ChunkEntry, ChunkKind};
use crate::digest::{Digest, MemoryDigests, root_digest};
use crate::error::{Corruption, Result};
use crate::footer;
use crate::format::{FrameType, IndexEntry, RootEntry};
use crate::frame::FRAME_HEADER_LEN;
use crate::index::{IndexShape, Leaf};
use crate::memory_map::ChunkNumber;
use crate::storage::ReadAt;

/// What the index adds up to.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// What it describes; `None` if a part of it cannot be read.
    pub(super) fingerprint: Option<Fingerprint>,
    /// Leaves that are there.
    pub(super) leaves: u64,
    /// Bytes of their frames.
    pub(super) checked_bytes: u64,
}

/// The sound structures that locate leaves.
#[derive(Clone, Copy)]
pub(super) struct Leaves<'a> {
    storage: &'a dyn ReadAt,
    structures: &'a Structures,
    pub(super) shape: &'a IndexShape,
    root: &'a [RootEntry],
}

impl<'a> Leaves<'a> {
    /// Returns `None` if a structure that is needed is damaged.
    pub(super) fn new(storage: &'a dyn ReadAt, structures: &'a Structures) -> Option<Self> {
        let (shape, root) = (structures.shape.as_ref()?, structures.root.as_deref()?);
        Some(Self {
            storage,
            structures,
            shape,
            root,
        })
    }

    fn root_entry(&self, leaf: u64) -> Option<&'a RootEntry> {
        self.root
            .get(usize::try_from(leaf).ok()?)
            .filter(|entry| entry.offset != 0)
    }

    /// Reads a leaf that is there, and records what is wrong with it.
    fn read(&self, leaf: u64, entry: &RootEntry, findings: &Findings) -> Result<Option<Leaf>> {
        let frame = read_frame_header(self.storage, self.structures.file_bytes, entry.offset);
        let read = frame.and_then(|frame| {
            frame.expect(FrameType::Leaf, leaf)?;
            let padded = read_payload(self.storage, &frame)?;
            Leaf::parse(&frame, leaf, padded, Some(entry.leaf_crc), self.shape)
        });
        findings.note_with(read, || self.shape.leaf_guest(leaf))
    }

    /// Decodes the entry of a chunk, and records what is wrong with it.
    fn decode(&self, chunk: u64, leaf: &Leaf, findings: &Findings) -> Result<Option<ChunkEntry>> {
        let Some(raw) = leaf.raw_entry(ChunkNumber(chunk)) else {
            return Ok(None);
        };
        let data_end = self
            .structures
            .footer
            .as_ref()
            .map_or(0, |footer| footer.root_offset);
        findings.note(self.shape.parse_entry(ChunkNumber(chunk), &raw, data_end))
    }

    /// Calls `visit` with every readable entry in the order of the chunks; chunks that are zero for
    /// want of a leaf come as one run. Returns whether everything could be read.
    pub(super) fn for_each(
        &self,
        findings: &Findings,
        mut visit: impl FnMut(Range<u64>, Option<&ChunkEntry>) -> Result<()>,
    ) -> Result<bool> {
        let mut complete = true;
        for leaf in 0..self.root.len() as u64 {
            let chunks = self.shape.leaf_chunks(leaf);
            let Some(entry) = self.root_entry(leaf) else {
                visit(chunks, None)?;
                continue;
            };
            let Some(leaf) = self.read(leaf, entry, findings)? else {
                complete = false;
                continue;
            };
            for chunk in chunks {
                match self.decode(chunk, &leaf, findings)? {
                    Some(entry) => visit(chunk..chunk + 1, Some(&entry))?,
                    None => complete = false,
                }
            }
        }
        Ok(complete)
    }
}

/// Reads all leaves and compares what they add up to with the footer.
pub(super) fn read(
    storage: &dyn ReadAt,
    structures: &Structures,
    depth: Depth,
    findings: &Findings,
) -> Result<Index> {
    let Some(leaves) = Leaves::new(storage, structures) else {
        return Ok(Index::default());
    };
    let mut sums = Sums::new(leaves.shape, depth);
    let complete = leaves.for_each(findings, |chunks, entry| {
        sums.add(chunks, entry);
        Ok(())
    })?;
    let fingerprint = complete.then_some(sums.fingerprint);
    if complete {
        sums.compare(structures, findings);
    }
    let present = leaves.root.iter().filter(|entry| entry.offset != 0).count() as u64;
    let frame_bytes = FRAME_HEADER_LEN + ((IndexEntry::LEN as u64) << leaves.shape.leaf_entries_log2);
    Ok(Index {
        fingerprint,
        leaves: present,
        checked_bytes: present * frame_bytes,
    })
}

/// Sums over all entries.
struct Sums {
    depth: Depth,
    counts: ChunkCounts,
    stored_bytes: u64,
    fingerprint: Fingerprint,
    digests: MemoryDigests,
    /// The chunk that comes next; digests join only without gaps.
    next_chunk: u64,
}

impl Sums {
    fn new(shape: &IndexShape, depth: Depth) -> Self {
        Self {
            depth,
            counts: ChunkCounts::default(),
            stored_bytes: 0,
            fingerprint: Fingerprint::default(),
            digests: MemoryDigests::new(&shape.layout),
            next_chunk: 0,
        }
    }

    fn add(&mut self, chunks: Range<u64>, entry: Option<&ChunkEntry>) {
        let count = chunks.end - chunks.start;
        let kind = entry.map_or(ChunkKind::Zero, |entry| entry.kind);
        self.counts.add(kind, count);
        self.stored_bytes = self
            .stored_bytes
            .saturating_add(entry.map_or(0, |entry| u64::from(entry.stored_len)));
        if self.depth == Depth::Quick || chunks.start != self.next_chunk {
            return;
        }
        self.next_chunk = chunks.end;
        match entry {
            Some(entry) if entry.kind != ChunkKind::Zero => {
                self.fingerprint.add(chunks.start, entry);
                self.digests.push(entry.digest);
            }
            _ => {
                self.fingerprint.add_zeros(chunks.start, count);
                self.digests.push_zeros(count);
            }
        }
    }

    fn compare(self, structures: &Structures, findings: &Findings) {
        let (Some(footer), Some(header), Some(map)) =
            (&structures.footer, &structures.header, &structures.map)
        else {
            return;
        };
        let offset = structures.footer_offset();
        let stated = footer::counts(footer);
        for kind in ChunkKind::ALL {
            if stated.of(kind) != self.counts.of(kind) {
                findings.corrupt(Corruption::FooterField {
                    offset,
                    field: kind.name(),
                });
            }
        }
        if footer.stored_bytes != self.stored_bytes {
            findings.corrupt(Corruption::FooterField {
                offset,
                field: "stored bytes",
            });
        }
        if let Some(directory) = structures
            .directory
            .as_ref()
            .filter(|_| self.depth != Depth::Quick)
        {
            let states = directory
                .iter()
                .filter_map(|section| section.as_state())
                .collect();
            let computed = root_digest(header.architecture.code(), map, &self.digests.finish(), states);
            let stored = Digest(footer.root_digest);
            if stored != computed {
                findings.corrupt(Corruption::RootDigest { stored, computed });
            }
        }
    }
}

/// Looks chunks up; every thread has its own and keeps the leaves it used last.
pub(super) struct Lookup<'a> {
    leaves: Leaves<'a>,
    recent: Vec<(u64, Option<Leaf>)>,
}

/// Leaves that a [`Lookup`] keeps; a duplicate's source is mostly near the last one's.
const RECENT_LEAVES: usize = 8;

impl<'a> Lookup<'a> {
    pub(super) fn new(leaves: Leaves<'a>) -> Self {
        Self {
            leaves,
            recent: Vec::new(),
        }
    }

    /// Returns the entry of a chunk; `None` if it is zero for want of a leaf, or damaged.
    pub(super) fn entry(&mut self, chunk: u64, findings: &Findings) -> Result<Option<ChunkEntry>> {
        let number = self.leaves.shape.leaf_of(ChunkNumber(chunk));
        if !self.recent.iter().any(|(known, _)| *known == number) {
            let leaf = match self.leaves.root_entry(number) {
                Some(entry) => self.leaves.read(number, entry, findings)?,
                None => None,
            };
            self.recent.truncate(RECENT_LEAVES - 1);
            self.recent.insert(0, (number, leaf));
        }
        match self.recent.iter().find(|(known, _)| *known == number) {
            Some((_, Some(leaf))) => self.leaves.decode(chunk, leaf, findings),
            _ => Ok(None),
        }
    }
}

/// Adds to every lost chunk the guest memory of its duplicates.
pub(super) fn add_duplicates(
    storage: &dyn ReadAt,
    structures: &Structures,
    findings: &Findings,
) -> Result<()> {
    let lost: HashSet<u64> = findings.lost_chunks().into_iter().collect();
    let Some(leaves) = Leaves::new(storage, structures).filter(|_| !lost.is_empty()) else {
        return Ok(());
    };
    leaves.for_each(findings, |chunks, entry| {
        if let Some(entry) = entry.filter(|entry| entry.kind == ChunkKind::Duplicate)
            && lost.contains(&entry.location)
        {
            findings.extend(entry.location, &leaves.shape.layout.guest_ranges(chunks));
        }
        Ok(())
    })?;
    Ok(())
}
