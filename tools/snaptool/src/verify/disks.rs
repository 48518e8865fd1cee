//! Compares the copies of disks that lie beside a snapshot with their fingerprints.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use snapfile::Snapshot;

use crate::disks::{Disk, Fingerprint};
use crate::progress::Progress;

/// Bytes that are read at a time.
const STEP_BYTES: usize = 1 << 20;

/// What became of the copy of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyState {
    /// It is as of the snapshot.
    Matches,
    /// It is not: a restore would join memory with a disk of another time.
    Differs,
    /// It is not beside the snapshot; it may be elsewhere.
    Missing,
    /// It is of a format whose content is not known here.
    UnknownFormat,
    /// None was made.
    NotCopied,
}

/// The format in which the bytes of a file are those of the disk.
const RAW: &str = "raw";

/// A disk and its copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckedDisk {
    /// Name of the disk.
    pub id: String,
    /// File name of the copy.
    pub copy: Option<String>,
    /// What became of it.
    pub state: CopyState,
}

/// Checks every disk of a snapshot.
///
/// # Errors
/// The disk table or a copy cannot be read.
pub fn check(file: &Path) -> anyhow::Result<Vec<CheckedDisk>> {
    let disks = Disk::all(&Snapshot::open(file)?)?;
    let progress = Progress::new("verify disks");
    let total = disks.iter().map(|disk| disk.virtual_size_bytes).sum();
    let mut done = 0;
    let mut checked = Vec::with_capacity(disks.len());
    for disk in disks {
        let state = state(&disk, file, |bytes| {
            done += bytes;
            progress.update(done, total);
        })?;
        checked.push(CheckedDisk {
            id: disk.id,
            copy: disk.copy,
            state,
        });
    }
    Ok(checked)
}

fn state(disk: &Disk, snapshot: &Path, progress: impl FnMut(u64)) -> anyhow::Result<CopyState> {
    let Some(expected) = disk.fingerprint else {
        return Ok(CopyState::NotCopied);
    };
    let Some(copy) = disk.copy_beside(snapshot) else {
        return Ok(CopyState::Missing);
    };
    if disk.format != RAW {
        return Ok(CopyState::UnknownFormat);
    }
    let found =
        fingerprint(&copy, disk.virtual_size_bytes, progress).with_context(|| copy.display().to_string())?;
    Ok(if found == Some(expected) {
        CopyState::Matches
    } else {
        CopyState::Differs
    })
}

/// Returns the fingerprint of a file, or `None` if it has another length.
fn fingerprint(
    path: &Path,
    len_bytes: u64,
    mut progress: impl FnMut(u64),
) -> std::io::Result<Option<Fingerprint>> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != len_bytes {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; STEP_BYTES];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(Some(Fingerprint(*hasher.finalize().as_bytes())));
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
        progress(read as u64);
    }
}
