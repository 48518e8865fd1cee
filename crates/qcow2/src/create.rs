//! New images.
//!
//! An image is born with just what it needs: the header, the refcounts of its own metadata, and an L1 table that
//! maps nothing. Nothing is allocated ahead; with a backing file, the image shows the backing file's disk.

#[cfg(test)]
mod tests;

use crate::error::{LimitExceeded, Result, Usage};
use crate::fields;
use crate::format::ClusterSize;
use crate::header::{Backing, Extension, FeatureName, FrozenBacking, Header};
use crate::limits;
use crate::storage::Storage;

/// What a new image is like.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Size of the disk that the guest sees; a multiple of 512.
    pub virtual_size_bytes: u64,
    /// Binary logarithm of the cluster size: 9 to 21.
    pub cluster_bits: u32,
    /// Width of a refcount: 1, 2, 4, 8, 16, 32 or 64 bits; 16 in version 2.
    pub refcount_bits: u32,
    /// 2 or 3.
    pub version: u32,
    /// The backing file; its format must be stated.
    pub backing: Option<Backing>,
    /// Which snapshots the backing file belongs to.
    pub frozen_backing: Option<FrozenBacking>,
    /// Further header extensions.
    pub extensions: Vec<Extension>,
}

impl CreateOptions {
    /// Returns the options of a version 3 image with 64 KiB clusters, 16-bit refcounts and no backing file.
    #[must_use]
    pub fn new(virtual_size_bytes: u64) -> Self {
        Self {
            virtual_size_bytes,
            cluster_bits: 16,
            refcount_bits: 16,
            version: 3,
            backing: None,
            frozen_backing: None,
            extensions: Vec::new(),
        }
    }

    /// Returns the options of an overlay of `virtual_size_bytes` over `backing`.
    #[must_use]
    pub fn overlay(virtual_size_bytes: u64, backing: Backing) -> Self {
        Self {
            backing: Some(backing),
            ..Self::new(virtual_size_bytes)
        }
    }
}

/// Makes an image in `storage`, whatever was there before; it is durable afterwards.
///
/// # Errors
/// An option has no such value, the header does not fit into a cluster, or the medium's.
pub fn create(storage: &dyn Storage, options: &CreateOptions) -> Result<()> {
    let cluster_size = check(options)?;
    let layout = Layout::new(cluster_size, options)?;
    let header = new_header(cluster_size, options, &layout)?;
    // A header too long for a cluster is found before anything is destroyed.
    header.to_bytes()?;

    storage.set_len(0)?;
    storage.set_len(layout.clusters() * cluster_size.bytes())?;
    let table = (0..layout.blocks).map(|block| (layout.first_block() + block) * cluster_size.bytes());
    storage.write_at(&fields::entry_bytes(table), layout.refcount_table_offset())?;
    let block_bytes = cluster_size.len();
    let mut left = layout.clusters();
    for block in 0..layout.blocks {
        let count = left.min(layout.block_entries);
        left -= count;
        let bytes = block_of_ones(count, options.refcount_bits, block_bytes);
        storage.write_at(&bytes, (layout.first_block() + block) * cluster_size.bytes())?;
    }
    header.write(storage)?;
    Ok(storage.sync()?)
}

fn check(options: &CreateOptions) -> Result<ClusterSize> {
    let refuse = |option, problem| Err(Usage::Option { option, problem }.into());
    let Some(cluster_size) = ClusterSize::new(options.cluster_bits) else {
        return refuse("cluster size", "not a power of two between 512 bytes and 2 MiB");
    };
    if !(2..=3).contains(&options.version) {
        return refuse("version", "neither 2 nor 3");
    }
    if !options.refcount_bits.is_power_of_two() || options.refcount_bits > 64 {
        return refuse("refcount width", "not a power of two up to 64 bits");
    }
    if options.version == 2 && options.refcount_bits != 16 {
        return refuse("refcount width", "version 2 has only 16 bits");
    }
    if !options.virtual_size_bytes.is_multiple_of(512) {
        return refuse("virtual size", "not a multiple of 512 bytes");
    }
    if options
        .backing
        .as_ref()
        .is_some_and(|backing| backing.format.is_none())
    {
        return refuse("backing file", "its format is not stated");
    }
    if options
        .backing
        .as_ref()
        .is_some_and(|backing| backing.name.is_empty())
    {
        return refuse("backing file", "its name is empty");
    }
    LimitExceeded::check(
        "virtual size",
        options.virtual_size_bytes,
        limits::MAX_VIRTUAL_SIZE_BYTES,
    )?;
    Ok(cluster_size)
}

fn new_header(cluster_size: ClusterSize, options: &CreateOptions, layout: &Layout) -> Result<Header> {
    let mut header = Header {
        version: options.version,
        cluster_size,
        virtual_size_bytes: options.virtual_size_bytes,
        l1_entries: layout.l1_entries,
        l1_offset: layout.l1_offset(),
        refcount_table_offset: layout.refcount_table_offset(),
        refcount_table_clusters: u32::try_from(layout.table).unwrap_or(u32::MAX),
        snapshot_count: 0,
        snapshots_offset: 0,
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        refcount_order: options.refcount_bits.trailing_zeros(),
        compression_type: 0,
        unknown_fields: Vec::new(),
        extensions: options.extensions.clone(),
        backing_name: None,
    };
    header.set_backing(options.backing.as_ref());
    header.set_frozen_backing(options.frozen_backing.as_ref())?;
    if options.version >= 3 {
        // Names for those who meet a bit that they do not know; left out where the cluster is too small for them.
        let mut named = header.clone();
        named.extensions.push(FeatureName::known_table());
        if named.to_bytes().is_ok() {
            return Ok(named);
        }
    }
    Ok(header)
}

/// Clusters of a new image, in the order of the file: header, refcount table, refcount blocks, L1 table.
#[derive(Debug)]
struct Layout {
    size: ClusterSize,
    block_entries: u64,
    table: u64,
    blocks: u64,
    l1: u64,
    l1_entries: u32,
}

impl Layout {
    fn new(size: ClusterSize, options: &CreateOptions) -> Result<Self> {
        let entries = size.l1_entries_for(options.virtual_size_bytes);
        LimitExceeded::check(
            "bytes of the l1 table",
            entries.saturating_mul(8),
            limits::MAX_L1_BYTES,
        )?;
        let l1_entries = u32::try_from(entries).unwrap_or(u32::MAX);
        let block_entries = size.refcount_block_entries(options.refcount_bits);
        // A disk without bytes has an L1 table without entries, which still is somewhere.
        let l1 = size.clusters_for(entries * 8).max(1);
        let mut layout = Self {
            size,
            block_entries,
            table: 1,
            blocks: 1,
            l1,
            l1_entries,
        };
        // Blocks and table count themselves: grow them until they cover all.
        loop {
            let blocks = layout.clusters().div_ceil(block_entries);
            let table = size.clusters_for(blocks * 8);
            if (blocks, table) == (layout.blocks, layout.table) {
                return Ok(layout);
            }
            (layout.blocks, layout.table) = (blocks.max(layout.blocks), table.max(layout.table));
        }
    }

    fn clusters(&self) -> u64 {
        1 + self.table + self.blocks + self.l1
    }

    fn refcount_table_offset(&self) -> u64 {
        self.size.bytes()
    }

    fn first_block(&self) -> u64 {
        1 + self.table
    }

    fn l1_offset(&self) -> u64 {
        (1 + self.table + self.blocks) * self.size.bytes()
    }
}

/// Returns a refcount block whose first `count` refcounts are one (qcow2 specification, refcounts: counts narrower
/// than a byte fill it from its least significant bit).
fn block_of_ones(count: u64, refcount_bits: u32, block_bytes: usize) -> Vec<u8> {
    let mut block = vec![0; block_bytes];
    let bits = u64::from(refcount_bits);
    for index in 0..count {
        let last_bit = if bits < 8 {
            index * bits
        } else {
            (index + 1) * bits - 8
        };
        if let Some(byte) = usize::try_from(last_bit / 8)
            .ok()
            .and_then(|at| block.get_mut(at))
        {
            *byte |= 1 << (last_bit % 8);
        }
    }
    block
}
