//! The disk table: what a reader must bring back together with memory.

use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;

/// The guest's disks as of the capture point (sections 4).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskTable {
    /// One entry per disk, in the order in which the guest finds them.
    pub disks: Vec<DiskEntry>,
}

/// One disk of the guest (sections 4.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskEntry {
    /// Name of the disk, unique in the machine.
    pub id: String,
    /// How the bytes of the top layer make content: `raw` or `qcow2`.
    pub format: String,
    /// Length that the guest sees.
    pub virtual_size_bytes: u64,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// How the content as of the capture point is kept.
    pub mode: DisksMode,
    /// The internal snapshot; there is one in mode `internal` alone.
    pub internal: Option<InternalEntry>,
    /// Fingerprints of the layers, the top one first; empty if none was taken.
    pub layers: Vec<Fingerprint>,
}

/// The internal snapshot that keeps a disk's content (sections 4.5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InternalEntry {
    /// Its id, unique in the image.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// How the content of disks as of the capture point is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DisksMode {
    /// The image is frozen, and the machine goes on in a new overlay over it: takes no time that depends on the disk.
    #[default]
    Overlay,
    /// An internal snapshot is created in the image, which must be qcow2: takes time by what the image holds.
    Internal,
    /// Each disk, which must be raw, is copied to a file beside the snapshot.
    Copy,
    /// They are only recorded: whoever restores must bring them as they were.
    None,
}

impl DisksMode {
    /// Returns the name of the mode, as in the disk table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Internal => "internal",
            Self::Copy => "copy",
            Self::None => "none",
        }
    }
}
