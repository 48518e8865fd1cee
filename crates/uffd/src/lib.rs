//! Safe owner of a userfaultfd and of the memory ranges registered with it.
//!
//! The one idea: a [`Registration`] keeps the memory that it registers alive and gives it back
//! unprotected, unregistered and with nobody waiting, whatever happens. What the `userfaultfd` crate
//! lacks is added here: feature names newer than the installed kernel headers, the feature query, a
//! descriptor that takes faults from kernel code too, retries of `EAGAIN`, `PAGEMAP_SCAN` and
//! [`mincore`](residency). What a fault means and who resolves it is left to the caller.
//!
//! ```no_run
//! # fn example(memory: impl uffd::MappedRange) -> uffd::Result<()> {
//! use std::sync::Arc;
//! use uffd::{FaultBatch, Features, Mode, Registration, Uffd};
//!
//! let uffd = Arc::new(Uffd::open(Features::WP_UNPOPULATED)?);
//! let registration = Registration::new(&uffd, memory, Mode::WRITE_PROTECT)?;
//! registration.write_protect(0..1 << 20)?;
//! let mut batch = FaultBatch::new(64);
//! for event in uffd.read_events(&mut batch)? {
//!     println!("{event:?}");
//! }
//! # Ok(()) }
//! ```

mod error;
mod event;
mod features;
mod pagemap;
mod registration;
mod residency;
mod sys;
mod uffd;

pub use crate::error::{Error, Result};
pub use crate::event::{Event, FaultBatch, FaultKind};
pub use crate::features::Features;
pub use crate::pagemap::{PageCategories, PageExtent, PagemapScanner};
pub use crate::registration::{MappedRange, Mode, Registration};
pub use crate::residency::{Residency, residency};
pub use crate::uffd::Uffd;

/// Size of a page: the unit in which every range is registered, protected and reported.
pub const PAGE_SIZE: usize = 4096;
