//! Flushing: everything that is in memory goes to the file, in the order that a crash survives.
//!
//! A flush copies what is dirty at one instant and lets I/O go on. The data that the copied mappings lead to was
//! written before they were made, so the first sync covers it together with the refcounts; only then do L2 tables
//! follow, then L1 entries. What the new mappings no longer refer to loses its references at the end: a cluster is
//! never used again while the file still leads to it. Its room is given back to the medium before that.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Engine;
use super::state::Batch;
use crate::error::Result;
use crate::format::HostCluster;
use crate::layer::Layer;
use crate::storage::Storage;

/// One flush at a time; who waits while a whole flush comes and goes need not do one.
#[derive(Debug, Default)]
pub(super) struct FlushTurns {
    turn: Mutex<()>,
    /// Flushes that have begun.
    begun: AtomicU64,
    /// The last flush that has succeeded, by its number.
    succeeded: AtomicU64,
}

/// A layer that was written to until its overlay took its place, with the directories of their names.
#[derive(Debug)]
pub(crate) struct Unsettled {
    layer: Arc<dyn Layer>,
    directories: Vec<PathBuf>,
    settled: Mutex<bool>,
}

impl Unsettled {
    pub(crate) fn new(layer: Arc<dyn Layer>, directories: Vec<PathBuf>) -> Self {
        Self {
            layer,
            directories,
            settled: Mutex::new(false),
        }
    }

    pub(crate) fn layer(&self) -> &Arc<dyn Layer> {
        &self.layer
    }

    /// Makes the layer and the names durable, unless they are.
    pub(crate) fn settle(&self) -> Result<()> {
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if !*settled {
            self.layer.settle()?;
            for directory in &self.directories {
                File::open(directory)?.sync_all()?;
            }
            *settled = true;
        }
        Ok(())
    }
}

impl Engine {
    /// Makes every completed write durable.
    pub(crate) fn flush(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let begun = self.flush.begun.load(Ordering::Acquire);
        let _turn = self.flush.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.flush.succeeded.load(Ordering::Acquire) > begun {
            return Ok(());
        }
        let number = self.flush.begun.fetch_add(1, Ordering::AcqRel) + 1;
        self.settle_backing()?;
        self.write_back()?;
        self.flush.succeeded.store(number, Ordering::Release);
        Ok(())
    }

    /// Flushes until nothing is left, decrements of refcounts included.
    pub(crate) fn flush_all(&self) -> Result<()> {
        self.flush()?;
        // What was freed lowers refcounts, which reach the file with the next flush.
        for _ in 0..3 {
            if self.read_only || self.lock().is_clean() {
                break;
            }
            self.flush()?;
        }
        Ok(())
    }

    /// Notes that the layer below was written to until now, and must be durable before this one can be.
    pub(crate) fn settle_before_flush(&self, unsettled: Arc<Unsettled>) {
        *self.unsettled.lock().unwrap_or_else(PoisonError::into_inner) = Some(unsettled);
    }

    fn settle_backing(&self) -> Result<()> {
        let mut unsettled = self.unsettled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layer) = unsettled.as_ref() {
            layer.settle()?;
            *unsettled = None;
        }
        Ok(())
    }

    fn write_back(&self) -> Result<()> {
        let batch = self.lock().take_batch();
        if let Err(error) = self.write_batch(&batch) {
            self.lock().put_back(batch);
            return Err(error);
        }
        let freed = self.lock().written(batch)?;
        if let Err(error) = self.drop_references(freed) {
            tracing::warn!(%error, "clusters that are no longer used are leaked");
            self.note_corruption(&mut self.lock(), &error);
        }
        Ok(())
    }

    fn write_batch(&self, batch: &Batch) -> Result<()> {
        let medium = self.medium.as_ref();
        if let Some(refcounts) = &batch.refcounts {
            refcounts.write(medium)?;
        }
        medium.sync()?;
        if !batch.tables.is_empty() {
            for (offset, bytes) in batch.tables.iter().flat_map(|parts| &parts.writes) {
                medium.write_at(bytes, *offset)?;
            }
            medium.sync()?;
        }
        if !batch.l1.is_empty() {
            for (offset, bytes) in &batch.l1 {
                medium.write_at(bytes, *offset)?;
            }
            medium.sync()?;
        }
        Ok(())
    }

    /// Takes references from clusters to which nothing durable leads on behalf of the guest any more.
    fn drop_references(&self, mut freed: Vec<HostCluster>) -> Result<()> {
        if freed.is_empty() {
            return Ok(());
        }
        let last = self.lock().last_references(&mut freed)?;
        let cluster = self.geometry.cluster;
        for run in last.chunk_by(|one, next| one.0 + 1 == next.0) {
            if let [first, ..] = run {
                let len = run.len() as u64 * cluster.bytes();
                if let Err(error) = self.medium.punch_hole(first.offset(cluster), len) {
                    tracing::debug!(%error, "room of freed clusters stays with the file");
                }
            }
        }
        self.lock().drop_references(&freed)
    }
}
