//! Disks in the words of the API: what they consist of, and flattening them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ApiError;

/// Answer to `GET /v1/disks`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiskList {
    /// The disks, in the order of the guest.
    pub disks: Vec<DiskStatus>,
}

/// A disk as it is at this moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Name of the disk.
    pub id: String,
    /// Length that the guest sees.
    pub virtual_size_bytes: u64,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// Whether a write waits for room on the host.
    pub full: bool,
    /// The files that make its content, the one that is written to first.
    pub layers: Vec<DiskLayer>,
    /// What should be done about the disk, if anything.
    pub warning: Option<String>,
}

/// A file that a disk consists of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiskLayer {
    /// Its path; nothing if it has no name.
    pub path: Option<PathBuf>,
    /// `raw` or `qcow2`.
    pub format: String,
}

/// Body of `POST /v1/disks/flatten`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlattenRequest {
    /// Name of the disk.
    pub disk: String,
    /// Most that is copied per second; as much as it can if nothing.
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
}

/// State of the latest flattening: answer to the routes about it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FlattenStatus {
    /// Number of the flattening in the life of this process, from 1.
    pub id: u64,
    /// Name of the disk.
    pub disk: String,
    /// Whether it goes on, or how it ended.
    pub state: FlattenState,
    /// What there is to look at; 0 until known.
    pub bytes_total: u64,
    /// What of that has been looked at.
    pub bytes_done: u64,
    /// How long it has taken so far, or took.
    pub elapsed_us: u64,
    /// Why it failed.
    pub error: Option<ApiError>,
}

/// Whether a flattening goes on, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlattenState {
    /// Under way.
    Running,
    /// The disk consists of one file.
    Done,
    /// Given up because someone asked for it; the chain is as it was.
    Cancelled,
    /// Something went wrong; the chain is as it was.
    Failed,
}

impl FlattenRequest {
    /// Checks what JSON types cannot say.
    ///
    /// # Errors
    /// Says in words which field breaks which rule.
    pub fn validate(&self) -> Result<(), String> {
        if self.bytes_per_second == Some(0) {
            return Err("bytes_per_second is 0: it would never end".to_owned());
        }
        Ok(())
    }
}
