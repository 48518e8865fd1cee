//! Where the content of a disk lies: which layer of a chain holds what, and where in its file.
//!
//! Extents are those of `qemu-img map --output=json`: adjoining parts that are alike are one.

mod layer;
mod view;

use serde::Serialize;

pub(crate) use layer::Part;
pub(crate) use view::{Located, View};

use crate::{Chain, Result};

/// A part of a disk whose content lies in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// Layers above the one that says what is there.
    pub depth: u64,
    /// That layer has something of its own there, data or zeros; otherwise zeros show because nothing is below.
    pub present: bool,
    /// The extent reads as zeros.
    pub zero: bool,
    /// The extent has data in a file.
    pub data: bool,
    /// The data is compressed.
    pub compressed: bool,
    /// Where in the layer's file the data is or would go, unless it is compressed.
    pub offset: Option<u64>,
    /// The layer, as an index into the chain's.
    pub layer: usize,
}

impl Extent {
    /// Returns whether `next` goes on where this one ends, in the same way.
    fn is_followed_by(&self, next: &Self) -> bool {
        let alike = Self {
            start: self.start + self.length,
            length: next.length,
            offset: self.offset.map(|offset| offset.saturating_add(self.length)),
            ..*self
        };
        alike == *next
    }
}

/// Visits the extents of a disk from its first byte to its last.
///
/// # Errors
/// Fails if a layer cannot be opened or read, if a table leads nowhere, and if the visitor does.
pub fn map(chain: &Chain, visit: &mut dyn FnMut(&Extent) -> Result<()>) -> Result<()> {
    let mut view = View::new(chain)?;
    let mut current: Option<Extent> = None;
    let mut offset = 0;
    while offset < view.len_bytes() {
        let next = view.locate(offset)?.extent;
        offset += next.length;
        current = match current {
            Some(extent) if extent.is_followed_by(&next) => Some(Extent {
                length: extent.length + next.length,
                ..extent
            }),
            Some(extent) => {
                visit(&extent)?;
                Some(next)
            }
            None => Some(next),
        };
    }
    current.map_or(Ok(()), |extent| visit(&extent))
}
