//! The largest values that are accepted; whatever is larger is refused before memory is taken for it.
//!
//! They are QEMU's own, so that an image that QEMU makes is never refused for its size, except where noted.

/// Smallest `cluster_bits` (qcow2 specification, header): 512 bytes.
pub const MIN_CLUSTER_BITS: u32 = 9;
/// Largest `cluster_bits` that QEMU opens: 2 MiB.
pub const MAX_CLUSTER_BITS: u32 = 21;
/// Bytes of an L1 table.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Bytes of the refcount table.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Internal snapshots of one image.
pub const MAX_SNAPSHOTS: u32 = 65_536;
/// Bytes of the snapshot table.
pub const MAX_SNAPSHOT_TABLE_BYTES: u64 = 64 << 20;
/// Bytes of extra data in one entry of the snapshot table.
pub const MAX_SNAPSHOT_EXTRA_BYTES: u32 = 1024;
/// Images in one backing chain. QEMU knows no limit; every layer costs an open file and a look-up.
pub const MAX_CHAIN_DEPTH: usize = 64;
/// Bytes of a backing file's name (qcow2 specification, header).
pub const MAX_BACKING_NAME_BYTES: u64 = 1023;
/// Persistent bitmaps of one image.
pub const MAX_BITMAPS: u32 = 65_535;
/// Snapshot files that the extension `frozen-backing` names.
pub const MAX_FROZEN_OWNERS: u32 = 1024;
/// Largest virtual disk: file offsets are signed 64-bit numbers.
pub const MAX_VIRTUAL_SIZE_BYTES: u64 = i64::MAX as u64 & !511;
