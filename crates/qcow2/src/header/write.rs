//! Writing a header, whole or only the fields that commit a change.

use crate::error::{LimitExceeded, Result, Usage};
use crate::format;
use crate::header::Header;
use crate::limits::MAX_BACKING_NAME_BYTES;
use crate::storage::Storage;

/// Offset of the L1 table's size and place: u32, u64.
const L1_FIELDS: u64 = 36;
/// Offset of the refcount table's place and size: u64, u32.
const REFCOUNT_TABLE_FIELDS: u64 = 48;
/// Offset of the snapshot table's count and place: u32, u64.
const SNAPSHOT_FIELDS: u64 = 60;
/// Offset of the feature bits of version 3: three u64.
const FEATURE_FIELDS: u64 = 72;

impl Header {
    /// Returns the bytes of the header with its extensions and the backing file's name, without padding.
    ///
    /// # Errors
    /// They do not fit into one cluster, or the name is too long.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let name = self.backing_name_bytes();
        LimitExceeded::check(
            "bytes of the backing file's name",
            name.len() as u64,
            MAX_BACKING_NAME_BYTES,
        )?;
        let mut behind = Vec::new();
        for extension in &self.extensions {
            append_extension(&mut behind, extension.kind, &extension.data);
        }
        append_extension(&mut behind, format::EXTENSION_END, &[]);
        let header_len = self.header_len();
        let backing_offset = if name.is_empty() {
            0
        } else {
            header_len + behind.len()
        };
        let mut bytes = self.fixed_bytes(backing_offset as u64, name.len());
        bytes.append(&mut behind);
        bytes.extend(name);
        if bytes.len() > self.cluster_size.len() {
            return Err(Usage::HeaderTooLong {
                len_bytes: bytes.len(),
            }
            .into());
        }
        Ok(bytes)
    }

    /// Writes the whole header over the first cluster, padded with zeros. It is not made durable.
    ///
    /// # Errors
    /// It does not fit into one cluster, or the medium's.
    pub fn write(&self, storage: &dyn Storage) -> Result<()> {
        let mut bytes = self.to_bytes()?;
        bytes.resize(self.cluster_size.len(), 0);
        Ok(storage.write_at(&bytes, 0)?)
    }

    /// Writes where the active L1 table is, in one write of 12 bytes. It is not made durable.
    ///
    /// # Errors
    /// The medium's.
    pub fn write_l1_fields(&self, storage: &dyn Storage) -> Result<()> {
        let mut bytes = self.l1_entries.to_be_bytes().to_vec();
        bytes.extend(self.l1_offset.to_be_bytes());
        Ok(storage.write_at(&bytes, L1_FIELDS)?)
    }

    /// Writes where the refcount table is, in one write of 12 bytes. It is not made durable.
    ///
    /// # Errors
    /// The medium's.
    pub fn write_refcount_table_fields(&self, storage: &dyn Storage) -> Result<()> {
        let mut bytes = self.refcount_table_offset.to_be_bytes().to_vec();
        bytes.extend(self.refcount_table_clusters.to_be_bytes());
        Ok(storage.write_at(&bytes, REFCOUNT_TABLE_FIELDS)?)
    }

    /// Writes where the snapshot table is, in one write of 12 bytes. It is not made durable.
    ///
    /// # Errors
    /// The medium's.
    pub fn write_snapshot_fields(&self, storage: &dyn Storage) -> Result<()> {
        let mut bytes = self.snapshot_count.to_be_bytes().to_vec();
        bytes.extend(self.snapshots_offset.to_be_bytes());
        Ok(storage.write_at(&bytes, SNAPSHOT_FIELDS)?)
    }

    /// Writes the feature bits, in one write of 24 bytes; version 2 has none. It is not made durable.
    ///
    /// # Errors
    /// The medium's.
    pub fn write_feature_fields(&self, storage: &dyn Storage) -> Result<()> {
        if self.version < 3 {
            return Ok(());
        }
        let features = [self.incompatible, self.compatible, self.autoclear];
        Ok(storage.write_at(&crate::fields::entry_bytes(features), FEATURE_FIELDS)?)
    }

    fn header_len(&self) -> usize {
        if self.version < 3 {
            format::HEADER_BYTES_V2
        } else {
            format::HEADER_BYTES_WRITTEN + self.unknown_fields.len()
        }
    }

    fn fixed_bytes(&self, backing_offset: u64, backing_len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.cluster_size.len());
        bytes.extend(format::MAGIC.to_be_bytes());
        bytes.extend(self.version.to_be_bytes());
        bytes.extend(backing_offset.to_be_bytes());
        // At most 1023 bytes, checked by the caller.
        bytes.extend(u32::try_from(backing_len).unwrap_or(0).to_be_bytes());
        bytes.extend(self.cluster_size.bits().to_be_bytes());
        bytes.extend(self.virtual_size_bytes.to_be_bytes());
        bytes.extend([0; 4]); // not encrypted: anything else is refused
        bytes.extend(self.l1_entries.to_be_bytes());
        bytes.extend(self.l1_offset.to_be_bytes());
        bytes.extend(self.refcount_table_offset.to_be_bytes());
        bytes.extend(self.refcount_table_clusters.to_be_bytes());
        bytes.extend(self.snapshot_count.to_be_bytes());
        bytes.extend(self.snapshots_offset.to_be_bytes());
        if self.version >= 3 {
            bytes.extend(self.incompatible.to_be_bytes());
            bytes.extend(self.compatible.to_be_bytes());
            bytes.extend(self.autoclear.to_be_bytes());
            bytes.extend(self.refcount_order.to_be_bytes());
            let header_len = u32::try_from(self.header_len()).unwrap_or(0);
            bytes.extend(header_len.to_be_bytes());
            bytes.push(self.compression_type);
            bytes.extend([0; 7]);
            bytes.extend(&self.unknown_fields);
        }
        bytes
    }
}

/// Appends an extension, its data padded to a multiple of 8 bytes.
fn append_extension(bytes: &mut Vec<u8>, kind: u32, data: &[u8]) {
    // Whatever is longer than a cluster is refused with the header.
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}
