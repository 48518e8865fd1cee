//! Reading a header, and refusing what could not be handled safely.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::error::{Corruption, Error, LimitExceeded, Result, Unsupported};
use crate::fields::{u8_at, u32_at, u64_at};
use crate::format::{self, ClusterSize};
use crate::header::{Extension, FeatureName, Header};
use crate::limits;
use crate::storage::Storage;

/// Incompatible features that are read.
const SUPPORTED: u64 =
    format::INCOMPATIBLE_DIRTY | format::INCOMPATIBLE_CORRUPT | format::INCOMPATIBLE_COMPRESSION_TYPE;
/// Largest compression type that is known: Zstandard.
const MAX_COMPRESSION_TYPE: u8 = 1;

/// What the fixed part of a header says, before it is judged.
struct Fields {
    header: Header,
    backing_offset: u64,
    backing_len: u32,
    crypt_method: u32,
    header_len: usize,
}

impl Header {
    /// Reads and judges the header of the image in `storage`.
    ///
    /// # Errors
    /// The file is no qcow2 image, uses what is not supported, is beyond a limit or contradicts itself.
    pub fn read(storage: &dyn Storage) -> Result<Self> {
        let file_bytes = storage.len()?;
        // The first sector says how large a cluster is; the header with all that belongs to it is in the first.
        let mut start = vec![0; 512];
        storage.read_at(&mut start, 0)?;
        let cluster_size = check_start(&start)?;
        let mut cluster = vec![0; cluster_size.len()];
        storage.read_at(&mut cluster, 0)?;
        let there = usize::try_from(file_bytes).map_or(cluster.len(), |len| len.min(cluster.len()));
        cluster.truncate(there);
        Self::parse(&cluster, file_bytes)
    }

    /// Parses and judges the header in `cluster`, the first cluster of a file of `file_bytes`.
    ///
    /// # Errors
    /// As [`Header::read`].
    pub fn parse(cluster: &[u8], file_bytes: u64) -> Result<Self> {
        let cluster_size = check_start(cluster)?;
        let fields = parse_fields(cluster, cluster_size).ok_or(Corruption::new("the header is cut", 0))??;
        let Fields {
            mut header,
            backing_offset,
            backing_len,
            crypt_method,
            header_len,
        } = fields;
        let extensions_end = check_backing(cluster_size, backing_offset, backing_len)?;
        let end = cluster.len().min(extensions_end);
        header.extensions = parse_extensions(cluster.get(..end).unwrap_or(cluster), header_len)?;
        check_features(&header, crypt_method)?;
        if backing_offset != 0 && backing_len != 0 {
            header.backing_name = Some(parse_backing_name(cluster, backing_offset, backing_len)?);
        }
        check_tables(&header, file_bytes)?;
        Ok(header)
    }
}

/// Judges magic, version and cluster size.
fn check_start(start: &[u8]) -> Result<ClusterSize> {
    if u32_at(start, 0) != Some(format::MAGIC) {
        return Err(Error::NotQcow2);
    }
    let cut = Corruption::new("the header is cut", start.len() as u64);
    let (Some(version), Some(cluster_bits)) = (u32_at(start, 4), u32_at(start, 20)) else {
        return Err(cut.into());
    };
    if !(2..=3).contains(&version) {
        return Err(Unsupported::Version { version }.into());
    }
    ClusterSize::new(cluster_bits)
        .ok_or_else(|| Corruption::new("the cluster size is not between 512 bytes and 2 MiB", 20).into())
}

/// Reads the fixed fields; the outer nothing says that they are not all there.
fn parse_fields(bytes: &[u8], cluster_size: ClusterSize) -> Option<Result<Fields>> {
    let version = u32_at(bytes, 4)?;
    let mut header = Header {
        version,
        cluster_size,
        virtual_size_bytes: u64_at(bytes, 24)?,
        l1_entries: u32_at(bytes, 36)?,
        l1_offset: u64_at(bytes, 40)?,
        refcount_table_offset: u64_at(bytes, 48)?,
        refcount_table_clusters: u32_at(bytes, 56)?,
        snapshot_count: u32_at(bytes, 60)?,
        snapshots_offset: u64_at(bytes, 64)?,
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        refcount_order: 4,
        compression_type: 0,
        unknown_fields: Vec::new(),
        extensions: Vec::new(),
        backing_name: None,
    };
    let mut header_len = format::HEADER_BYTES_V2;
    if version == 3 {
        header.incompatible = u64_at(bytes, 72)?;
        header.compatible = u64_at(bytes, 80)?;
        header.autoclear = u64_at(bytes, 88)?;
        header.refcount_order = u32_at(bytes, 96)?;
        header_len = usize::try_from(u32_at(bytes, 100)?).ok()?;
        if header_len < format::HEADER_BYTES_V3 || header_len > cluster_size.len() {
            return Some(Err(
                Corruption::new("the header length is not possible", 100).into()
            ));
        }
        if header_len > format::HEADER_BYTES_V3 {
            header.compression_type = u8_at(bytes, 104)?;
        }
        if header_len > format::HEADER_BYTES_WRITTEN {
            let unknown = bytes.get(format::HEADER_BYTES_WRITTEN..header_len)?;
            header.unknown_fields = unknown.to_vec();
        }
    }
    Some(Ok(Fields {
        header,
        backing_offset: u64_at(bytes, 8)?,
        backing_len: u32_at(bytes, 16)?,
        crypt_method: u32_at(bytes, 32)?,
        header_len,
    }))
}

/// Judges the place of the backing file's name; returns where the extensions must have ended.
fn check_backing(cluster_size: ClusterSize, offset: u64, len: u32) -> Result<usize> {
    if offset == 0 {
        return Ok(cluster_size.len());
    }
    let cluster_bytes = cluster_size.bytes();
    if offset > cluster_bytes {
        return Err(Corruption::new("the backing file's name is not in the first cluster", offset).into());
    }
    let limit = limits::MAX_BACKING_NAME_BYTES.min(cluster_bytes - offset);
    LimitExceeded::check("bytes of the backing file's name", len.into(), limit)?;
    Ok(usize::try_from(offset).unwrap_or(cluster_size.len()))
}

fn parse_backing_name(cluster: &[u8], offset: u64, len: u32) -> Result<OsString> {
    let name = usize::try_from(offset)
        .ok()
        .zip(usize::try_from(len).ok())
        .and_then(|(start, len)| cluster.get(start..start.checked_add(len)?))
        .ok_or_else(|| Corruption::new("the backing file's name is not inside the file", offset))?;
    if name.contains(&0) {
        return Err(Corruption::new("the backing file's name has a zero byte", offset).into());
    }
    Ok(OsString::from_vec(name.to_vec()))
}

/// Reads the extensions between the header and `bytes`' end.
fn parse_extensions(bytes: &[u8], header_len: usize) -> Result<Vec<Extension>> {
    let mut extensions = Vec::new();
    let mut at = header_len;
    while let (Some(kind), Some(len)) = (u32_at(bytes, at), u32_at(bytes, at.saturating_add(4))) {
        if kind == format::EXTENSION_END {
            break;
        }
        let start = at + 8;
        let data = usize::try_from(len)
            .ok()
            .and_then(|len| bytes.get(start..start.checked_add(len)?))
            .ok_or_else(|| Corruption::new("a header extension is cut", at as u64))?;
        extensions.push(Extension {
            kind,
            data: data.to_vec(),
        });
        at = start + data.len().next_multiple_of(8);
    }
    Ok(extensions)
}

/// Refuses features that are not supported, and values that no feature has.
fn check_features(header: &Header, crypt_method: u32) -> Result<()> {
    let encrypted = header.extension(format::EXTENSION_ENCRYPTION).is_some();
    let feature = |feature| Err(Unsupported::Feature { feature }.into());
    if crypt_method != 0 || encrypted {
        return feature("encryption");
    }
    if header.incompatible & format::INCOMPATIBLE_EXTERNAL_DATA != 0 {
        return feature("an external data file");
    }
    if header.incompatible & format::INCOMPATIBLE_EXTENDED_L2 != 0 {
        return feature("extended L2 entries");
    }
    let unknown = header.incompatible & !SUPPORTED;
    if unknown != 0 {
        let named = header.feature_names();
        let names = named.iter().filter(|name| is_named(unknown, name));
        let names: Vec<&str> = names.map(|name| name.name.as_str()).collect();
        return Err(Unsupported::Features {
            bits: unknown,
            names: if names.is_empty() {
                "unknown".to_owned()
            } else {
                names.join(", ")
            },
        }
        .into());
    }
    if header.refcount_order > 6 {
        return Err(Corruption::new("refcounts are wider than 64 bits", 96).into());
    }
    let value = header.compression_type;
    if value > MAX_COMPRESSION_TYPE {
        return Err(Unsupported::CompressionType { value }.into());
    }
    let stated = header.incompatible & format::INCOMPATIBLE_COMPRESSION_TYPE != 0;
    if stated != (value != 0) {
        return Err(Corruption::new("the compression type and its feature bit disagree", 104).into());
    }
    Ok(())
}

fn is_named(bits: u64, name: &FeatureName) -> bool {
    name.kind == 0 && name.bit < 64 && bits & (1 << name.bit) != 0
}

/// Judges sizes and places of the tables that the header leads to.
fn check_tables(header: &Header, file_bytes: u64) -> Result<()> {
    let size = header.cluster_size;
    LimitExceeded::check(
        "virtual size",
        header.virtual_size_bytes,
        limits::MAX_VIRTUAL_SIZE_BYTES,
    )?;
    let l1_bytes = u64::from(header.l1_entries) * 8;
    LimitExceeded::check("bytes of the l1 table", l1_bytes, limits::MAX_L1_BYTES)?;
    if u64::from(header.l1_entries) < size.l1_entries_for(header.virtual_size_bytes) {
        return Err(Corruption::new("the l1 table is too short for the disk", 36).into());
    }
    let table = Table { size, file_bytes };
    if l1_bytes != 0 {
        table.check(header.l1_offset, l1_bytes, "the l1 table is not inside the file")?;
    }
    let refcount_bytes = u64::from(header.refcount_table_clusters) * size.bytes();
    LimitExceeded::check(
        "bytes of the refcount table",
        refcount_bytes,
        limits::MAX_REFCOUNT_TABLE_BYTES,
    )?;
    if refcount_bytes == 0 {
        return Err(Corruption::new("the image has no refcount table", 56).into());
    }
    let what = "the refcount table is not inside the file";
    table.check(header.refcount_table_offset, refcount_bytes, what)?;
    let snapshots = u64::from(header.snapshot_count);
    LimitExceeded::check("internal snapshots", snapshots, limits::MAX_SNAPSHOTS.into())?;
    if snapshots != 0 {
        // An entry has at least 40 bytes.
        let what = "the snapshot table is not inside the file";
        table.check(header.snapshots_offset, snapshots * 40, what)?;
    }
    Ok(())
}

/// The file, as the place for tables.
struct Table {
    size: ClusterSize,
    file_bytes: u64,
}

impl Table {
    /// Refuses a table that is not aligned, lies in the header's cluster, or ends beyond the last cluster.
    fn check(&self, offset: u64, len_bytes: u64, what: &'static str) -> Result<()> {
        if !self.size.is_aligned(offset) {
            return Err(Corruption::new("a table does not begin with a cluster", offset).into());
        }
        if offset == 0 {
            return Err(Corruption::new("a table lies on the header", offset).into());
        }
        let end = offset.checked_add(len_bytes);
        if end.is_none_or(|end| end > self.size.round_up(self.file_bytes)) {
            return Err(Corruption::new(what, offset).into());
        }
        Ok(())
    }
}
