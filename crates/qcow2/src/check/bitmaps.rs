//! References of persistent bitmaps: their directory, their tables and their bits.
//!
//! They count while the autoclear bit says that the bitmaps are valid (qcow2 specification, bitmaps); otherwise what
//! they take is leaked, as QEMU sees it.

use super::{FindingKind, Scan, Structure};
use crate::format::{AUTOCLEAR_BITMAPS, OFFSET_MASK};
use crate::{BitmapsExtension, Result, fields, limits};

/// Bytes of a directory entry before its extra data and name.
const ENTRY_BYTES: usize = 24;
/// Bytes of the largest directory: each bitmap with a name of 1023 bytes.
const MAX_DIRECTORY_BYTES: u64 = limits::MAX_BITMAPS as u64 * 1048;
/// Bytes of a bitmap table that are read at once.
const TABLE_READ_BYTES: u64 = 1 << 20;
/// Bits of a bitmap table's entry that are reserved.
const RESERVED: u64 = !(OFFSET_MASK | ALL_ONES);
/// Without an offset: all bits are set.
const ALL_ONES: u64 = 1;

/// Where a bitmap's table is.
struct Bitmap {
    table_offset: u64,
    table_bytes: u64,
}

impl Scan<'_> {
    /// Counts what the bitmaps use.
    pub(super) fn count_bitmaps(&mut self) -> Result<()> {
        if self.metadata.header.autoclear & AUTOCLEAR_BITMAPS == 0 {
            return Ok(());
        }
        let Some(extension) = self.metadata.header.bitmaps() else {
            return Ok(());
        };
        let (offset, len) = (extension.directory_offset, extension.directory_bytes);
        self.count_metadata(Structure::BitmapDirectory, offset, len, 1)?;
        let Some(bitmaps) = self.read_directory(&extension)? else {
            self.tree_damaged = true;
            self.report.corrupt(1, offset, FindingKind::BitmapDirectory);
            return Ok(());
        };
        for bitmap in bitmaps {
            let of = Structure::BitmapTable;
            if !self.cluster.is_aligned(bitmap.table_offset) {
                self.tree_damaged = true;
                self.report
                    .corrupt(1, bitmap.table_offset, FindingKind::Misaligned { of });
                continue;
            }
            self.count_metadata(of, bitmap.table_offset, bitmap.table_bytes, 1)?;
            if self
                .references
                .inside(bitmap.table_offset, bitmap.table_bytes)
                .is_some()
            {
                self.count_bits(&bitmap)?;
            }
        }
        Ok(())
    }

    /// Counts the clusters with the bits of one bitmap.
    fn count_bits(&mut self, bitmap: &Bitmap) -> Result<()> {
        let of = Structure::BitmapData;
        let mut bytes = Vec::new();
        let mut at = 0;
        while at < bitmap.table_bytes {
            let part = TABLE_READ_BYTES.min(bitmap.table_bytes - at);
            bytes.resize(usize::try_from(part).unwrap_or(usize::MAX), 0);
            self.storage().read_at(&mut bytes, bitmap.table_offset + at)?;
            for entry in fields::entries(&bytes) {
                let offset = entry & OFFSET_MASK;
                if entry & RESERVED != 0 || (offset != 0 && entry & ALL_ONES != 0) {
                    self.report
                        .corrupt(1, offset, FindingKind::ReservedBits { of, entry });
                } else if !self.cluster.is_aligned(offset) {
                    self.report.corrupt(1, offset, FindingKind::Misaligned { of });
                } else if offset != 0 {
                    self.count_metadata(of, offset, self.cluster.bytes(), 1)?;
                }
            }
            at += part;
        }
        Ok(())
    }

    /// Reads the directory; nothing if it is not what the extension says.
    fn read_directory(&self, extension: &BitmapsExtension) -> Result<Option<Vec<Bitmap>>> {
        let (offset, len) = (extension.directory_offset, extension.directory_bytes);
        let inside = self.references.inside(offset, len).is_some();
        if !inside || !self.cluster.is_aligned(offset) || len > MAX_DIRECTORY_BYTES {
            return Ok(None);
        }
        let bytes = fields::read_vec(
            self.storage(),
            "bytes of the bitmap directory",
            offset,
            len,
            MAX_DIRECTORY_BYTES,
        )?;
        Ok(parse_directory(&bytes, extension.bitmap_count))
    }
}

/// Takes a directory apart; nothing if it does not hold exactly `count` entries.
fn parse_directory(mut bytes: &[u8], count: u32) -> Option<Vec<Bitmap>> {
    let mut bitmaps = Vec::new();
    while !bytes.is_empty() {
        let name_len = usize::from(fields::u16_at(bytes, 18)?);
        let extra_len = usize::try_from(fields::u32_at(bytes, 20)?).ok()?;
        bitmaps.push(Bitmap {
            table_offset: fields::u64_at(bytes, 0)?,
            table_bytes: u64::from(fields::u32_at(bytes, 8)?) * 8,
        });
        let len = ENTRY_BYTES.checked_add(extra_len)?.checked_add(name_len)?;
        bytes = bytes.get(len.checked_next_multiple_of(8)?..)?;
    }
    (bitmaps.len() as u64 == u64::from(count)).then_some(bitmaps)
}
