//! Disks that are kept by an internal snapshot.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use vmm::DiskFormat;

use super::layers::{Fingerprinted, fingerprint_layers, record};
use super::{DiskResult, How, Planned};
use crate::disk::beside::Watch;
use crate::disk::names::format_name;
use crate::disk::source::DiskLayer;
use crate::disk::{DiskError, DiskSource, DisksMode, InternalEntry, KnownFingerprints};
use crate::error::{Error, Result};

/// An internal snapshot that is deleted again when this is dropped before it is kept.
#[derive(Debug)]
pub(super) struct Created {
    source: Arc<dyn DiskSource>,
    entry: InternalEntry,
    kept: bool,
}

/// The name of the internal snapshot of a disk of this format: that of the snapshot file.
pub(super) fn name(format: DiskFormat, snapshot: &Path) -> DiskResult<String> {
    if format != DiskFormat::Qcow2 {
        return Err(DiskError::WrongFormat {
            format: format_name(format),
            mode: DisksMode::Internal.name(),
            wanted: "qcow2",
        });
    }
    let name = snapshot.file_name().unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}

/// Creates all internal snapshots that are planned, each on a thread: the machine is paused meanwhile.
pub(super) fn create_all(disks: &[Planned]) -> Result<Vec<Option<Created>>> {
    // All of them end before an error is told: dropping the others deletes them.
    let created: Vec<Result<Option<Created>>> = thread::scope(|scope| {
        let creating: Vec<_> = disks
            .iter()
            .map(|disk| match &disk.how {
                How::Internal { name } => {
                    let source = &disk.source;
                    Some(scope.spawn(move || Created::create(source, name)))
                }
                _ => None,
            })
            .collect();
        let joined = creating.into_iter().map(|creating| match creating {
            None => Ok(None),
            Some(creating) => creating
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map(Some),
        });
        joined.collect()
    });
    created.into_iter().collect()
}

impl Created {
    fn create(source: &Arc<dyn DiskSource>, name: &str) -> Result<Self> {
        let failed = |fault| {
            Error::disk(&source.config().id)(DiskError::Internal {
                name: name.to_owned(),
                source: fault,
            })
        };
        let entry = source.create_internal_snapshot(name).map_err(failed)?;
        Ok(Self {
            source: Arc::clone(source),
            entry,
            kept: false,
        })
    }

    /// Which snapshot it is.
    pub(super) fn entry(&self) -> &InternalEntry {
        &self.entry
    }

    /// The fingerprints of the snapshot and of the image's backing files.
    pub(super) fn fingerprint(
        &self,
        layers: &[DiskLayer],
        snapshot: &Path,
        known: &KnownFingerprints,
        watch: &Watch<'_>,
    ) -> DiskResult<Fingerprinted> {
        let own = self.source.internal_fingerprint(&self.entry.id);
        let own = own.map_err(|source| DiskError::Internal {
            name: self.entry.name.clone(),
            source,
        })?;
        let Some((top, below)) = layers.split_first() else {
            return Ok(Fingerprinted::default());
        };
        let mut all = fingerprint_layers(below, snapshot, known, watch)?;
        all.fingerprints.insert(0, own);
        all.records.insert(0, record(top, snapshot)?);
        Ok(all)
    }

    /// The snapshot stays.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = self.source.delete_internal_snapshot(&self.entry.id) {
            let (disk, name) = (&self.source.config().id, &self.entry.name);
            tracing::error!(
                disk,
                name,
                error,
                "an internal snapshot that nobody needs was left in the image"
            );
        }
    }
}
