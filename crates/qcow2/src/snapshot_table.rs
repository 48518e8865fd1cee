//! The snapshot table: one entry of variable length for each internal snapshot (qcow2 specification, snapshots).
//!
//! An entry keeps its bytes: extra data that is unknown here, names that are not UTF-8 and sizes that are stated twice
//! go back to the file as they came. Whoever changes the table writes a whole new one; `snapshots.rs` knows in which
//! order.

use std::borrow::Cow;

use crate::error::{Corruption, LimitExceeded, Result};
use crate::fields::{u16_at, u32_at, u64_at};
use crate::format::ClusterSize;
use crate::header::Header;
use crate::limits::{MAX_SNAPSHOT_EXTRA_BYTES, MAX_SNAPSHOT_TABLE_BYTES, MAX_SNAPSHOTS};
use crate::storage::Storage;

/// Bytes of an entry before its extra data.
const FIXED_BYTES: usize = 40;
/// Alignment of every entry.
const ALIGNMENT: usize = 8;
/// Extra data up to the virtual size, which version 3 requires.
const EXTRA_WITH_VIRTUAL_SIZE: usize = 16;
/// Value of the instruction count where there is none, in the extra data that is written.
const NO_INSTRUCTION_COUNT: u64 = u64::MAX;
/// Bytes read from the file at a time.
const WINDOW_BYTES: u64 = 64 << 10;

/// One internal snapshot, as the snapshot table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotEntry {
    /// Offset of the snapshot's L1 table in the file, a multiple of the cluster size.
    pub l1_offset: u64,
    /// Number of entries of that table. Entries beyond the virtual size hold the state of a machine.
    pub l1_entries: u32,
    /// The snapshot's identity in its image: decimal by convention, unique, not necessarily UTF-8.
    pub id: Vec<u8>,
    /// The name that its maker gave it, not necessarily unique or UTF-8.
    pub name: Vec<u8>,
    /// When it was taken: seconds since 1970.
    pub seconds: u32,
    /// When it was taken: nanoseconds within the second.
    pub nanoseconds: u32,
    /// How long the guest had run, in nanoseconds.
    pub vm_clock_ns: u64,
    /// Size of the machine's state in bytes, as the first 32-bit field states it; see [`Self::vm_state_bytes`].
    pub vm_state_bytes_32: u32,
    /// The extra data, known and unknown, byte for byte.
    pub extra: Vec<u8>,
}

impl SnapshotEntry {
    /// Returns the id as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn id(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.id)
    }

    /// Returns the name as text; what is not UTF-8 is replaced.
    #[must_use]
    pub fn name(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.name)
    }

    /// Returns the size of the machine's state that is stored behind the disk's content; 0 if there is none.
    #[must_use]
    pub fn vm_state_bytes(&self) -> u64 {
        u64_at(&self.extra, 0).unwrap_or_else(|| self.vm_state_bytes_32.into())
    }

    /// Returns the size of the disk at the time, if the entry states it. Version 2 need not: it is the image's, then.
    #[must_use]
    pub fn virtual_size_bytes(&self) -> Option<u64> {
        u64_at(&self.extra, 8)
    }

    /// Returns whether the entry has the extra data that version 3 requires.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.extra.len() >= EXTRA_WITH_VIRTUAL_SIZE
    }

    /// Returns the bytes of the snapshot's L1 table.
    #[must_use]
    pub fn l1_bytes(&self) -> u64 {
        u64::from(self.l1_entries) * 8
    }

    /// Completes the extra data as version 3 requires it, with what its absence means.
    pub(crate) fn complete(&mut self, image_bytes: u64) {
        if !self.is_complete() {
            let vm_state_bytes = self.vm_state_bytes();
            self.extra = known_extra(vm_state_bytes, image_bytes);
        }
    }

    /// The length in the table, without the alignment of the next entry.
    fn len_bytes(&self) -> u64 {
        (FIXED_BYTES + self.extra.len() + self.id.len() + self.name.len()) as u64
    }

    fn append_to(&self, table: &mut Vec<u8>) -> Result<()> {
        let extra_len = u32::try_from(self.extra.len()).unwrap_or(u32::MAX);
        LimitExceeded::check(
            "bytes of extra data of a snapshot",
            extra_len.into(),
            MAX_SNAPSHOT_EXTRA_BYTES.into(),
        )?;
        let id_len = text_len("bytes of a snapshot's id", &self.id)?;
        let name_len = text_len("bytes of a snapshot's name", &self.name)?;
        table.extend(self.l1_offset.to_be_bytes());
        table.extend(self.l1_entries.to_be_bytes());
        table.extend(id_len.to_be_bytes());
        table.extend(name_len.to_be_bytes());
        table.extend(self.seconds.to_be_bytes());
        table.extend(self.nanoseconds.to_be_bytes());
        table.extend(self.vm_clock_ns.to_be_bytes());
        table.extend(self.vm_state_bytes_32.to_be_bytes());
        table.extend(extra_len.to_be_bytes());
        table.extend(&self.extra);
        table.extend(&self.id);
        table.extend(&self.name);
        Ok(())
    }
}

/// Returns the extra data that is written for a snapshot: sizes of machine state and disk, no instruction count.
pub(crate) fn known_extra(vm_state_bytes: u64, virtual_size_bytes: u64) -> Vec<u8> {
    [vm_state_bytes, virtual_size_bytes, NO_INSTRUCTION_COUNT]
        .into_iter()
        .flat_map(u64::to_be_bytes)
        .collect()
}

fn text_len(what: &'static str, text: &[u8]) -> Result<u16> {
    Ok(u16::try_from(text.len()).map_err(|_| LimitExceeded {
        what,
        value: text.len() as u64,
        limit: u16::MAX.into(),
    })?)
}

/// Returns the bytes of the table with these entries.
///
/// # Errors
/// [`LimitExceeded`] for more entries, longer ones or a longer table than a reader accepts.
pub(crate) fn table_bytes(entries: &[SnapshotEntry]) -> Result<Vec<u8>> {
    LimitExceeded::check("internal snapshots", entries.len() as u64, MAX_SNAPSHOTS.into())?;
    LimitExceeded::check(
        "bytes of the snapshot table",
        table_len_bytes(entries),
        MAX_SNAPSHOT_TABLE_BYTES,
    )?;
    let mut table = Vec::new();
    for entry in entries {
        table.resize(table.len().next_multiple_of(ALIGNMENT), 0);
        entry.append_to(&mut table)?;
    }
    Ok(table)
}

/// Returns the length of the table with these entries, from the first byte of the first to the last of the last.
pub(crate) fn table_len_bytes(entries: &[SnapshotEntry]) -> u64 {
    entries.iter().fold(0, |len: u64, entry| {
        len.next_multiple_of(ALIGNMENT as u64) + entry.len_bytes()
    })
}

/// Reads the snapshot table that a header points to. L1 tables are only named in it; they are judged when used.
///
/// # Errors
/// [`Corruption`] where the table is not where a table can be or an entry ends beyond the file; [`LimitExceeded`] for
/// too many snapshots, too much extra data or too long a table; those of reading.
pub(crate) fn read(storage: &dyn Storage, header: &Header) -> Result<Vec<SnapshotEntry>> {
    LimitExceeded::check(
        "internal snapshots",
        header.snapshot_count.into(),
        MAX_SNAPSHOTS.into(),
    )?;
    if header.snapshot_count == 0 {
        return Ok(Vec::new());
    }
    let offset = header.snapshots_offset;
    check_place(header.cluster_size, offset)?;
    let file_bytes = storage.len()?;
    let mut table = Window {
        storage,
        start: offset,
        limit: file_bytes,
        bytes: Vec::new(),
    };
    let mut entries = Vec::new();
    let mut at = offset;
    for _ in 0..header.snapshot_count {
        at = at.next_multiple_of(ALIGNMENT as u64);
        let entry = read_entry(&mut table, at)?;
        at += entry.len_bytes();
        LimitExceeded::check(
            "bytes of the snapshot table",
            at - offset,
            MAX_SNAPSHOT_TABLE_BYTES,
        )?;
        entries.push(entry);
    }
    Ok(entries)
}

fn check_place(size: ClusterSize, offset: u64) -> Result<()> {
    if !size.is_aligned(offset) || offset < size.bytes() {
        return Err(Corruption::new(
            "the snapshot table does not begin at a cluster behind the header",
            offset,
        )
        .into());
    }
    Ok(())
}

fn read_entry(table: &mut Window<'_>, at: u64) -> Result<SnapshotEntry> {
    let cut = || Corruption::new("the snapshot table ends beyond the file", at);
    let fixed = table.read(at, FIXED_BYTES)?;
    let u16_field = |offset| u16_at(&fixed, offset).ok_or_else(cut);
    let u32_field = |offset| u32_at(&fixed, offset).ok_or_else(cut);
    let u64_field = |offset| u64_at(&fixed, offset).ok_or_else(cut);
    let extra_len = u32_field(36)?;
    LimitExceeded::check(
        "bytes of extra data of a snapshot",
        extra_len.into(),
        MAX_SNAPSHOT_EXTRA_BYTES.into(),
    )?;
    let id_len = usize::from(u16_field(12)?);
    let name_len = usize::from(u16_field(14)?);
    let mut text = table.read(at + FIXED_BYTES as u64, extra_len as usize + id_len + name_len)?;
    let name = text.split_off(extra_len as usize + id_len);
    let id = text.split_off(extra_len as usize);
    Ok(SnapshotEntry {
        l1_offset: u64_field(0)?,
        l1_entries: u32_field(8)?,
        id,
        name,
        seconds: u32_field(16)?,
        nanoseconds: u32_field(20)?,
        vm_clock_ns: u64_field(24)?,
        vm_state_bytes_32: u32_field(32)?,
        extra: text,
    })
}

/// The part of the file that was read last, so that many short entries take few reads.
struct Window<'a> {
    storage: &'a dyn Storage,
    start: u64,
    limit: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// Returns `len` bytes at `at`; it is corrupt if they are not in the file.
    fn read(&mut self, at: u64, len: usize) -> Result<Vec<u8>> {
        let cut = || Corruption::new("the snapshot table ends beyond the file", at);
        let end = at
            .checked_add(len as u64)
            .filter(|end| *end <= self.limit)
            .ok_or_else(cut)?;
        if at < self.start || end > self.start + self.bytes.len() as u64 {
            let take = WINDOW_BYTES.max(len as u64).min(self.limit - at);
            self.bytes = vec![0; usize::try_from(take).map_err(|_| cut())?];
            self.start = at;
            self.storage.read_at(&mut self.bytes, at)?;
        }
        let from = usize::try_from(at - self.start).map_err(|_| cut())?;
        Ok(self.bytes.get(from..from + len).ok_or_else(cut)?.to_vec())
    }
}

#[cfg(test)]
mod tests;
