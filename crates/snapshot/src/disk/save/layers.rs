//! The files that a kept disk consists of: their fingerprints, and what the machine record says of them.

use std::fs::File;
use std::io;
use std::path::Path;

use super::{DiskResult, len_bytes};
use crate::disk::beside::Watch;
use crate::disk::fingerprint::{fingerprint, mtime_ns};
use crate::disk::names::{format_name, recorded_path};
use crate::disk::source::DiskLayer;
use crate::disk::{DiskError, Fingerprint, KnownFingerprints};
use crate::machine_record::LayerRecord;

/// Layers with their fingerprints, from the top down.
#[derive(Debug, Default)]
pub(super) struct Fingerprinted {
    pub(super) fingerprints: Vec<Fingerprint>,
    pub(super) records: Vec<LayerRecord>,
    /// Length of those that had to be read.
    pub(super) bytes: u64,
}

/// Takes the fingerprints of layers that nobody writes to.
pub(super) fn fingerprint_layers(
    layers: &[DiskLayer],
    snapshot: &Path,
    known: &KnownFingerprints,
    watch: &Watch<'_>,
) -> DiskResult<Fingerprinted> {
    let mut all = Fingerprinted::default();
    for layer in layers {
        let path = named(layer)?;
        let failed = read_error(path);
        let file = File::open(path).map_err(&failed)?;
        let before = file.metadata().map_err(&failed)?;
        let fingerprint = match known.get(&before) {
            Some(fingerprint) => fingerprint,
            None => {
                let len = len_bytes(&file).map_err(&failed)?;
                watch.expect(len);
                let fingerprint = fingerprint(&file, len, &|bytes| watch.proceed(bytes)).map_err(&failed)?;
                let after = file.metadata().map_err(&failed)?;
                if (after.len(), mtime_ns(&after)) != (before.len(), mtime_ns(&before)) {
                    let path = path.to_owned();
                    return Err(DiskError::Touched { path });
                }
                known.insert(&after, fingerprint);
                all.bytes += len;
                fingerprint
            }
        };
        all.fingerprints.push(fingerprint);
        all.records.push(record(layer, snapshot)?);
    }
    Ok(all)
}

/// What the machine record says of a layer as it is now.
pub(super) fn record(layer: &DiskLayer, snapshot: &Path) -> DiskResult<LayerRecord> {
    let path = named(layer)?;
    let failed = read_error(path);
    let file = File::open(path).map_err(&failed)?;
    let metadata = file.metadata().map_err(&failed)?;
    Ok(LayerRecord {
        path: recorded_path(path, snapshot).map_err(&failed)?,
        format: format_name(layer.format).to_owned(),
        length_bytes: len_bytes(&file).map_err(&failed)?,
        mtime_ns: mtime_ns(&metadata),
    })
}

fn named(layer: &DiskLayer) -> DiskResult<&Path> {
    let path = layer.path.as_deref();
    path.ok_or(DiskError::Nameless)
}

fn read_error(path: &Path) -> impl Fn(io::Error) -> DiskError {
    move |source| DiskError::Read {
        path: path.to_owned(),
        source,
    }
}
