//! Finding the layers of a disk, and telling whether they hold what they held.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vmm::DiskFormat;

use super::{DiskResult, Places};
use crate::disk::fingerprint::{fingerprint, mtime_ns};
use crate::disk::names::directory;
use crate::disk::save::len_bytes;
use crate::disk::{DiskEntry, DiskError, Fingerprint, LayerKind};
use crate::machine_record::LayerRecord;

/// The format of that name, as the disk table has it.
pub(super) fn parse_format(name: &str) -> DiskResult<DiskFormat> {
    match name {
        "raw" => Ok(DiskFormat::Raw),
        "qcow2" => Ok(DiskFormat::Qcow2),
        _ => Err(DiskError::UnknownFormat {
            format: name.to_owned(),
        }),
    }
}

/// Finds the top layer where it was, or under its name beside the snapshot.
pub(super) fn find_top(entry: &DiskEntry, kind: LayerKind, places: &Places<'_>) -> DiskResult<PathBuf> {
    let record = places.layers.get(&entry.id).and_then(|layers| layers.first());
    let beside = directory(&places.owner.snapshot);
    let Some(record) = record else {
        return Err(DiskError::Missing {
            what: kind,
            path: beside.to_owned(),
        });
    };
    let recorded = beside.join(&record.path);
    let moved = record.path.file_name().map(|name| beside.join(name));
    let mut candidates = std::iter::once(recorded.clone()).chain(moved);
    let found = candidates.find(|path| path.exists());
    found.ok_or(DiskError::Missing {
        what: kind,
        path: recorded,
    })
}

/// Opens an image with its backing files, for reading only.
pub(super) fn open_chain(top: &Path, format: DiskFormat) -> DiskResult<qcow2::Chain> {
    let format = match format {
        DiskFormat::Raw => qcow2::ImageFormat::Raw,
        _ => qcow2::ImageFormat::Qcow2,
    };
    let opened = qcow2::Chain::open(top, format, qcow2::Access::ReadOnly, qcow2::Cache::Writeback);
    opened.map_err(|error| chain_error(top, error))
}

/// Opens a qcow2 image for what an internal snapshot keeps in it, which does not change while a machine writes to the
/// image.
pub(super) fn open_beside_a_writer(top: &Path) -> DiskResult<qcow2::Chain> {
    let format = qcow2::ImageFormat::Qcow2;
    let opened = match qcow2::Chain::open(top, format, qcow2::Access::ReadOnly, qcow2::Cache::Writeback) {
        Err(qcow2::Error::InUse { .. }) => qcow2::Chain::open_shared(top, format),
        opened => opened,
    };
    opened.map_err(|error| chain_error(top, error))
}

fn chain_error(top: &Path, error: qcow2::Error) -> DiskError {
    DiskError::Chain {
        path: top.to_owned(),
        source: error.into(),
    }
}

/// Refuses a chain that is not the one of the disk table; `from` layers were looked at already.
pub(super) fn check_layers(
    entry: &DiskEntry,
    chain: &qcow2::Chain,
    from: usize,
    places: &Places<'_>,
) -> DiskResult<()> {
    if chain.depth() != entry.layers.len() {
        let top = chain.layers.first().map(|layer| layer.path.clone());
        return Err(DiskError::Depth {
            path: top.unwrap_or_default(),
            expected: entry.layers.len(),
            found: chain.depth(),
        });
    }
    let records = places.layers.get(&entry.id);
    let layers = chain.layers.iter().zip(&entry.layers).enumerate();
    for (index, (layer, expected)) in layers.skip(from) {
        let record = records.and_then(|records| records.get(index));
        check_file(&layer.path, LayerKind::Image, *expected, record, places)?;
    }
    Ok(())
}

/// Refuses a file that does not hold what it held; what is found out is noted for the next snapshot.
fn check_file(
    path: &Path,
    kind: LayerKind,
    expected: Fingerprint,
    record: Option<&LayerRecord>,
    places: &Places<'_>,
) -> DiskResult<()> {
    let failed = |source: io::Error| DiskError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let same = |record: &LayerRecord| {
        (record.length_bytes, record.mtime_ns) == (metadata.len(), mtime_ns(&metadata))
    };
    let unchanged =
        metadata.is_file() && (record.is_some_and(same) || places.known.get(&metadata) == Some(expected));
    if places.check || !unchanged {
        tracing::info!(path = %path.display(), "comparing the fingerprint of a disk's layer");
        let len = len_bytes(&file).map_err(failed)?;
        let found = fingerprint(&file, len, &|_| Ok(())).map_err(failed)?;
        if found != expected {
            return Err(DiskError::Changed {
                what: kind,
                path: path.to_owned(),
                expected,
                found,
            });
        }
    }
    places.known.insert(&metadata, expected);
    Ok(())
}
