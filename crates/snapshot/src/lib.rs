//! One whole-VM snapshot: the order of pause, memory, state, resume, commit; and the reverse.
//!
//! [`save()`] writes a running [`vmm::Machine`] into one file as of one instant, while its guest runs on;
//! [`restore()`] makes a machine of such a file. The crate knows both sides, the machine and the file, and owns
//! nothing but the order of things between them: memory is captured by `memsnap`, the machine is `vmm`'s, the bytes
//! are `snapfile`'s. Whatever has memory and writers that can be paused can be saved: see [`Subject`].
//!
//! ```no_run
//! # fn example(machine: &vmm::Machine) -> Result<(), Box<dyn std::error::Error>> {
//! use snapshot::{RestoreOptions, SaveControl, SaveOptions, restore, save};
//!
//! let report = save(machine, "vm.vmsnap", &SaveOptions::default(), &SaveControl::new())?;
//! println!("the guest was held for {} us", report.statistics.downtime_us);
//! let (twin, _) = restore("vm.vmsnap", &RestoreOptions::default())?;
//! # Ok(()) }
//! ```
#![forbid(unsafe_code)]

mod check;
mod control;
mod discards;
mod disk;
mod error;
mod machine_record;
mod output;
mod parent;
mod plain;
mod report;
mod restore;
mod run_switch;
mod save;
mod sections;
mod subject;

pub use check::{CheckReport, check};
pub use control::{Phase, SaveControl, SaveProgress};
pub use disk::{
    DEPTH_TO_FLATTEN, DiskEntry, DiskError, DiskFault, DiskLayer, DiskSource, DiskTable, DisksMode,
    DisksRestore, Fingerprint, FrozenImage, InternalEntry, KnownFingerprints, LayerKind, LeftOverlay,
    Overlay,
};
pub use error::{Error, ErrorKind};
pub use machine_record::{DeviceOverrides, LayerRecord, MachineRecord};
pub use plain::{PlainMemory, WriterSteps};
pub use report::{
    CaptureFigures, DiskFigures, RestoreReport, SaveMode, SaveReport, SavedDisk, StallFigures, Statistics,
    StoredChunks,
};
pub use restore::{RestoreOptions, restore, restore_disks, restore_with_progress};
pub use run_switch::RunSwitch;
pub use save::{SaveOptions, save};
pub use sections::{Provenance, read_disks, read_machine, read_provenance, read_state, read_statistics};
pub use subject::Subject;

pub use memsnap::{CaptureOptions, Pressure, RestoreProgress};
pub use snapfile::{ChunkSize, Codec, WriterOptions};
