//! Files in the making: a temporary name beside the target, mode 0600, renamed when complete.
//!
//! Dropping a [`Target`] removes the temporary file, so errors and interrupts leave nothing behind.
//! The files are not flushed to the disk: they can be made again, and to wait for gigabytes of
//! memory would be most of the time that an extraction takes.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use snapfile::{PAGE_SIZE, Snapshot};
use tempfile::NamedTempFile;

/// A file that receives guest memory.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    file: NamedTempFile,
    /// Where each memory region begins in the file.
    region_offsets: Vec<u64>,
}

impl Target {
    /// Begins a file of `len_bytes`, all of it a hole, with `head` at its start.
    pub fn create(
        path: &Path,
        len_bytes: u64,
        head: &[u8],
        region_offsets: Vec<u64>,
    ) -> anyhow::Result<Self> {
        let begin = || -> std::io::Result<NamedTempFile> {
            let file = create_beside(path)?;
            file.as_file().set_len(len_bytes)?;
            file.as_file().write_all_at(head, 0)?;
            Ok(file)
        };
        let file = begin().with_context(|| path.display().to_string())?;
        Ok(Self {
            path: path.to_owned(),
            file,
            region_offsets,
        })
    }

    /// The final name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes memory that lies `offset` bytes into a region; pages of zeros stay holes.
    pub fn write(&self, region: usize, offset: u64, plain: &[u8]) -> anyhow::Result<()> {
        let Some(region_offset) = self.region_offsets.get(region) else {
            return Ok(());
        };
        let page_bytes = usize::try_from(PAGE_SIZE)?;
        let mut position = region_offset + offset;
        let pages: Vec<&[u8]> = plain.chunks(page_bytes).collect();
        for run in pages.chunk_by(|left, right| is_zero(left) == is_zero(right)) {
            let len_bytes: usize = run.iter().map(|page| page.len()).sum();
            if run.first().is_some_and(|page| !is_zero(page)) {
                let start = usize::try_from(position - region_offset - offset)?;
                let bytes = plain.get(start..start + len_bytes).unwrap_or_default();
                self.file
                    .as_file()
                    .write_all_at(bytes, position)
                    .with_context(|| self.path.display().to_string())?;
            }
            position += len_bytes as u64;
        }
        Ok(())
    }

    /// Gives the file its name; returns its length.
    pub fn commit(self) -> anyhow::Result<u64> {
        commit(self.file, &self.path).with_context(|| self.path.display().to_string())
    }
}

/// Begins a file in which the offset is the guest physical address.
pub fn raw_memory(path: &Path, snapshot: &Snapshot) -> anyhow::Result<Target> {
    let regions = snapshot.memory_map().regions();
    let len_bytes = regions.last().map_or(0, |region| region.end());
    Target::create(
        path,
        len_bytes,
        &[],
        regions.iter().map(|region| region.guest_address).collect(),
    )
}

/// Writes a small text file atomically; returns its length.
pub fn write_text(path: &Path, text: &str) -> anyhow::Result<u64> {
    let write = || -> std::io::Result<u64> {
        let mut file = create_beside(path)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        commit(file, path)
    };
    write().with_context(|| path.display().to_string())
}

fn create_beside(path: &Path) -> std::io::Result<NamedTempFile> {
    if std::fs::metadata(path).is_ok_and(|data| !data.is_file()) {
        return Err(std::io::Error::other("exists and is not a regular file"));
    }
    tempfile::Builder::new()
        .prefix(".snaptool-")
        .tempfile_in(directory(path))
}

fn commit(file: NamedTempFile, path: &Path) -> std::io::Result<u64> {
    let len_bytes = file.as_file().metadata()?.len();
    file.persist(path)?;
    Ok(len_bytes)
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn is_zero(page: &[u8]) -> bool {
    let (words, rest) = page.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
