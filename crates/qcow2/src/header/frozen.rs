//! The extension that says which snapshots an image's backing file belongs to.
//!
//! ```text
//! u32 count | per snapshot: u16 path length, path (absolute), 16 bytes of the snapshot file's identity
//! ```

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::error::{Corruption, LimitExceeded, Result};
use crate::fields;
use crate::limits::MAX_FROZEN_OWNERS;

/// Bytes of a snapshot file's identity.
const FILE_ID_BYTES: usize = 16;

/// The snapshots that need the backing file of an image as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrozenBacking {
    /// The snapshots.
    pub owners: Vec<FrozenOwner>,
}

/// A snapshot that needs a backing file as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrozenOwner {
    /// Absolute path of the snapshot file when it was made.
    pub snapshot: PathBuf,
    /// Its identity, by which it is known again.
    pub file_id: [u8; FILE_ID_BYTES],
}

impl FrozenBacking {
    /// Reads the extension's data.
    pub(crate) fn parse(data: &[u8]) -> Result<Self> {
        let cut = || Corruption::new("the header extension frozen-backing is cut", data.len() as u64);
        let count = fields::u32_at(data, 0).ok_or_else(cut)?;
        LimitExceeded::check(
            "snapshots of a backing file",
            count.into(),
            MAX_FROZEN_OWNERS.into(),
        )?;
        let mut rest = data.get(4..).unwrap_or_default();
        let mut owners = Vec::new();
        for _ in 0..count {
            let path_len = usize::from(fields::u16_at(rest, 0).ok_or_else(cut)?);
            let (path, behind) = rest
                .get(2..)
                .and_then(|rest| rest.split_at_checked(path_len))
                .ok_or_else(cut)?;
            let (file_id, behind) = behind.split_first_chunk().ok_or_else(cut)?;
            owners.push(FrozenOwner {
                snapshot: OsString::from_vec(path.to_vec()).into(),
                file_id: *file_id,
            });
            rest = behind;
        }
        Ok(Self { owners })
    }

    /// Returns the extension's data.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let count = self.owners.len() as u64;
        LimitExceeded::check("snapshots of a backing file", count, MAX_FROZEN_OWNERS.into())?;
        let mut data = u32::try_from(count)
            .unwrap_or(MAX_FROZEN_OWNERS)
            .to_be_bytes()
            .to_vec();
        for owner in &self.owners {
            let path = owner.snapshot.as_os_str().as_bytes();
            let path_len = u16::try_from(path.len()).map_err(|_| LimitExceeded {
                what: "bytes of a snapshot's path",
                value: path.len() as u64,
                limit: u16::MAX.into(),
            })?;
            data.extend(path_len.to_be_bytes());
            data.extend(path);
            data.extend(owner.file_id);
        }
        Ok(data)
    }
}
