//! Index leaves of an open file: read when needed, a bounded number kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::Files;
use crate::error::Result;
use crate::format::RootEntry;
use crate::index::{IndexShape, Leaf};

/// Bytes of leaves that are kept, but at least one leaf.
const KEPT_BYTES: usize = 8 << 20;

/// The root in memory, and the leaves read last.
#[derive(Debug)]
pub(super) struct Leaves {
    root: Vec<RootEntry>,
    root_offset: u64,
    /// Newest first; guards nothing but itself.
    kept: Mutex<VecDeque<(u64, Arc<Leaf>)>>,
}

impl Leaves {
    /// Makes the leaves of a file with this root, whose frame is at `root_offset`.
    pub(super) fn new(root: Vec<RootEntry>, root_offset: u64) -> Self {
        Self {
            root,
            root_offset,
            kept: Mutex::default(),
        }
    }

    /// Returns the offset before which all data frames end.
    pub(super) fn data_end(&self) -> u64 {
        self.root_offset
    }

    /// Returns a leaf, kept or read; `None` if all its chunks are zero.
    pub(super) fn get(&self, leaf: u64, files: &Files<'_>, shape: &IndexShape) -> Result<Option<Arc<Leaf>>> {
        let entry = usize::try_from(leaf).ok().and_then(|leaf| self.root.get(leaf));
        let Some(entry) = entry.filter(|entry| entry.offset != 0) else {
            return Ok(None);
        };
        if let Some(kept) = self.find(leaf) {
            return Ok(Some(kept));
        }
        let (frame, padded) = files.frame(entry.offset)?;
        let parsed = Arc::new(Leaf::parse(&frame, leaf, padded, Some(entry.leaf_crc), shape)?);
        self.keep(leaf, &parsed);
        Ok(Some(parsed))
    }

    fn find(&self, leaf: u64) -> Option<Arc<Leaf>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|(number, _)| *number == leaf)?;
        let found = kept.remove(place)?;
        let parsed = Arc::clone(&found.1);
        kept.push_front(found);
        Some(parsed)
    }

    fn keep(&self, leaf: u64, parsed: &Arc<Leaf>) {
        let most = (KEPT_BYTES / parsed.len_bytes().max(1)).max(1);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_front((leaf, Arc::clone(parsed)));
        kept.truncate(most);
    }
}
