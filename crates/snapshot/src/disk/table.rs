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

/// One disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskEntry {
    /// Name of the disk, unique in the machine.
    pub id: String,
    /// How the bytes of its file make its content; `raw` is the only one.
    pub format: String,
    /// Length that the guest sees.
    pub virtual_size_bytes: u64,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// BLAKE3 of the content at the capture point; nothing if it was not copied.
    pub fingerprint: Option<Fingerprint>,
}
