//! Fingerprints that need not be computed again.
//!
//! A layer is immutable: while a file has the same length and the same time of last change, so is its content. The layers
//! of a running machine are thus read once, however many snapshots are taken of it, and those of the snapshot that it
//! was restored from not even that.

use std::collections::HashMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use super::Fingerprint;

/// What is known of the content of files; clones are the same knowledge.
#[derive(Debug, Clone, Default)]
pub struct KnownFingerprints {
    known: Arc<Mutex<HashMap<FileVersion, Fingerprint>>>,
}

/// A file as it was at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileVersion {
    device: u64,
    inode: u64,
    length_bytes: u64,
    mtime_ns: u64,
}

impl KnownFingerprints {
    /// Returns the fingerprint of a file that has not changed since it was told.
    pub(crate) fn get(&self, file: &Metadata) -> Option<Fingerprint> {
        let version = FileVersion::of(file)?;
        self.lock().get(&version).copied()
    }

    /// Takes note of the fingerprint of a file as it is now.
    pub(crate) fn insert(&self, file: &Metadata, fingerprint: Fingerprint) {
        if let Some(version) = FileVersion::of(file) {
            self.lock().insert(version, fingerprint);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<FileVersion, Fingerprint>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FileVersion {
    /// Nothing for what is no regular file: the time of a device says nothing of its content.
    fn of(file: &Metadata) -> Option<Self> {
        file.is_file().then(|| Self {
            device: file.dev(),
            inode: file.ino(),
            length_bytes: file.len(),
            mtime_ns: mtime_ns(file),
        })
    }
}

/// The time of a file's last change in nanoseconds since the Unix epoch; what is before that counts as the epoch.
pub(crate) fn mtime_ns(file: &Metadata) -> u64 {
    let (seconds, nanoseconds) = (file.mtime(), file.mtime_nsec());
    let ns = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    u64::try_from(ns.max(0)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn a_file_is_known_until_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("layer");
        fs::write(&path, "content").unwrap();
        let known = KnownFingerprints::default();
        let before = fs::metadata(&path).unwrap();
        assert_eq!(known.get(&before), None);
        known.insert(&before, Fingerprint([7; 32]));
        assert_eq!(known.clone().get(&before), Some(Fingerprint([7; 32])));
        fs::write(&path, "longer content").unwrap();
        assert_eq!(known.get(&fs::metadata(&path).unwrap()), None);
        assert_eq!(
            known.get(&File::open("/dev/null").unwrap().metadata().unwrap()),
            None
        );
    }
}
