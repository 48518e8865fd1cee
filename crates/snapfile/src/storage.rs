//! Where the bytes are: positioned reads, and the atomic commit of a new file.
//!
//! A [`SnapshotFile`] is written under a temporary name in the directory of its final name and
//! renamed when it is durable, so that a reader sees the whole snapshot or none (spec 10.7).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::error::Result;

/// Positioned reads of a snapshot file, from any thread.
pub trait ReadAt: Send + Sync {
    /// Fills `buf` from `offset` on, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Returns the length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Returns whether there are no bytes at all.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let bytes = start.checked_add(buf.len()).and_then(|end| self.get(start..end));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(Vec::len(self) as u64)
    }
}

/// A snapshot file in the making: it has its final name only after [`SnapshotFile::commit`].
///
/// Dropped without a commit, it leaves nothing behind.
#[derive(Debug)]
pub struct SnapshotFile {
    file: File,
    temporary: TempPath,
    path: PathBuf,
}

impl SnapshotFile {
    /// Creates a temporary file, mode 0600, in the directory of `path`.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let name = path
            .file_name()
            .ok_or(io::ErrorKind::InvalidFilename)
            .map_err(io::Error::from)?;
        let mut prefix = std::ffi::OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        let temporary: NamedTempFile = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".tmp")
            .tempfile_in(directory(&path))?;
        let (file, temporary) = temporary.into_parts();
        Ok(Self {
            file,
            temporary,
            path,
        })
    }

    /// Returns the temporary path.
    pub fn temporary_path(&self) -> &Path {
        &self.temporary
    }

    /// Returns the file, for advice to the operating system about its pages.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes the file durable and gives it its final name, replacing a file that has it.
    pub fn commit(self) -> Result<()> {
        self.file.sync_all()?;
        self.temporary
            .persist(&self.path)
            .map_err(|failed| failed.error)?;
        File::open(directory(&self.path))?.sync_all()?;
        Ok(())
    }
}

impl io::Write for SnapshotFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Returns the directory that a file is in.
pub(crate) fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Opens a regular file for reading; anything else could block or have side effects.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn commit_replaces_the_file_and_makes_it_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.vmsnap");
        fs::write(&path, "old").unwrap();
        let mut file = SnapshotFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(
            fs::read(&path).unwrap(),
            b"old",
            "nothing is seen before the commit"
        );
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn without_a_commit_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = SnapshotFile::create(dir.path().join("vm.vmsnap")).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_regular_files_are_opened() {
        assert!(open_regular(Path::new("/dev/null")).is_err());
        assert!(open_regular(Path::new("/")).is_err());
    }
}
