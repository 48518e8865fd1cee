//! The file being written, with its length visible to other threads.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use snapfile::SnapshotFile;

/// A snapshot file in the making that counts what it takes.
#[derive(Debug)]
pub(crate) struct Output {
    file: SnapshotFile,
    /// For display only.
    written: Arc<AtomicU64>,
}

impl Output {
    pub(crate) fn create(path: &Path, written: Arc<AtomicU64>) -> snapfile::Result<Self> {
        Ok(Self {
            file: SnapshotFile::create(path)?,
            written,
        })
    }

    /// Makes the bytes durable; a commit afterwards has little left to do but to give the file its name.
    pub(crate) fn sync(&self) -> snapfile::Result<()> {
        Ok(self.file.file().sync_all()?)
    }

    pub(crate) fn commit(self) -> snapfile::Result<()> {
        self.file.commit()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.file.write(bytes)?;
        self.written.fetch_add(taken as u64, Ordering::Relaxed);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
