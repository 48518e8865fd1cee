//! What an image says of itself, for people and for machines.

use std::path::PathBuf;

use serde::Serialize;

use crate::error::Result;
use crate::format;
use crate::header::Header;
use crate::metadata::Metadata;
use crate::snapshot_table::SnapshotEntry;

/// An image's own account of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// 2 or 3.
    pub version: u32,
    /// Size of the disk that the guest sees.
    pub virtual_size_bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Size of a cluster.
    pub cluster_bytes: u64,
    /// Width of a refcount.
    pub refcount_bits: u32,
    /// How clusters are compressed where they are: `zlib` or `zstd`, QEMU's names.
    pub compression: &'static str,
    /// Whether the image asks that refcounts be postponed while it is open.
    pub lazy_refcounts: bool,
    /// Whether the image is marked dirty: refcounts may be wrong.
    pub dirty: bool,
    /// Whether the image is marked corrupt.
    pub corrupt: bool,
    /// The backing file, if there is one.
    pub backing: Option<BackingInfo>,
    /// The internal snapshots, in the order of the table.
    pub snapshots: Vec<SnapshotInfo>,
    /// The persistent bitmaps, if there are any.
    pub bitmaps: Option<BitmapsInfo>,
    /// Header extensions that are not known here.
    pub unknown_extensions: Vec<ExtensionInfo>,
}

/// The backing file that an image names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackingInfo {
    /// Its name as stated; what is not UTF-8 is replaced.
    pub name: String,
    /// Its format, if stated.
    pub format: Option<String>,
    /// The snapshot files that need it as it is.
    pub frozen_for: Vec<PathBuf>,
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken: seconds since 1970.
    pub seconds: u32,
    /// When it was taken: nanoseconds within the second.
    pub nanoseconds: u32,
    /// Size of the disk at the time, if stated.
    pub virtual_size_bytes: Option<u64>,
    /// Bytes of machine state that QEMU keeps in the image with it.
    pub vm_state_bytes: u64,
    /// How long the guest had run.
    pub vm_clock_ns: u64,
}

/// Persistent bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BitmapsInfo {
    /// How many there are.
    pub count: u32,
    /// Whether they agree with the data.
    pub consistent: bool,
}

/// A header extension that is not known here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExtensionInfo {
    /// Its type.
    pub kind: u32,
    /// Bytes of its data.
    pub len_bytes: usize,
}

/// Returns what the image says of itself; only its length is asked of the file.
///
/// # Errors
/// The extension about the frozen backing file is corrupt, or the medium's.
pub fn info(metadata: &Metadata) -> Result<ImageInfo> {
    let header = &metadata.header;
    let unknown = header
        .extensions
        .iter()
        .filter(|extension| !is_known(extension.kind));
    Ok(ImageInfo {
        version: header.version,
        virtual_size_bytes: header.virtual_size_bytes,
        file_bytes: metadata.storage().len()?,
        cluster_bytes: header.cluster_size.bytes(),
        refcount_bits: header.refcount_bits(),
        compression: if header.compression_type == 0 {
            "zlib"
        } else {
            "zstd"
        },
        lazy_refcounts: header.compatible & format::COMPATIBLE_LAZY_REFCOUNTS != 0,
        dirty: header.is_dirty(),
        corrupt: header.is_marked_corrupt(),
        backing: backing_info(header)?,
        snapshots: metadata.snapshots.iter().map(snapshot_info).collect(),
        bitmaps: header.bitmaps().map(|bitmaps| BitmapsInfo {
            count: bitmaps.bitmap_count,
            consistent: header.autoclear & format::AUTOCLEAR_BITMAPS != 0,
        }),
        unknown_extensions: unknown
            .map(|extension| ExtensionInfo {
                kind: extension.kind,
                len_bytes: extension.data.len(),
            })
            .collect(),
    })
}

fn backing_info(header: &Header) -> Result<Option<BackingInfo>> {
    let Some(backing) = header.backing() else {
        return Ok(None);
    };
    let owners = header.frozen_backing()?.unwrap_or_default().owners;
    Ok(Some(BackingInfo {
        name: backing.name.to_string_lossy().into_owned(),
        format: backing.format,
        frozen_for: owners.into_iter().map(|owner| owner.snapshot).collect(),
    }))
}

fn snapshot_info(entry: &SnapshotEntry) -> SnapshotInfo {
    SnapshotInfo {
        id: entry.id().into_owned(),
        name: entry.name().into_owned(),
        seconds: entry.seconds,
        nanoseconds: entry.nanoseconds,
        virtual_size_bytes: entry.virtual_size_bytes(),
        vm_state_bytes: entry.vm_state_bytes(),
        vm_clock_ns: entry.vm_clock_ns,
    }
}

fn is_known(kind: u32) -> bool {
    [
        format::EXTENSION_BACKING_FORMAT,
        format::EXTENSION_FEATURE_NAMES,
        format::EXTENSION_BITMAPS,
        format::EXTENSION_ENCRYPTION,
        format::EXTENSION_EXTERNAL_DATA,
        format::EXTENSION_FROZEN_BACKING,
    ]
    .contains(&kind)
}
