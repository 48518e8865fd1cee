//! The gate: what of an image is read and judged when it is opened.
//!
//! [`Metadata::open`] reads the header, the active L1 table and the snapshot table, and refuses what cannot be
//! handled safely before anything else is looked at: unknown features, encryption, tables outside the file. An
//! image that may be read and repaired but not written to is opened; who writes asks first. What the tables lead
//! to is judged where it is read.

use std::sync::Arc;

use crate::error::{Corruption, Result, Unsupported};
use crate::fields;
use crate::format::{self, ClusterSize, L1Entry};
use crate::header::Header;
use crate::limits;
use crate::snapshot_table::{self, SnapshotEntry};
use crate::storage::Storage;

/// The metadata of an open image that is kept in memory.
#[derive(Clone, Debug)]
pub struct Metadata {
    /// The header.
    pub header: Header,
    /// The active L1 table, as long as the header says.
    pub l1: Vec<L1Entry>,
    /// The internal snapshots, in the order of the table.
    pub snapshots: Vec<SnapshotEntry>,
    storage: Arc<dyn Storage>,
}

impl Metadata {
    /// Reads and judges the metadata of the image in `storage`; nothing is written.
    ///
    /// An image that is marked dirty or corrupt is opened: it can be read and repaired. Before it is written to
    /// otherwise, [`Metadata::ensure_writable`] must agree.
    ///
    /// # Errors
    /// The file is no qcow2 image, uses what is not supported, is beyond a limit or contradicts itself.
    pub fn open(storage: Arc<dyn Storage>) -> Result<Self> {
        let header = Header::read(storage.as_ref())?;
        let l1 = read_l1(
            storage.as_ref(),
            header.cluster_size,
            header.l1_offset,
            header.l1_entries,
        )?;
        let snapshots = snapshot_table::read(storage.as_ref(), &header)?;
        Ok(Self {
            header,
            l1,
            snapshots,
            storage,
        })
    }

    /// Returns the storage of the image.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Returns the size of the image's clusters.
    #[must_use]
    pub fn cluster_size(&self) -> ClusterSize {
        self.header.cluster_size
    }

    /// Refuses an image that must be repaired before anything is written to it.
    ///
    /// # Errors
    /// It is marked dirty or corrupt, or tables lie on one another, so that to write one destroys the other.
    pub fn ensure_writable(&self) -> Result<()> {
        if self.header.incompatible & format::INCOMPATIBLE_CORRUPT != 0 {
            return Err(Unsupported::MarkedCorrupt.into());
        }
        if self.header.incompatible & format::INCOMPATIBLE_DIRTY != 0 {
            return Err(Unsupported::Dirty.into());
        }
        self.check_apart()
    }

    /// Refuses an image of whose header, L1 tables, refcount table and snapshot table two share a cluster.
    fn check_apart(&self) -> Result<()> {
        let (header, size) = (&self.header, self.cluster_size());
        let refcount_table_bytes = u64::from(header.refcount_table_clusters) * size.bytes();
        let mut places = vec![
            (0, size.bytes()),
            (header.l1_offset, u64::from(header.l1_entries) * 8),
            (header.refcount_table_offset, refcount_table_bytes),
        ];
        if !self.snapshots.is_empty() {
            let len_bytes = snapshot_table::table_len_bytes(&self.snapshots);
            places.push((header.snapshots_offset, len_bytes));
        }
        let l1_tables = self
            .snapshots
            .iter()
            .map(|entry| (entry.l1_offset, entry.l1_bytes()));
        places.extend(l1_tables);
        places.retain(|(_, len_bytes)| *len_bytes != 0);
        places.sort_unstable();
        let mut end = 0;
        for (offset, len_bytes) in places {
            if offset < end {
                return Err(Corruption::new("two tables share a cluster", offset).into());
            }
            end = size.round_up(offset.saturating_add(len_bytes));
        }
        Ok(())
    }
}

/// Reads an L1 table, the active one or a snapshot's, after its place has been judged.
///
/// # Errors
/// The table is too large, not aligned, or not inside the file.
pub(crate) fn read_l1(
    storage: &dyn Storage,
    cluster_size: ClusterSize,
    offset: u64,
    entries: u32,
) -> Result<Vec<L1Entry>> {
    let len_bytes = u64::from(entries) * 8;
    if len_bytes == 0 {
        return Ok(Vec::new());
    }
    let file_bytes = cluster_size.round_up(storage.len()?);
    let end = offset.checked_add(len_bytes);
    if !cluster_size.is_aligned(offset) || offset == 0 {
        return Err(Corruption::new("an l1 table does not begin with a cluster", offset).into());
    }
    let bytes_limit = limits::MAX_L1_BYTES;
    crate::error::LimitExceeded::check("bytes of an l1 table", len_bytes, bytes_limit)?;
    if end.is_none_or(|end| end > file_bytes) {
        return Err(Corruption::new("an l1 table is not inside the file", offset).into());
    }
    let bytes = fields::read_vec(storage, "bytes of an l1 table", offset, len_bytes, bytes_limit)?;
    Ok(fields::entries(&bytes).map(L1Entry).collect())
}
