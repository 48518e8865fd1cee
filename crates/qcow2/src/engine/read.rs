//! Reading what the guest sees.

use super::Engine;
use super::lookup::{Mapping, Run};
use crate::error::Result;
use crate::storage::Storage;

impl Engine {
    /// Fills `buf` from `offset` on; what lies beyond the end of the disk reads as zeros.
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let inside = self
            .geometry
            .virtual_size_bytes
            .saturating_sub(offset)
            .min(buf.len() as u64);
        let (inside, beyond) = buf.split_at_mut(usize::try_from(inside).unwrap_or(usize::MAX));
        beyond.fill(0);
        if inside.is_empty() {
            return Ok(());
        }
        let clusters = self.geometry.clusters_around(offset, inside.len() as u64);
        let _shared = self.ranges.shared(clusters);
        self.read_locked(inside, offset)
    }

    /// Reads a range that the caller has locked; it may reach over the end of the disk inside the last cluster.
    pub(super) fn read_locked(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let run = self.lookup(offset, buf.len() as u64)?;
            let len = usize::try_from(run.len).unwrap_or(usize::MAX).min(buf.len());
            let (piece, rest) = buf.split_at_mut(len);
            self.read_run(piece, offset, run)?;
            offset += run.len;
            buf = rest;
        }
        Ok(())
    }

    fn read_run(&self, piece: &mut [u8], offset: u64, run: Run) -> Result<()> {
        match run.mapping {
            Mapping::Unallocated => match self.backing() {
                Some(backing) => backing.read_at(piece, offset)?,
                None => piece.fill(0),
            },
            Mapping::Zero { .. } => piece.fill(0),
            Mapping::Data { host, .. } => self.medium.read_at(piece, host)?,
            Mapping::Compressed(compressed) => {
                let cluster = self.unpacker.unpack(self.medium.inner().as_ref(), compressed)?;
                let within =
                    usize::try_from(self.geometry.cluster.offset_in_cluster(offset)).unwrap_or(usize::MAX);
                if let Some(bytes) = within
                    .checked_add(piece.len())
                    .and_then(|end| cluster.get(within..end))
                {
                    piece.copy_from_slice(bytes);
                }
            }
        }
        Ok(())
    }

    /// Returns whether this image itself says what is at `offset`, and for how many bytes that is so.
    pub(crate) fn is_allocated(&self, offset: u64, len: u64) -> Result<(bool, u64)> {
        let Some(inside) = self.inside(offset, len) else {
            return Ok((false, len));
        };
        let run = self.lookup(offset, inside)?;
        Ok((run.mapping != Mapping::Unallocated, run.len))
    }

    /// Returns whether there may be anything but zeros at `offset`, and for how many bytes that is so.
    pub(crate) fn holds_data(&self, offset: u64, len: u64) -> Result<(bool, u64)> {
        let Some(inside) = self.inside(offset, len) else {
            return Ok((false, len));
        };
        let run = self.lookup(offset, inside)?;
        match (run.mapping, self.backing()) {
            (Mapping::Unallocated, Some(backing)) => backing.holds_data(offset, run.len),
            (Mapping::Unallocated, None) | (Mapping::Zero { .. }, _) => Ok((false, run.len)),
            (Mapping::Data { .. } | Mapping::Compressed(_), _) => Ok((true, run.len)),
        }
    }

    /// Returns how much of a range is inside the disk, or nothing if nothing is.
    fn inside(&self, offset: u64, len: u64) -> Option<u64> {
        let inside = self.geometry.virtual_size_bytes.checked_sub(offset)?.min(len);
        (inside > 0).then_some(inside)
    }
}
