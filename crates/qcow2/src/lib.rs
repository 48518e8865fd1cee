//! qcow2 disk images: guest I/O, internal snapshots, check and repair, backing chains.
//!
//! The bytes are those of the qcow2 specification (QEMU's `docs/interop/qcow2`), versions 2 and 3; images go
//! back and forth between this crate and QEMU. Everything stands on [`Storage`], positioned I/O on one file,
//! and passes one gate, [`Metadata::open`], which believes nothing that an image says of itself.
//!
//! ```text
//! header | refcount table -> blocks | L1 -> L2 tables -> data clusters | snapshot table -> L1 of each
//! ```
//!
//! ```
//! use std::sync::Arc;
//! use qcow2::{CreateOptions, Image, ImageOptions, MemoryStorage, create};
//! # fn main() -> qcow2::Result<()> {
//! let storage = Arc::new(MemoryStorage::new());
//! create(storage.as_ref(), &CreateOptions::new(1 << 30))?;
//! let image = Image::open(storage, None, &ImageOptions::default())?;
//! image.write_at(b"before", 4096)?;
//! let snapshot = image.create_snapshot("a quiet moment")?;
//! image.write_at(b"behind", 4096)?;
//! image.flush()?; // durable from here on
//! assert_eq!((image.len_bytes(), snapshot.id().as_ref()), (1 << 30, "1"));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]
// Bytes from outside never panic: parsing neither indexes nor unwraps.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod chain;
pub mod check;
pub mod commit;
pub mod compare;
mod create;
mod decompress;
pub mod diff;
mod engine;
mod error;
mod fields;
pub mod flatten;
pub mod format;
mod header;
mod image;
mod info;
mod layer;
pub mod limits;
pub mod lock;
pub mod map;
mod metadata;
mod refcount;
pub mod repair;
#[doc(hidden)]
pub mod replay;
mod snapshot_table;
pub mod snapshots;
mod storage;
pub mod switch;
pub mod walk;

pub use chain::{Chain, ChainLayer, ImageFormat, resolve};
pub use create::{CreateOptions, create};
pub use error::{ChainError, Corruption, Error, LimitExceeded, Result, Unsupported, Usage};
pub use format::{ClusterSize, CompressedCluster, HostCluster, L1Entry, L2Entry};
pub use header::{Backing, BitmapsExtension, Extension, FeatureName, FrozenBacking, FrozenOwner, Header};
pub use image::{Image, ImageOptions, open_layer};
pub use info::{BackingInfo, BitmapsInfo, ExtensionInfo, ImageInfo, SnapshotInfo, info};
pub use layer::{Layer, LayerInfo, RawImage, layers};
pub use lock::{Lock, LockError};
pub use metadata::Metadata;
pub use refcount::{DirtyRefcounts, Refcounts};
pub use snapshot_table::SnapshotEntry;
pub use storage::{Access, Cache, FileStorage, MemoryStorage, Storage};
