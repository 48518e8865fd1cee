//! Captures guest memory at an instant while it is being written, and restores it.
//!
//! The one idea: memory is write-protected while the guest runs, the few places it touched meanwhile
//! are protected again in a pause that does not grow with memory, and from that instant on a write waits
//! only until its chunk has been copied aside. Which virtual machine, if any, is behind the memory is
//! left to the caller: whoever can stop the writers for a moment can take a snapshot.
//!
//! ```no_run
//! # fn example(memory: &vm_memory::GuestMemoryMmap, pause: fn(), resume: fn())
//! # -> Result<(), Box<dyn std::error::Error>> {
//! use memsnap::{Capture, CaptureOptions, memory_map};
//! use snapfile::{SnapshotFile, Writer, WriterOptions};
//!
//! let map = memory_map(memory)?;
//! let writer = Writer::new(SnapshotFile::create("memory.vmsnap")?, &map, WriterOptions::default())?;
//! let mut capture = Capture::arm(memory, writer.layout().clone(), CaptureOptions::default())?;
//! pause();
//! capture.freeze()?; // the point in time
//! resume();
//! let report = capture.drain(&writer)?;
//! writer.finish()?.0.commit()?;
//! println!("froze in {:?}, {} faults", report.freeze, report.faults_draining);
//! # Ok(()) }
//! ```
//!
//! `DESIGN.md` beside the sources answers the questions that the code raises.

mod buffers;
mod capture;
mod chunk_states;
mod control;
mod discard;
mod error;
mod geometry;
mod histogram;
mod options;
mod priority;
mod report;
mod restore;
mod sink;
mod sync;

pub use crate::capture::{Capture, stop_and_copy};
pub use crate::control::{CaptureControl, CapturePhase, CaptureProgress};
pub use crate::discard::Discards;
pub use crate::error::{Error, Result};
pub use crate::geometry::memory_map;
pub use crate::options::{CaptureOptions, KernelPath, Pressure};
pub use crate::report::{CaptureMode, CaptureReport, RestoreReport, StallReport};
pub use crate::restore::{RestoreProgress, restore_eager};
pub use crate::sink::{ChunkEncoder, ChunkSink, SinkError};
