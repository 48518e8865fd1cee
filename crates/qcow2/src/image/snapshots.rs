//! Internal snapshots of an image that is in use.

use std::time::SystemTime;

use super::Image;
use crate::error::Result;
use crate::metadata::Metadata;
use crate::snapshot_table::SnapshotEntry;
use crate::snapshots;

impl Image {
    /// Takes an internal snapshot of the disk as every completed write has left it, durably.
    ///
    /// I/O waits meanwhile.
    ///
    /// # Errors
    /// As [`snapshots::create`] and [`flush`](Self::flush).
    pub fn create_snapshot(&self, name: &str) -> Result<SnapshotEntry> {
        self.change_snapshots(|metadata| snapshots::create(metadata, name, SystemTime::now()))
    }

    /// Deletes the internal snapshot that has the id or name `wanted`. I/O waits meanwhile.
    ///
    /// # Errors
    /// As [`snapshots::delete`] and [`flush`](Self::flush).
    pub fn delete_snapshot(&self, wanted: &str) -> Result<SnapshotEntry> {
        self.change_snapshots(|metadata| snapshots::delete(metadata, wanted))
    }

    /// Changes snapshots in the file while nothing of it is in memory only, and reads the metadata again.
    fn change_snapshots(
        &self,
        change: impl FnOnce(&mut Metadata) -> Result<SnapshotEntry>,
    ) -> Result<SnapshotEntry> {
        let _still = self.still();
        self.check_writable()?;
        self.engine.flush_all()?;
        let storage = self.engine.medium().clone();
        let mut metadata = Metadata::open(storage.clone())?;
        let result = change(&mut metadata);
        // Whether it succeeded or not, some of the metadata may have changed.
        let reloaded =
            Metadata::open(storage).and_then(|metadata| self.engine.reload(metadata, self.l2_cache_bytes));
        if let Err(error) = reloaded {
            self.engine.give_up();
            return Err(error);
        }
        result
    }
}
