//! Chains of parents (spec 11): which file may be the parent of which, and how to find it.
//!
//! A chain is checked where two files are joined, so that a chain that exists is sound: right root
//! digests, one layout, no file twice, no more parents than the limit.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, ParentError, Result};
use crate::limits::MAX_PARENT_DEPTH;
use crate::reader::Snapshot;
use crate::storage::directory;

/// Refuses a parent that does not belong to `child` (spec 11.2, 11.5).
pub(crate) fn check(child: &Snapshot, parent: &Snapshot) -> Result<()> {
    let Some(reference) = &child.header().parent else {
        return Err(ParentError::NotIncremental.into());
    };
    if parent.root_digest() != reference.root_digest {
        let (expected, found) = (reference.root_digest, parent.root_digest());
        return Err(ParentError::RootDigest { expected, found }.into());
    }
    let layouts = [
        ("memory map", child.memory_map() == parent.memory_map()),
        ("chunk size", child.chunk_size() == parent.chunk_size()),
        (
            "architecture",
            child.header().architecture == parent.header().architecture,
        ),
    ];
    if let Some((what, _)) = layouts.iter().find(|(_, agrees)| !agrees) {
        return Err(ParentError::Layout { what }.into());
    }
    if parent.depth() >= MAX_PARENT_DEPTH {
        return Err(ParentError::TooDeep {
            limit: MAX_PARENT_DEPTH,
        }
        .into());
    }
    let file_id = child.file_id();
    if parent.chain().any(|ancestor| ancestor.file_id() == file_id) {
        return Err(ParentError::Loop { file_id }.into());
    }
    Ok(())
}

/// Opens a file and its parents, each found by the hint of its child.
pub(crate) fn open_chain(path: &Path) -> Result<Snapshot> {
    let mut chain: Vec<Snapshot> = Vec::new();
    let mut next = Some(path.to_owned());
    while let Some(path) = next {
        let snapshot = Snapshot::open(&path)?;
        if chain.len() > MAX_PARENT_DEPTH {
            return Err(ParentError::TooDeep {
                limit: MAX_PARENT_DEPTH,
            }
            .into());
        }
        let file_id = snapshot.file_id();
        if chain.iter().any(|child| child.file_id() == file_id) {
            return Err(ParentError::Loop { file_id }.into());
        }
        next = parent_path(&snapshot, &path)?;
        chain.push(snapshot);
    }
    let mut parent: Option<Snapshot> = None;
    while let Some(child) = chain.pop() {
        parent = Some(match parent {
            Some(parent) => child.with_parent(Arc::new(parent))?,
            None => child,
        });
    }
    parent.ok_or_else(|| Error::from(ParentError::NotIncremental))
}

/// Returns where the parent of `snapshot` should be (spec 11.3).
fn parent_path(snapshot: &Snapshot, path: &Path) -> Result<Option<PathBuf>> {
    let Some(reference) = &snapshot.header().parent else {
        return Ok(None);
    };
    let hint = &reference.hint;
    let found = directory(path).join(hint);
    if hint.is_empty() {
        return Err(ParentError::Missing {
            root_digest: reference.root_digest,
            hint: hint.clone(),
        }
        .into());
    }
    if !found.is_file() {
        return Err(ParentError::Hint { hint: hint.clone() }.into());
    }
    Ok(Some(found))
}
