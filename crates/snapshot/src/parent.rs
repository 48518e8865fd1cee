//! Finding the parent of an incremental snapshot, and where a reader will find it again.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use snapfile::{Parent, Snapshot};

use crate::error::{Error, Result};

/// Opens the parent at `parent` for a new snapshot at `child`, whose directory exists.
///
/// Refuses a child that would take the place of its parent, or of a file that its parent needs.
pub(crate) fn open_parent(parent: &Path, child: &Path) -> Result<Parent> {
    let snapshot = Snapshot::open_with_parents(parent).map_err(Error::read(parent))?;
    refuse_replacing(child, parent, &snapshot)?;
    let directory = match child.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    let hint = relative(&canonical(parent)?, &canonical(directory)?);
    Ok(Parent {
        snapshot: Arc::new(snapshot),
        hint: hint.to_string_lossy().into_owned(),
    })
}

/// Follows the chain of parents as a reader does, by their hints.
fn refuse_replacing(child: &Path, parent: &Path, snapshot: &Snapshot) -> Result<()> {
    let Ok(child) = child.canonicalize() else {
        return Ok(()); // Nothing is there yet.
    };
    let mut ancestor = canonical(parent)?;
    let mut snapshot = snapshot;
    loop {
        if ancestor == child {
            return Err(Error::ReplacesParent { path: ancestor });
        }
        let (Some(next), Some(reference)) = (snapshot.parent(), &snapshot.header().parent) else {
            return Ok(());
        };
        let directory = ancestor.parent().unwrap_or(Path::new("/"));
        ancestor = canonical(&directory.join(&reference.hint))?;
        snapshot = next;
    }
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|source| Error::Path {
        path: path.to_owned(),
        source,
    })
}

/// The way from `directory` to `file`; both are absolute and without links.
fn relative(file: &Path, directory: &Path) -> PathBuf {
    let shared = file
        .components()
        .zip(directory.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = directory.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(file.components().skip(shared)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_leads_from_the_child_to_the_parent() {
        for (file, directory, hint) in [
            ("/a/b/p.vmsnap", "/a/b", "p.vmsnap"),
            ("/a/p.vmsnap", "/a/b/c", "../../p.vmsnap"),
            ("/x/p.vmsnap", "/a", "../x/p.vmsnap"),
        ] {
            assert_eq!(relative(Path::new(file), Path::new(directory)), Path::new(hint));
        }
    }
}
