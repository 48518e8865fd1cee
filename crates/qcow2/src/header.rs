//! The header: where everything is, which features are used, and the extensions behind it.
//!
//! A header is kept so that writing it back changes nothing that it does not know: extensions stay in their
//! order byte for byte, and so do fields beyond those of today's specification. Parsing refuses what could not
//! be handled safely; writing has small positioned forms for the fields that commit a change.

mod extension;
mod frozen;
mod parse;
#[cfg(test)]
mod tests;
mod write;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

pub use extension::{BitmapsExtension, Extension, FeatureName};
pub use frozen::{FrozenBacking, FrozenOwner};

use crate::error::Result;
use crate::format::{self, ClusterSize};

/// The header of an image, with its extensions and its backing file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Size of a cluster.
    pub cluster_size: ClusterSize,
    /// Size of the disk that the guest sees.
    pub virtual_size_bytes: u64,
    /// Entries of the active L1 table.
    pub l1_entries: u32,
    /// Offset of the active L1 table.
    pub l1_offset: u64,
    /// Offset of the refcount table.
    pub refcount_table_offset: u64,
    /// Clusters that the refcount table takes.
    pub refcount_table_clusters: u32,
    /// Internal snapshots in the snapshot table.
    pub snapshot_count: u32,
    /// Offset of the snapshot table; undefined where there are no snapshots.
    pub snapshots_offset: u64,
    /// Incompatible features, `format::INCOMPATIBLE_*`; none in version 2.
    pub incompatible: u64,
    /// Compatible features, `format::COMPATIBLE_*`; none in version 2.
    pub compatible: u64,
    /// Autoclear features, `format::AUTOCLEAR_*`; none in version 2.
    pub autoclear: u64,
    /// Binary logarithm of the width of a refcount in bits: 0 to 6; 4 in version 2.
    pub refcount_order: u32,
    /// How clusters are compressed: 0 deflate, 1 Zstandard.
    pub compression_type: u8,
    /// Header bytes after the compression type, which no specification has given a meaning.
    pub unknown_fields: Vec<u8>,
    /// All extensions in their order, without the end marker.
    pub extensions: Vec<Extension>,
    /// Name of the backing file as the image states it.
    pub backing_name: Option<OsString>,
}

/// The backing file that an image names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name, relative to the image unless absolute.
    pub name: OsString,
    /// Its format (`raw`, `qcow2`), if the image states it.
    pub format: Option<String>,
}

impl Backing {
    /// Returns the backing file `name` of `format`.
    #[must_use]
    pub fn new(name: impl Into<OsString>, format: crate::ImageFormat) -> Self {
        Self {
            name: name.into(),
            format: Some(format.name().to_owned()),
        }
    }
}

impl Header {
    /// Returns the width of a refcount in bits: 1 to 64.
    #[must_use]
    pub fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order.min(6)
    }

    /// Returns whether the image is marked dirty: its refcounts may be wrong.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.incompatible & format::INCOMPATIBLE_DIRTY != 0
    }

    /// Returns whether the image is marked corrupt: it may only be read and repaired.
    #[must_use]
    pub fn is_marked_corrupt(&self) -> bool {
        self.incompatible & format::INCOMPATIBLE_CORRUPT != 0
    }

    /// Returns the backing file that the image names, if any.
    #[must_use]
    pub fn backing(&self) -> Option<Backing> {
        let format = self.extension(format::EXTENSION_BACKING_FORMAT);
        Some(Backing {
            name: self.backing_name.clone()?,
            format: format.map(|data| String::from_utf8_lossy(data).into_owned()),
        })
    }

    /// Makes the image name another backing file, or none. An extension about the frozen backing file goes.
    pub fn set_backing(&mut self, backing: Option<&Backing>) {
        self.remove_extension(format::EXTENSION_BACKING_FORMAT);
        self.remove_extension(format::EXTENSION_FROZEN_BACKING);
        self.backing_name = backing.map(|backing| backing.name.clone());
        if let Some(format) = backing.and_then(|backing| backing.format.as_ref()) {
            let kind = format::EXTENSION_BACKING_FORMAT;
            let data = format.clone().into_bytes();
            // QEMU writes this extension first.
            self.extensions.insert(0, Extension { kind, data });
        }
    }

    /// Returns which snapshots the backing file belongs to, if the image says so.
    ///
    /// # Errors
    /// The extension is cut or beyond a limit.
    pub fn frozen_backing(&self) -> Result<Option<FrozenBacking>> {
        self.extension(format::EXTENSION_FROZEN_BACKING)
            .map(FrozenBacking::parse)
            .transpose()
    }

    /// States which snapshots the backing file belongs to, or that it belongs to none.
    ///
    /// # Errors
    /// A path is too long or there are too many snapshots.
    pub fn set_frozen_backing(&mut self, frozen: Option<&FrozenBacking>) -> Result<()> {
        let data = frozen.map(FrozenBacking::to_bytes).transpose()?;
        self.remove_extension(format::EXTENSION_FROZEN_BACKING);
        if let Some(data) = data {
            let kind = format::EXTENSION_FROZEN_BACKING;
            self.extensions.push(Extension { kind, data });
        }
        Ok(())
    }

    /// Returns what the image says of its persistent bitmaps, if it has any.
    #[must_use]
    pub fn bitmaps(&self) -> Option<BitmapsExtension> {
        BitmapsExtension::parse(self.extension(format::EXTENSION_BITMAPS)?)
    }

    /// Returns the names that the image gives to feature bits.
    #[must_use]
    pub fn feature_names(&self) -> Vec<FeatureName> {
        self.extension(format::EXTENSION_FEATURE_NAMES)
            .map(FeatureName::parse_table)
            .unwrap_or_default()
    }

    /// Returns the data of the first extension of a kind.
    #[must_use]
    pub fn extension(&self, kind: u32) -> Option<&[u8]> {
        let found = self.extensions.iter().find(|extension| extension.kind == kind)?;
        Some(&found.data)
    }

    fn remove_extension(&mut self, kind: u32) {
        self.extensions.retain(|extension| extension.kind != kind);
    }

    /// Returns the backing file's name as bytes; none are no name.
    fn backing_name_bytes(&self) -> &[u8] {
        self.backing_name.as_deref().map_or(&[], OsStr::as_bytes)
    }
}
