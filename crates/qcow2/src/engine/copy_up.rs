//! Copying what lies in the layers below into the image, cluster by cluster.

use std::sync::PoisonError;

use super::Engine;
use super::lookup::Mapping;
use crate::error::Result;
use crate::storage::Storage;

/// Offset of the backing file's name in the header: its offset (8 bytes) and its length (4 bytes).
const HEADER_BACKING_NAME: u64 = 8;

impl Engine {
    /// Copies what a range has from the layers below into this image and returns the bytes copied.
    ///
    /// Clusters that hold only zeros are not copied: they read the same without a layer below.
    pub(crate) fn copy_up(&self, offset: u64, len: u64) -> Result<u64> {
        self.begin_change(offset, len)?;
        let Some(backing) = self.backing() else {
            return Ok(0);
        };
        let clusters = self.geometry.clusters_around(offset, len);
        let disk_end = self.geometry.virtual_size_bytes;
        let end = clusters.end.min(disk_end);
        let _exclusive = self.ranges.exclusive(clusters.clone());
        let cluster = self.geometry.cluster.bytes();
        let mut buf = vec![0; self.geometry.cluster.len()];
        let (mut from, mut copied) = (clusters.start, 0);
        while from < end {
            let run = self.lookup(from, end - from)?;
            let run_end = from + run.len;
            if run.mapping != Mapping::Unallocated {
                from = run_end;
                continue;
            }
            let (data, known) = backing.holds_data(from, run.len)?;
            if !data {
                // The rest of a cluster whose beginning is known to be zero is read with it.
                let skipped = self.geometry.cluster.round_down(from + known.min(run.len));
                if known >= run.len || skipped > from {
                    from = if known >= run.len { run_end } else { skipped };
                    continue;
                }
            }
            let piece = buf
                .get_mut(..usize::try_from(cluster.min(end - from)).unwrap_or(0))
                .unwrap_or_default();
            backing.read_at(piece, from)?;
            if piece.iter().any(|byte| *byte != 0) {
                self.write_locked(piece, from)?;
                copied += piece.len() as u64;
            }
            from += cluster;
        }
        Ok(copied)
    }

    /// Forgets the layer below, from which nothing must be needed any more; the caller has stopped all I/O.
    ///
    /// The header loses the name of the backing file in one write, which is the commit point.
    pub(crate) fn drop_backing(&self) -> Result<()> {
        self.flush_all()?;
        self.medium.write_at(&[0; 12], HEADER_BACKING_NAME)?;
        self.medium.sync()?;
        self.lock().header.backing_name = None;
        *self.backing.write().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}
