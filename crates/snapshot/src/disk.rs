//! The guest's disks in a snapshot: kept as of the capture point, and brought back for a restored guest.
//!
//! A disk consists of layers: the file that the guest writes to, and its backing files. It is kept by an overlay that
//! the machine goes on in, by an internal snapshot, or by a copy that is made while the disk is held. Each layer has a
//! fingerprint in the disk table, so that a restore never joins memory with a disk of another time.

mod beside;
mod copy;
mod error;
mod fingerprint;
mod names;
mod restore;
mod save;
mod source;
mod table;

pub(crate) use beside::keep_beside;
pub use error::{DiskError, LayerKind};
pub use fingerprint::{Fingerprint, KnownFingerprints};
pub use restore::DisksRestore;
pub(crate) use restore::{Places, open_disks};
pub use save::LeftOverlay;
pub(crate) use save::{
    DiskPlan, DiskWishes, DisksAtPoint, KeptDisk, PointFigures, SnapshotIdentity, publish,
};
pub use source::{DiskFault, DiskLayer, DiskSource, FrozenImage, Overlay};
pub use table::{DiskEntry, DiskTable, DisksMode, InternalEntry};

/// Files that a disk may consist of; opening every one of them is what a reader does first.
pub(crate) const MAX_DEPTH: usize = 64;
/// Files from which on a disk should be flattened: each layer costs a reader of unchanged content a look.
pub const DEPTH_TO_FLATTEN: usize = 16;
