//! Guest I/O on one image.
//!
//! Data goes to the file at once; what it changes in the metadata stays in memory until a flush writes it, in an
//! order in which a crash at any point leaves only leaked clusters: never a reference to a cluster whose refcount
//! does not count it, never a mapping to data that is not there.
//!
//! ```text
//! data, refcounts | sync | L2 tables | sync | L1 entries | sync | freed clusters may be used again
//! ```
//!
//! So no dirty bit is needed. A flush takes a copy of what is dirty at one instant, and I/O goes on while the copy
//! is written. The locks, in the order in which they are taken:
//!
//! 1. `ranges`: guest clusters, shared for reads and writes in place, exclusive to change a mapping. A mapping
//!    never changes under I/O that uses it.
//! 2. `flush.turn`: one flush at a time.
//! 3. `state`: the metadata in memory; data is never read or written under it.
//!
//! Clusters that an internal snapshot shares lack the copied flag in the active tables: they, and L2 tables without
//! the flag, are copied before they change.

mod change;
mod copy_up;
mod flush;
mod lookup;
mod medium;
mod range_locks;
mod read;
mod state;
mod table_cache;
mod write;
mod zero;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use crate::decompress::Unpacker;
use crate::error::{Error, Result, Usage};
use crate::format::ClusterSize;
use crate::header::Header;
use crate::layer::Layer;
use crate::metadata::Metadata;

pub(crate) use flush::Unsettled;
pub(crate) use medium::Medium;

use flush::FlushTurns;
use range_locks::RangeLocks;
use state::State;

/// Guest I/O on one image, or on the disk as one of its internal snapshots has it.
#[derive(Debug)]
pub(crate) struct Engine {
    medium: Arc<Medium>,
    geometry: Geometry,
    read_only: bool,
    /// The metadata was found corrupt: no more changes.
    corrupt: AtomicBool,
    /// The image was changed, so that its autoclear features are cleared.
    changed: AtomicBool,
    state: Mutex<State>,
    /// An L2 table that was being read is there, or reading it failed.
    table_read: Condvar,
    ranges: RangeLocks,
    flush: FlushTurns,
    backing: RwLock<Option<Arc<dyn Layer>>>,
    /// The layer below was written to until this one took its place, and may not be durable yet.
    unsettled: Mutex<Option<Arc<Unsettled>>>,
    unpacker: Unpacker,
}

/// What of an image never changes while it is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub cluster: ClusterSize,
    pub virtual_size_bytes: u64,
    /// Entries can say that a cluster reads as zeros (version 3).
    pub zero_flag: bool,
}

impl Geometry {
    fn new(header: &Header, virtual_size_bytes: u64) -> Self {
        Self {
            cluster: header.cluster_size,
            virtual_size_bytes,
            zero_flag: header.version >= 3,
        }
    }

    /// Index of the L2 table that maps a guest offset.
    fn l1_index(self, offset: u64) -> u64 {
        self.cluster.l1_index(offset)
    }

    /// Index into that table.
    fn l2_index(self, offset: u64) -> usize {
        let index = (offset >> self.cluster.bits()) & (self.cluster.l2_entries() - 1);
        usize::try_from(index).unwrap_or(usize::MAX)
    }

    /// End of what the L2 table of a guest offset maps.
    fn table_end(self, offset: u64) -> u64 {
        let coverage = self.cluster.l2_coverage_bytes();
        (offset - offset % coverage).saturating_add(coverage)
    }

    /// The clusters that a range touches, as a range of bytes.
    fn clusters_around(self, offset: u64, len: u64) -> std::ops::Range<u64> {
        self.cluster.round_down(offset)..self.cluster.round_up(offset.saturating_add(len))
    }

    /// Where a range ends once clusters that reach over the end of the disk count as inside it.
    fn whole_clusters_end(self, end: u64) -> u64 {
        if end >= self.virtual_size_bytes {
            self.cluster.round_up(end)
        } else {
            self.cluster.round_down(end)
        }
    }
}

/// What an [`Engine`] is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    /// With a snapshot's L1 table in the place of the active one, if it is a snapshot that is read.
    pub metadata: Metadata,
    pub virtual_size_bytes: u64,
    pub read_only: bool,
    pub backing: Option<Arc<dyn Layer>>,
    pub l2_cache_bytes: u64,
}

impl Engine {
    /// Begins guest I/O.
    ///
    /// # Errors
    /// The refcount table cannot be read, if the image is to be written to.
    pub(crate) fn new(parts: Parts) -> Result<Self> {
        let medium = Arc::new(Medium::new(parts.metadata.storage().clone()));
        let geometry = Geometry::new(&parts.metadata.header, parts.virtual_size_bytes);
        let unpacker = Unpacker::new(parts.metadata.header.compression_type, geometry.cluster);
        let state = State::new(
            medium.clone(),
            parts.metadata,
            parts.read_only,
            parts.l2_cache_bytes,
        )?;
        Ok(Self {
            medium,
            geometry,
            read_only: parts.read_only,
            corrupt: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            state: Mutex::new(state),
            table_read: Condvar::new(),
            ranges: RangeLocks::default(),
            flush: FlushTurns::default(),
            backing: RwLock::new(parts.backing),
            unsettled: Mutex::new(None),
            unpacker,
        })
    }

    /// Takes over metadata that was changed behind the engine, which must have nothing to write.
    ///
    /// # Errors
    /// As [`Engine::new`]; the engine then goes on with what it had, and must not be used to write.
    pub(crate) fn reload(&self, metadata: Metadata, l2_cache_bytes: u64) -> Result<()> {
        *self.lock() = State::new(self.medium.clone(), metadata, self.read_only, l2_cache_bytes)?;
        self.unpacker.forget();
        Ok(())
    }

    pub(crate) fn medium(&self) -> &Arc<Medium> {
        &self.medium
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn backing(&self) -> Option<Arc<dyn Layer>> {
        self.backing
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn snapshot_count(&self) -> u32 {
        self.lock().header.snapshot_count
    }

    /// Refuses every change from now on: what is in memory may not be what the file has.
    pub(crate) fn give_up(&self) {
        self.corrupt.store(true, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a range that is not inside the disk.
    fn check_range(&self, offset: u64, len: u64) -> Result<()> {
        let disk_bytes = self.geometry.virtual_size_bytes;
        if offset.checked_add(len).is_none_or(|end| end > disk_bytes) {
            return Err(Error::Usage(Usage::OutOfRange {
                offset,
                len,
                disk_bytes,
            }));
        }
        Ok(())
    }
}
