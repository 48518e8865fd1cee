//! The refcounts as an image has them, however damaged its refcount structures are.

use std::sync::Arc;

use crate::format::REFCOUNT_BLOCK_MASK;
use crate::refcount::Width;
use crate::{ClusterSize, Corruption, Header, Result, Storage, fields, limits};

/// Bytes of blocks that are kept in memory; beyond that all are read anew.
const MAX_CACHED_BYTES: u64 = 256 << 20;

/// Refcounts of an image that is not trusted.
#[derive(Debug)]
pub(crate) struct OnDisk {
    storage: Arc<dyn Storage>,
    cluster: ClusterSize,
    pub(crate) width: Width,
    /// Entries of the refcount table, with reserved bits.
    pub(crate) table: Vec<u64>,
    blocks: Vec<Option<Box<[u8]>>>,
    cached_bytes: u64,
}

impl OnDisk {
    /// Reads the refcount table.
    pub(crate) fn open(storage: &Arc<dyn Storage>, header: &Header) -> Result<Self> {
        let cluster = header.cluster_size;
        let bytes = fields::read_vec(
            storage.as_ref(),
            "refcount table bytes",
            header.refcount_table_offset,
            u64::from(header.refcount_table_clusters) * cluster.bytes(),
            limits::MAX_REFCOUNT_TABLE_BYTES,
        )?;
        let table: Vec<u64> = fields::entries(&bytes).collect();
        let width = Width::from_order(header.refcount_order)
            .ok_or_else(|| Corruption::new("refcounts are wider than 64 bits", 96))?;
        Ok(Self {
            storage: Arc::clone(storage),
            cluster,
            width,
            blocks: std::iter::repeat_with(|| None).take(table.len()).collect(),
            table,
            cached_bytes: 0,
        })
    }

    /// log2 of the clusters that one block counts.
    pub(crate) fn block_bits(&self) -> u32 {
        self.width.block_bits(self.cluster)
    }

    /// The refcount of a cluster; nothing if its block is where no block can be.
    pub(crate) fn get(&mut self, cluster: u64) -> Result<Option<u64>> {
        let bits = self.block_bits();
        let index = usize::try_from(cluster >> bits).unwrap_or(usize::MAX);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a block holds at most 2^24 counts"
        )]
        let within = (cluster & ((1 << bits) - 1)) as usize;
        let width = self.width;
        Ok(match self.block(index)? {
            Counts::Zero => Some(0),
            Counts::Unknown => None,
            Counts::Block(bytes) => Some(width.get(bytes, within)),
        })
    }

    /// The counts of one block; a block beyond the end of the file counts nothing.
    pub(crate) fn block(&mut self, index: usize) -> Result<Counts<'_>> {
        let offset = self
            .table
            .get(index)
            .map_or(0, |entry| entry & REFCOUNT_BLOCK_MASK);
        if offset == 0 {
            return Ok(Counts::Zero);
        }
        if !self.cluster.is_aligned(offset) {
            return Ok(Counts::Unknown);
        }
        if self.blocks.get(index).is_some_and(Option::is_none) {
            if offset >= self.storage.len()? {
                return Ok(Counts::Zero);
            }
            if self.cached_bytes >= MAX_CACHED_BYTES {
                self.blocks.iter_mut().for_each(|block| *block = None);
                self.cached_bytes = 0;
            }
            let mut bytes = vec![0; self.cluster.len()].into_boxed_slice();
            self.storage.read_at(&mut bytes, offset)?;
            self.cached_bytes += self.cluster.bytes();
            if let Some(block) = self.blocks.get_mut(index) {
                *block = Some(bytes);
            }
        }
        Ok(self
            .blocks
            .get(index)
            .and_then(Option::as_ref)
            .map_or(Counts::Zero, |bytes| Counts::Block(bytes)))
    }
}

/// What is known of the clusters that one entry of the refcount table stands for.
#[derive(Debug)]
pub(crate) enum Counts<'a> {
    /// No refcount is larger than 0.
    Zero,
    /// They cannot be told.
    Unknown,
    /// They are in this block.
    Block(&'a [u8]),
}
