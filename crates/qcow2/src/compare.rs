//! Whether two disks hold the same, whatever their images look like.
//!
//! Only what may differ is read: not what both show as zeros, not holes of the files, and not what lies in a layer
//! that both chains share.

use serde::Serialize;

use crate::check::{Progress, tell};
use crate::map::{Located, Part, View};
use crate::{Chain, Result};

/// Bytes of each disk that are compared at once.
const STEP_BYTES: u64 = 1 << 20;

/// How disks are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compare {
    /// Disks of different sizes differ, even if the longer one holds only zeros beyond the shorter one's end.
    pub strict_size: bool,
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Comparison {
    /// The disks hold the same.
    Identical,
    /// They differ from this byte on.
    ContentDiffers {
        /// The first byte that differs.
        offset: u64,
    },
    /// They have different sizes, which was not to be.
    SizeDiffers {
        /// Size of the first disk.
        first_bytes: u64,
        /// Size of the second disk.
        second_bytes: u64,
    },
}

/// Compares two disks; progress is told in bytes.
///
/// # Errors
/// Fails if a layer cannot be opened or read, if a table leads nowhere, and with [`crate::Error::Cancelled`].
pub fn compare(
    first: &Chain,
    second: &Chain,
    options: Compare,
    progress: &mut Progress<'_>,
) -> Result<Comparison> {
    let (mut first, mut second) = (View::new(first)?, View::new(second)?);
    let (first_bytes, second_bytes) = (first.len_bytes(), second.len_bytes());
    if options.strict_size && first_bytes != second_bytes {
        return Ok(Comparison::SizeDiffers {
            first_bytes,
            second_bytes,
        });
    }
    let end = first_bytes.max(second_bytes);
    let mut buffers = Buffers::default();
    let mut offset = 0;
    while offset < end {
        tell(progress, offset, end)?;
        let left = part_at(&mut first, offset, end)?;
        let right = part_at(&mut second, offset, end)?;
        let mut len = left.extent.length.min(right.extent.length);
        if !settled(&first, left, &second, right) {
            len = len.min(STEP_BYTES);
            if let Some(at) = buffers.differ(&first, left, &second, right, len)? {
                return Ok(Comparison::ContentDiffers { offset: offset + at });
            }
        }
        offset += len;
    }
    tell(progress, end, end)?;
    Ok(Comparison::Identical)
}

/// What a disk has at `offset`: zeros beyond its end.
pub(crate) fn part_at(view: &mut View, offset: u64, end: u64) -> Result<Located> {
    if offset < view.len_bytes() {
        let located = view.locate(offset)?;
        return view.without_holes(located);
    }
    Ok(Located::beyond(offset, end - offset))
}

/// Whether two parts are the same without a look at their bytes.
pub(crate) fn settled(first: &View, left: Located, second: &View, right: Located) -> bool {
    let zeros = |located: Located| matches!(located.part, Part::Nothing | Part::Zero { .. });
    zeros(left) && zeros(right) || first.same_bytes(left, second, right)
}

/// Room for the bytes of both disks.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    pub(crate) left: Vec<u8>,
    pub(crate) right: Vec<u8>,
}

impl Buffers {
    /// Reads `len` bytes of both parts.
    pub(crate) fn read(
        &mut self,
        first: &View,
        left: Located,
        second: &View,
        right: Located,
        len: u64,
    ) -> Result<()> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.left.resize(len, 0);
        self.right.resize(len, 0);
        first.read(left, &mut self.left)?;
        second.read(right, &mut self.right)
    }

    /// The first of `len` bytes in which two parts differ.
    fn differ(
        &mut self,
        first: &View,
        left: Located,
        second: &View,
        right: Located,
        len: u64,
    ) -> Result<Option<u64>> {
        self.read(first, left, second, right, len)?;
        if self.left == self.right {
            return Ok(None);
        }
        let mut pairs = self.left.iter().zip(&self.right);
        Ok(pairs.position(|(left, right)| left != right).map(|at| at as u64))
    }
}
