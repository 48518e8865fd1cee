//! The words of the control API: every body that a running machine takes or answers, as typed JSON.
//!
//! Shared by server and client, so that the two cannot drift apart; `openapi.json` beside the sources describes the
//! same for everybody else, and a test holds real answers against it. Times are microseconds unless the name says
//! otherwise, sizes are bytes.

mod disks;
mod request;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use snapshot::{SaveProgress, SaveReport};

pub use disks::{DiskLayer, DiskList, DiskStatus, FlattenRequest, FlattenState, FlattenStatus};
pub use request::{Codec, Disks, Mode, OnPressure, SnapshotRequest};

/// Routes of the API.
pub mod route {
    /// What the machine is doing.
    pub const STATUS: &str = "/v1/status";
    /// The machine's description; putting one boots it.
    pub const MACHINE: &str = "/v1/machine";
    /// The balloon.
    pub const BALLOON: &str = "/v1/balloon";
    /// Hold the guest.
    pub const PAUSE: &str = "/v1/pause";
    /// Let the guest run on.
    pub const RESUME: &str = "/v1/resume";
    /// Begin a snapshot.
    pub const SNAPSHOTS: &str = "/v1/snapshots";
    /// The latest snapshot.
    pub const CURRENT_SNAPSHOT: &str = "/v1/snapshots/current";
    /// The disks.
    pub const DISKS: &str = "/v1/disks";
    /// The latest flattening of a disk.
    pub const FLATTEN: &str = "/v1/disks/flatten";
    /// What the built-in guest has done.
    pub const GUEST: &str = "/v1/guest";
    /// Begin to measure the built-in guest's longest gap anew.
    pub const GUEST_GAP: &str = "/v1/guest/longest-gap";
    /// Stop the machine.
    pub const SHUTDOWN: &str = "/v1/shutdown";
    /// This API, described.
    pub const OPENAPI: &str = "/v1/openapi.json";
}

/// An error, as every failing request is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// What went wrong.
    pub error: String,
    /// Why, the nearest cause first.
    pub causes: Vec<String>,
}

/// Answer to `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Name of the machine; may be empty.
    pub name: String,
    /// Version of `snapvm`.
    pub version: String,
    /// Process that runs the machine.
    pub pid: u32,
    /// What the vCPUs are doing.
    pub state: State,
    /// Why the machine stopped, once it has.
    pub stopped_reason: Option<String>,
    /// Number of virtual processors.
    pub cpus: u32,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Time since the machine was created, in milliseconds.
    pub uptime_ms: u64,
    /// What the guest has done, if it is the built-in one.
    pub guest: Option<GuestStatus>,
    /// The latest snapshot, if there was one.
    pub snapshot: Option<SnapshotStatus>,
    /// Disks with a write that waits for room on the host.
    pub disks_full: Vec<String>,
}

/// What the machine's vCPUs are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not started yet.
    Created,
    /// Executing the guest.
    Running,
    /// Held, by a user or for a snapshot.
    Paused,
    /// Ended.
    Stopped,
}

/// Answer to `PUT /v1/pause`, `PUT /v1/resume` and `PUT /v1/shutdown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateAnswer {
    /// What the vCPUs are doing now.
    pub state: State,
}

/// Body of `PUT /v1/balloon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonTarget {
    /// Memory that the guest is asked to give up.
    pub target_bytes: u64,
}

/// Answer to `GET` and `PUT /v1/balloon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStatus {
    /// Memory that the guest is asked to give up.
    pub target_bytes: u64,
    /// Memory that it has given up.
    pub actual_bytes: u64,
}

/// State of the latest snapshot: answer to the snapshot routes, and part of the status.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Number of the snapshot in the life of this process, from 1.
    pub id: u64,
    /// The file being written.
    pub path: PathBuf,
    /// Whether it is still being written, or how it ended.
    pub state: SnapshotState,
    /// How far it is.
    pub progress: SaveProgress,
    /// What it cost, once the file is complete.
    pub report: Option<SaveReport>,
    /// Why there is no file, once the snapshot has ended without one.
    pub error: Option<ApiError>,
}

/// Whether a snapshot is still being written, or how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    /// Being written.
    Running,
    /// The file is complete.
    Done,
    /// Given up because someone asked for it.
    Cancelled,
    /// Given up by the pressure policy or a limit.
    Abandoned,
    /// Something went wrong.
    Failed,
}

/// Answer to the guest routes, and part of the status: what the built-in guest has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// Pages written by all vCPUs together, by their counters.
    pub steps: u64,
    /// The longest gap of any vCPU.
    pub longest_gap_us: u64,
    /// Pages that did not hold what the guest had written; zero unless memory was damaged.
    pub bad_stamps: u64,
    /// The same for each vCPU.
    pub cpus: Vec<GuestCpu>,
}

/// What one vCPU of the built-in guest has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCpu {
    /// Step counter; 0 until the vCPU has begun, differences are pages written.
    pub steps: u64,
    /// Longest time without progress since the measure was begun anew.
    pub longest_gap_us: u64,
    /// Pages that did not hold what the guest had written.
    pub bad_stamps: u64,
}

impl ApiError {
    /// Describes an error and its causes.
    #[must_use]
    pub fn from_error(error: &(dyn std::error::Error + 'static)) -> Self {
        let causes = std::iter::successors(error.source(), |cause| cause.source());
        Self {
            error: error.to_string(),
            causes: causes.map(ToString::to_string).collect(),
        }
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.error)?;
        self.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl std::error::Error for ApiError {}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

impl std::fmt::Display for SnapshotState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Abandoned => "abandoned",
            Self::Failed => "failed",
        })
    }
}
