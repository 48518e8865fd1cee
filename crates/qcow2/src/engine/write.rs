//! Writing what the guest writes.
//!
//! What is mapped to clusters of its own is written in place, side by side with other I/O. For the rest the range
//! is locked exclusively: new clusters are taken, filled, and only then mapped, so that a write that fails, for
//! lack of room above all, has changed nothing that the guest can see.

use super::Engine;
use super::lookup::{Mapping, Run};
use super::state::Allocation;
use crate::error::Result;
use crate::format::L2Entry;
use crate::storage::Storage;

/// Most bytes for which clusters are taken at once.
const PIECE_BYTES: u64 = 2 << 20;

/// Where the data of a run goes.
struct Target {
    place: Allocation,
    /// The clusters were mapped before, as zeros: they are not given back if the write fails.
    kept: bool,
}

impl Engine {
    /// Writes `buf` at `offset`.
    pub(crate) fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.begin_change(offset, buf.len() as u64)?;
        let done = self.write_in_place(buf, offset)?;
        let rest = buf.get(done..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        let offset = offset + done as u64;
        let _exclusive = self
            .ranges
            .exclusive(self.geometry.clusters_around(offset, rest.len() as u64));
        self.write_locked(rest, offset)
    }

    /// Writes as much from the beginning on as has clusters of its own, and returns how much that is.
    fn write_in_place(&self, buf: &[u8], offset: u64) -> Result<usize> {
        let _shared = self
            .ranges
            .shared(self.geometry.clusters_around(offset, buf.len() as u64));
        let mut done = 0;
        while let Some(rest) = buf.get(done..).filter(|rest| !rest.is_empty()) {
            let run = self.lookup(offset + done as u64, rest.len() as u64)?;
            let Mapping::Data { host, copied: true } = run.mapping else {
                break;
            };
            let len = usize::try_from(run.len).unwrap_or(rest.len());
            self.medium.write_at(rest.get(..len).unwrap_or(rest), host)?;
            done += len;
        }
        Ok(done)
    }

    /// Writes a range that the caller has locked exclusively.
    pub(super) fn write_locked(&self, mut buf: &[u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            self.relieve()?;
            let run = self.lookup(offset, PIECE_BYTES.min(buf.len() as u64))?;
            let (piece, rest) = buf.split_at(usize::try_from(run.len).unwrap_or(buf.len()).min(buf.len()));
            match run.mapping {
                Mapping::Data { host, copied: true } => self.medium.write_at(piece, host)?,
                _ => self.write_new(piece, offset, run)?,
            }
            offset += run.len;
            buf = rest;
        }
        Ok(())
    }

    /// Writes a run that has no clusters of its own yet.
    fn write_new(&self, piece: &[u8], offset: u64, run: Run) -> Result<()> {
        let clusters = self.geometry.clusters_around(offset, run.len);
        let target = self.target(run, offset, clusters.end - clusters.start)?;
        let result = self
            .fill(piece, offset, run, &target)
            .and_then(|()| self.map(clusters.start, run, &target));
        if result.is_err() && !target.kept {
            self.lock().release(target.place);
        }
        result
    }

    fn target(&self, run: Run, offset: u64, len: u64) -> Result<Target> {
        let clusters = self.geometry.cluster.clusters_for(len);
        if let Mapping::Zero {
            host: Some(host),
            copied: true,
        } = run.mapping
        {
            let host = host - self.geometry.cluster.offset_in_cluster(offset);
            let place = Allocation {
                host,
                clusters,
                fresh: false,
            };
            return Ok(Target { place, kept: true });
        }
        let place = self.lock().allocate(clusters)?;
        Ok(Target { place, kept: false })
    }

    /// Writes the data of a run to its new clusters, and around it what the clusters had before.
    fn fill(&self, piece: &[u8], offset: u64, run: Run, target: &Target) -> Result<()> {
        let clusters = self.geometry.clusters_around(offset, run.len);
        let head = offset - clusters.start;
        let len = clusters.end - clusters.start;
        let whole = run.len == len;
        if whole || (target.place.fresh && self.was_zero(run, clusters.start, len)?) {
            self.medium.write_at(piece, target.place.host + head)?;
            return Ok(());
        }
        let mut buf = vec![0; usize::try_from(len).unwrap_or(0)];
        let (before, rest) = buf.split_at_mut(usize::try_from(head).unwrap_or(0));
        let (middle, after) = rest.split_at_mut(piece.len());
        self.read_locked(before, clusters.start)?;
        middle.copy_from_slice(piece);
        self.read_locked(after, offset + run.len)?;
        self.medium.write_at(&buf, target.place.host)?;
        Ok(())
    }

    /// Returns whether clusters are known to read as zeros, all of them mapped as `run`.
    fn was_zero(&self, run: Run, start: u64, len: u64) -> Result<bool> {
        Ok(match (run.mapping, self.backing()) {
            (Mapping::Zero { .. }, _) | (Mapping::Unallocated, None) => true,
            (Mapping::Unallocated, Some(backing)) => {
                let (data, known) = backing.holds_data(start, len)?;
                !data && known >= len
            }
            _ => false,
        })
    }

    /// Lets the clusters from `start` on map to their new place; what they mapped to loses its references later.
    fn map(&self, start: u64, run: Run, target: &Target) -> Result<()> {
        let cluster = self.geometry.cluster;
        let l1_index = self.geometry.l1_index(start);
        let first = self.geometry.l2_index(start);
        let mut state = self.with_table(l1_index)?;
        state.own_table(l1_index)?;
        for number in 0..target.place.clusters {
            let host = target.place.host + number * cluster.bytes();
            let index = first.saturating_add(usize::try_from(number).unwrap_or(usize::MAX));
            state.tables.set(l1_index, index, L2Entry::data(host, true));
        }
        match run.mapping {
            Mapping::Compressed(compressed) => state.free_compressed_later(compressed),
            Mapping::Zero { host: Some(host), .. } | Mapping::Data { host, .. } if !target.kept => {
                let host = cluster.round_down(host);
                for number in 0..target.place.clusters {
                    state.free_later(host + number * cluster.bytes());
                }
            }
            _ => {}
        }
        Ok(())
    }
}
