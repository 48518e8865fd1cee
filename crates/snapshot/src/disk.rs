//! The guest's disks in a snapshot: copies as of the capture point, and working copies for a restored guest.
//!
//! A disk is held from the capture point until its content stands in a file of its own beside the snapshot; the
//! vCPUs run meanwhile. Each copy has a fingerprint in the disk table, so that a restore never joins memory with a
//! disk of another time.

mod beside;
mod copy;
mod error;
mod fingerprint;
mod save;
mod source;
mod table;
mod working;

use std::ffi::OsString;
use std::path::Path;

use vmm::{DiskConfig, DiskFormat};

pub(crate) use beside::copy_beside;
pub use error::DiskError;
pub use fingerprint::Fingerprint;
pub(crate) use save::{CopiedDisk, DiskCopies, publish};
pub use source::DiskSource;
pub use table::{DiskEntry, DiskTable};
pub(crate) use working::{Places, prepare};

/// The name of the copy of a disk beside the snapshot, such as `out.vmsnap.data.raw`.
fn copy_name(snapshot: &Path, disk: &DiskConfig) -> OsString {
    let mut name = snapshot.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.{}", disk.id, format_name(disk.format)));
    name
}

/// The name of a format, as in the disk table and at the end of a copy's name.
pub(crate) fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        _ => "image",
    }
}

/// The directory that a file is in.
fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
