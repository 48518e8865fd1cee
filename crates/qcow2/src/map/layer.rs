//! What one layer of a chain says of a place on the disk.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use crate::decompress::Unpacker;
use crate::format::L2Entry;
use crate::walk::{self, MappingKind};
use crate::{
    ChainLayer, ClusterSize, CompressedCluster, Corruption, FileStorage, L1Entry, Metadata, Result, Storage,
    fields,
};

/// What a layer has at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Nothing: what is below shows through.
    Nothing,
    /// Zeros, with room for data at `host` where there is some.
    Zero { host: Option<u64> },
    /// Data at `host`.
    Data { host: u64 },
    /// Compressed data; the place is `within` bytes into what it unpacks to.
    Compressed { packed: CompressedCluster, within: u64 },
}

/// One layer, asked from anywhere.
#[derive(Debug)]
pub(super) struct LayerMap {
    storage: Arc<FileStorage>,
    /// Device and inode of the file.
    pub(super) identity: Option<(u64, u64)>,
    pub(super) len_bytes: u64,
    qcow2: Option<Qcow2Map>,
}

/// The tables of a layer that is a qcow2 image.
#[derive(Debug)]
struct Qcow2Map {
    cluster: ClusterSize,
    l1: Vec<L1Entry>,
    /// The L2 table read last: its offset and its bytes.
    table: (u64, Vec<u8>),
    unpacker: Unpacker,
}

impl LayerMap {
    /// Takes a layer; `l1` replaces the active L1 table and the size of the disk.
    pub(super) fn new(layer: &ChainLayer, l1: Option<(Vec<L1Entry>, u64)>) -> Result<Self> {
        let storage = Arc::clone(&layer.storage);
        let identity = storage
            .file()
            .metadata()
            .ok()
            .map(|file| (file.dev(), file.ino()));
        let (len_bytes, qcow2) = match &layer.header {
            None => (storage.len()?, None),
            Some(header) => {
                let (l1, len_bytes) = match l1 {
                    Some(given) => given,
                    None => (Metadata::open(storage.clone())?.l1, header.virtual_size_bytes),
                };
                let qcow2 = Qcow2Map {
                    cluster: header.cluster_size,
                    l1,
                    table: (0, Vec::new()),
                    unpacker: Unpacker::new(header.compression_type, header.cluster_size),
                };
                (len_bytes, Some(qcow2))
            }
        };
        Ok(Self {
            storage,
            identity,
            len_bytes,
            qcow2,
        })
    }

    /// What is at `offset`, and for how many bytes it goes on alike; not beyond the end of the disk.
    pub(super) fn part(&mut self, offset: u64) -> Result<(Part, u64)> {
        let rest = self.len_bytes.saturating_sub(offset);
        let (part, len) = match &mut self.qcow2 {
            Some(qcow2) => qcow2.part(self.storage.as_ref(), offset)?,
            None => self.raw_part(offset)?,
        };
        Ok((part, len.min(rest)))
    }

    /// What a raw file has: holes read as zeros.
    fn raw_part(&self, offset: u64) -> Result<(Part, u64)> {
        let data = self.storage.next_data(offset)?.unwrap_or(self.len_bytes);
        if data > offset {
            return Ok((Part::Zero { host: Some(offset) }, data - offset));
        }
        // Another program may be changing the file, so that the hole is here by now.
        let hole = self.storage.next_hole(offset)?.max(offset + 1);
        Ok((Part::Data { host: offset }, hole - offset))
    }

    /// For how many of `len` bytes at `host` the file has a hole; 0 if there is data at once.
    pub(super) fn hole_at(&self, host: u64, len: u64) -> Result<u64> {
        let data = self.storage.next_data(host)?;
        Ok(data.map_or(len, |data| data.saturating_sub(host)).min(len))
    }

    /// For how many of `len` bytes at `host` the file has data.
    pub(super) fn data_at(&self, host: u64, len: u64) -> Result<u64> {
        Ok(self
            .storage
            .next_hole(host)?
            .saturating_sub(host)
            .clamp(1, len.max(1)))
    }

    /// Fills `buf` with what a part of this layer holds; nothing reads as zeros.
    pub(super) fn read(&self, part: Part, buf: &mut [u8]) -> Result<()> {
        match (part, &self.qcow2) {
            (Part::Data { host }, _) => self.storage.read_at(buf, host)?,
            (Part::Compressed { packed, within }, Some(qcow2)) => {
                let bytes = qcow2.unpacker.unpack(self.storage.as_ref(), packed)?;
                let from = usize::try_from(within).unwrap_or(usize::MAX);
                let bytes = bytes.get(from..).and_then(|bytes| bytes.get(..buf.len()));
                buf.copy_from_slice(bytes.unwrap_or(&vec![0; buf.len()]));
            }
            _ => buf.fill(0),
        }
        Ok(())
    }
}

impl Qcow2Map {
    /// What is at `offset`, and for how many bytes it goes on alike.
    fn part(&mut self, storage: &dyn Storage, offset: u64) -> Result<(Part, u64)> {
        let cluster = self.cluster;
        let index = usize::try_from(cluster.l1_index(offset)).unwrap_or(usize::MAX);
        let rest = self.l1.get(index..).unwrap_or_default();
        let table = rest.first().map_or(0, |entry| entry.host_offset());
        if table == 0 {
            let coverage = cluster.l2_coverage_bytes();
            let empty = rest.iter().take_while(|entry| entry.is_unallocated()).count();
            let len = match empty == rest.len() {
                true => u64::MAX,
                false => coverage.saturating_mul(empty as u64) - offset % coverage,
            };
            return Ok((Part::Nothing, len));
        }
        if self.table.0 != table {
            walk::judge(table, cluster, storage.len()?)?;
            self.table.0 = 0;
            self.table.1.resize(cluster.len(), 0);
            storage.read_at(&mut self.table.1, table)?;
            self.table.0 = table;
        }
        let first = usize::try_from(cluster.l2_index(offset)).unwrap_or(usize::MAX);
        let mut entries = fields::entries(self.table.1.get(first * 8..).unwrap_or_default()).map(L2Entry);
        let within = cluster.offset_in_cluster(offset);
        let part = part_of(entries.next().unwrap_or_default(), cluster, within)?;
        let mut len = cluster.bytes() - within;
        for entry in entries {
            if !goes_on(part, len, MappingKind::of(entry, cluster)) {
                break;
            }
            len += cluster.bytes();
        }
        Ok((part, len))
    }
}

/// What an entry has `within` bytes into its cluster.
fn part_of(entry: L2Entry, cluster: ClusterSize, within: u64) -> Result<Part> {
    if let Some(packed) = entry.compressed(cluster.bits()) {
        return Ok(Part::Compressed { packed, within });
    }
    match MappingKind::of(entry, cluster) {
        MappingKind::Data { host } if !cluster.is_aligned(host) => {
            Err(Corruption::new("data cluster is not at the beginning of a cluster", host).into())
        }
        MappingKind::Data { host } => Ok(Part::Data { host: host + within }),
        MappingKind::Zero { host } => Ok(Part::Zero {
            host: host.map(|host| host + within),
        }),
        _ => Ok(Part::Nothing),
    }
}

/// Whether a part of `len` bytes goes on in the next cluster.
fn goes_on(part: Part, len: u64, next: MappingKind) -> bool {
    match (part, next) {
        (Part::Nothing, MappingKind::Unallocated)
        | (Part::Zero { host: None }, MappingKind::Zero { host: None }) => true,
        (Part::Zero { host: Some(host) }, MappingKind::Zero { host: Some(next) })
        | (Part::Data { host }, MappingKind::Data { host: next }) => host.saturating_add(len) == next,
        _ => false,
    }
}
