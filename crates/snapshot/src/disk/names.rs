//! The names of files that belong to a snapshot, and of those that are found through it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use vmm::DiskFormat;

use super::DiskError;

/// Names that are tried for a frozen image before the directory counts as full of them.
const MAX_NUMBER: u32 = 9999;

/// The name of the copy of a disk beside the snapshot, such as `out.vmsnap.data.raw`.
pub(super) fn copy_name(snapshot: &Path, id: &str, format: &str) -> OsString {
    let mut name = snapshot.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{id}.{format}"));
    name
}

/// Chooses the name of a frozen image in `directory`: `out.vmsnap.data.qcow2`, or with a number if that is taken.
pub(super) fn frozen_path(
    snapshot: &Path,
    id: &str,
    format: &str,
    directory: &Path,
) -> Result<PathBuf, DiskError> {
    let plain = directory.join(copy_name(snapshot, id, format));
    let numbered =
        (1..=MAX_NUMBER).map(|number| directory.join(copy_name(snapshot, id, &format!("{number}.{format}"))));
    let mut candidates = std::iter::once(plain.clone()).chain(numbered);
    // A dangling link is a name that is taken, too.
    let free = candidates.find(|path| path.symlink_metadata().is_err());
    free.ok_or(DiskError::FrozenTaken { path: plain })
}

/// The name of a format, as in the disk table and at the end of a file's name.
pub(crate) fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
        _ => "image",
    }
}

/// The directory that a file is in.
pub(super) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A file's path without links in its directory; the file itself may be one.
pub(super) fn real_path(path: &Path) -> io::Result<PathBuf> {
    Ok(match path.file_name() {
        Some(name) => directory(path).canonicalize()?.join(name),
        None => path.canonicalize()?,
    })
}

/// How a layer is recorded: relative to the directory of the snapshot if it is in it or below (sections 7.2).
pub(super) fn recorded_path(layer: &Path, snapshot: &Path) -> io::Result<PathBuf> {
    let layer = real_path(layer)?;
    let beside = directory(snapshot).canonicalize()?;
    Ok(layer.strip_prefix(&beside).map(Path::to_owned).unwrap_or(layer))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        let directory = tempfile::tempdir().unwrap();
        let choose = || frozen_path(Path::new("/x/out.vmsnap"), "data", "qcow2", directory.path()).unwrap();
        for expected in [
            "out.vmsnap.data.qcow2",
            "out.vmsnap.data.1.qcow2",
            "out.vmsnap.data.2.qcow2",
        ] {
            assert_eq!(choose(), directory.path().join(expected));
            std::os::unix::fs::symlink("nowhere", choose()).unwrap();
        }
    }

    #[test]
    fn a_layer_below_the_snapshot_is_recorded_relative_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir_all(at("snapshots/images")).unwrap();
        fs::create_dir(at("elsewhere")).unwrap();
        std::os::unix::fs::symlink("snapshots", at("link")).unwrap();
        for (layer, recorded) in [
            ("snapshots/a.qcow2", "a.qcow2"),
            ("link/a.qcow2", "a.qcow2"),
            ("snapshots/images/a.qcow2", "images/a.qcow2"),
        ] {
            let found = recorded_path(&at(layer), &at("snapshots/out.vmsnap")).unwrap();
            assert_eq!(found, Path::new(recorded));
        }
        let other = recorded_path(&at("elsewhere/a.qcow2"), &at("link/out.vmsnap")).unwrap();
        assert!(other.is_absolute() && other.ends_with("elsewhere/a.qcow2"));
    }
}
