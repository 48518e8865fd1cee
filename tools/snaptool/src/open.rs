//! Opens a snapshot file and looks for the parents it needs.
//!
//! The path in a file is only a hint and is not trusted: its last part is looked for in the
//! directories that the user named (by default that of the file), and whatever is found must have
//! the root digest that the child states.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use snapfile::limits::MAX_PARENT_DEPTH;
use snapfile::{Digest, Snapshot};

use crate::cli::ParentArgs;

/// Opens a snapshot without its parents.
pub fn open(path: &Path) -> anyhow::Result<Snapshot> {
    Snapshot::open(path).with_context(|| path.display().to_string())
}

/// Opens a snapshot and those of its parents that can be found.
///
/// A parent that is not found is no error here: it may not be needed.
pub fn open_with_parents(path: &Path, args: &ParentArgs) -> anyhow::Result<Snapshot> {
    let mut candidates = HashMap::new();
    for file in &args.files {
        let snapshot = open(file)?;
        candidates.insert(snapshot.root_digest(), (file.clone(), snapshot));
    }
    resolve(open(path)?, path, args, &mut candidates, MAX_PARENT_DEPTH)
}

type Candidates = HashMap<Digest, (PathBuf, Snapshot)>;

fn resolve(
    snapshot: Snapshot,
    path: &Path,
    args: &ParentArgs,
    candidates: &mut Candidates,
    depth_left: usize,
) -> anyhow::Result<Snapshot> {
    let Some(reference) = snapshot.header().parent.clone() else {
        return Ok(snapshot);
    };
    let Some(depth_left) = depth_left.checked_sub(1) else {
        bail!("{}: more than {MAX_PARENT_DEPTH} parents", path.display());
    };
    let found = candidates
        .remove(&reference.root_digest)
        .or_else(|| find_by_hint(&reference.hint, &reference.root_digest, path, args));
    let Some((parent_path, parent)) = found else {
        return Ok(snapshot);
    };
    let parent = resolve(parent, &parent_path, args, candidates, depth_left)?;
    snapshot
        .with_parent(Arc::new(parent))
        .with_context(|| format!("{}: parent {}", path.display(), parent_path.display()))
}

fn find_by_hint(
    hint: &str,
    root_digest: &Digest,
    child: &Path,
    args: &ParentArgs,
) -> Option<(PathBuf, Snapshot)> {
    let name = Path::new(hint).file_name()?;
    let beside = [child.parent().unwrap_or(Path::new("")).to_owned()];
    let directories = if args.directories.is_empty() {
        &beside[..]
    } else {
        &args.directories
    };
    directories
        .iter()
        .map(|directory| directory.join(name))
        .find_map(|path| {
            let snapshot = Snapshot::open(&path).ok()?;
            (snapshot.root_digest() == *root_digest).then_some((path, snapshot))
        })
}
