//! What is known of a disk once its content is kept, and how what was made for it becomes final.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::copied::DiskCopy;
use super::internal::Created;
use super::layers::Fingerprinted;
use crate::disk::names::format_name;
use crate::disk::source::DiskLayer;
use crate::disk::{DiskEntry, DiskSource, DisksMode};
use crate::error::{Error, Result};
use crate::machine_record::LayerRecord;

/// A disk whose content is kept and durable.
#[derive(Debug)]
pub(crate) struct KeptDisk {
    pub(crate) entry: DiskEntry,
    pub(crate) layers: Vec<LayerRecord>,
    /// What the next snapshot begins with: the file that keeps the content, and how many files the disk consists of.
    pub(crate) file: Option<PathBuf>,
    pub(crate) depth: usize,
    pub(crate) times: KeptTimes,
    /// Removed or deleted unless the snapshot gets its name.
    pub(super) unpublished: Option<Unpublished>,
}

/// What keeping one disk cost behind the capture point; zero for what was not done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KeptTimes {
    pub(crate) settle: Duration,
    pub(crate) fingerprint_bytes: u64,
    pub(crate) fingerprint: Duration,
    pub(crate) hold: Duration,
    pub(crate) copy: Duration,
    pub(crate) copied_bytes: u64,
}

#[derive(Debug)]
pub(super) enum Unpublished {
    Copy(DiskCopy),
    Internal(Created),
}

/// What has its name, and loses it if this is dropped before it is kept.
#[derive(Debug, Default)]
pub(crate) struct Published {
    copies: Vec<tempfile::TempPath>,
    created: Vec<Created>,
}

impl KeptDisk {
    /// A disk that is only recorded.
    pub(super) fn new(source: &dyn DiskSource, layers: &[DiskLayer]) -> Self {
        let config = source.config();
        let format = layers.first().map_or(config.format, |layer| layer.format);
        Self {
            entry: DiskEntry {
                id: config.id.clone(),
                format: format_name(format).to_owned(),
                virtual_size_bytes: source.virtual_size_bytes(),
                readonly: config.readonly,
                mode: DisksMode::None,
                internal: None,
                layers: Vec::new(),
            },
            layers: Vec::new(),
            file: None,
            depth: layers.len(),
            times: KeptTimes::default(),
            unpublished: None,
        }
    }

    pub(super) fn add_layers(&mut self, layers: Fingerprinted, since: Instant) {
        self.entry.layers = layers.fingerprints;
        self.layers = layers.records;
        self.times.fingerprint_bytes = layers.bytes;
        self.times.fingerprint = since.elapsed();
    }
}

/// Gives copies their names, durably; an error, or dropping the answer before it is kept, removes them again, and
/// deletes internal snapshots.
pub(crate) fn publish(disks: Vec<KeptDisk>) -> Result<Published> {
    let mut published = Published::default();
    for disk in disks {
        match disk.unpublished {
            None => {}
            Some(Unpublished::Internal(created)) => published.created.push(created),
            Some(Unpublished::Copy(copy)) => {
                let named = copy.publish().map_err(Error::disk(&disk.entry.id))?;
                published.copies.push(named);
            }
        }
    }
    Ok(published)
}

impl Published {
    /// All of it stays.
    pub(crate) fn keep(self) {
        for path in self.copies {
            // Only ever forgets to remove; there is nothing that could fail on Linux.
            if let Err(error) = path.keep() {
                tracing::warn!(%error, "a disk copy");
            }
        }
        self.created.into_iter().for_each(Created::keep);
    }
}
