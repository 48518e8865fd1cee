//! Disks that are kept by a copy.

use std::any::Any;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::TempPath;

use vmm::DiskFormat;

use super::DiskResult;
use super::kept::KeptTimes;
use crate::disk::beside::Watch;
use crate::disk::copy::copy_content;
use crate::disk::fingerprint::{fingerprint, mtime_ns};
use crate::disk::names::{copy_name, directory, format_name};
use crate::disk::{DiskError, DiskSource, DisksMode, Fingerprint};
use crate::machine_record::LayerRecord;

/// The file that a copy goes to, under a temporary name.
#[derive(Debug)]
pub(super) struct Target {
    content: File,
    file: File,
    temporary: TempPath,
    path: PathBuf,
}

/// A durable copy that does not have its name yet.
#[derive(Debug)]
pub(super) struct DiskCopy {
    temporary: TempPath,
    pub(super) path: PathBuf,
    pub(super) fingerprint: Fingerprint,
    pub(super) times: KeptTimes,
}

impl Target {
    /// Opens the disk's file, and creates a hidden one, mode 0600, beside the snapshot.
    pub(super) fn prepare(source: &dyn DiskSource, format: DiskFormat, snapshot: &Path) -> DiskResult<Self> {
        if format != DiskFormat::Raw {
            return Err(DiskError::WrongFormat {
                format: format_name(format),
                mode: DisksMode::Copy.name(),
                wanted: "raw",
            });
        }
        let config = source.config();
        let path = directory(snapshot).join(copy_name(snapshot, &config.id, format_name(format)));
        let open = |path: &Path| {
            let path = path.to_owned();
            move |source| DiskError::Open { path, source }
        };
        let content = source.file().map_err(open(&config.file))?;
        let (file, temporary) = create_hidden(&path).map_err(open(&path))?;
        Ok(Self {
            content,
            file,
            temporary,
            path,
        })
    }

    /// Copies the disk, and lets it go as soon as its content is copied.
    pub(super) fn copy(
        self,
        source: &dyn DiskSource,
        hold: Box<dyn Any + Send>,
        since: Instant,
        watch: &Watch<'_>,
    ) -> DiskResult<DiskCopy> {
        let path = self.path;
        let failed = |source| DiskError::Copy {
            path: path.clone(),
            source,
        };
        let len = source.virtual_size_bytes();
        watch.expect(len);
        copy_content(&self.content, &self.file, len, &|bytes| watch.proceed(bytes)).map_err(failed)?;
        drop(hold);
        let mut times = KeptTimes {
            hold: since.elapsed(),
            copied_bytes: len,
            ..KeptTimes::default()
        };
        let fingerprint = fingerprint(&self.file, len, &|_| watch.proceed(0)).map_err(failed)?;
        self.file.sync_all().map_err(failed)?;
        times.copy = since.elapsed();
        Ok(DiskCopy {
            temporary: self.temporary,
            path,
            fingerprint,
            times,
        })
    }
}

fn create_hidden(path: &Path) -> io::Result<(File, TempPath)> {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".");
    let created = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".tmp")
        .tempfile_in(directory(path))?;
    Ok(created.into_parts())
}

impl DiskCopy {
    /// What the machine record says of the copy; it lies beside the snapshot.
    pub(super) fn record(&self) -> DiskResult<LayerRecord> {
        let metadata = self.temporary.metadata().map_err(|source| self.failed(source))?;
        Ok(LayerRecord {
            path: self.path.file_name().unwrap_or_default().into(),
            format: format_name(DiskFormat::Raw).to_owned(),
            length_bytes: metadata.len(),
            mtime_ns: mtime_ns(&metadata),
        })
    }

    /// Gives the copy its name, durably; it is removed when the answer is dropped.
    pub(super) fn publish(self) -> DiskResult<TempPath> {
        let path = self.path;
        let failed = |source| DiskError::Copy {
            path: path.clone(),
            source,
        };
        self.temporary
            .persist(&path)
            .map_err(|error| failed(error.error))?;
        let named = TempPath::try_from_path(&path).map_err(failed)?;
        File::open(directory(&path))
            .and_then(|directory| directory.sync_all())
            .map_err(failed)?;
        Ok(named)
    }

    fn failed(&self, source: io::Error) -> DiskError {
        DiskError::Copy {
            path: self.path.clone(),
            source,
        }
    }
}
