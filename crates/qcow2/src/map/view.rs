//! A disk seen through all layers of its chain.

use super::Extent;
use super::layer::{LayerMap, Part};
use crate::{Chain, L1Entry, Result};

/// The layers of a chain, from the top down, to be asked and read.
#[derive(Debug)]
pub(crate) struct View {
    layers: Vec<LayerMap>,
}

/// A part of a disk and what the layer that decides has there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located {
    pub(crate) extent: Extent,
    pub(crate) part: Part,
}

impl Located {
    /// Zeros beyond the end of a disk.
    pub(crate) fn beyond(offset: u64, len: u64) -> Self {
        Self {
            extent: extent(offset, len, 0, Part::Nothing),
            part: Part::Nothing,
        }
    }
}

impl View {
    /// Takes a chain as it is.
    pub(crate) fn new(chain: &Chain) -> Result<Self> {
        Self::through(chain, None)
    }

    /// Takes a chain whose top is seen through another L1 table, with a disk of another size.
    pub(crate) fn with_l1(chain: &Chain, l1: Vec<L1Entry>, len_bytes: u64) -> Result<Self> {
        Self::through(chain, Some((l1, len_bytes)))
    }

    fn through(chain: &Chain, mut l1: Option<(Vec<L1Entry>, u64)>) -> Result<Self> {
        let layers = chain.layers.iter().map(|layer| LayerMap::new(layer, l1.take()));
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
        })
    }

    /// The size of the disk.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.layers.first().map_or(0, |layer| layer.len_bytes)
    }

    /// What is at `offset`, which is inside the disk, and for how many bytes it goes on alike.
    pub(crate) fn locate(&mut self, offset: u64) -> Result<Located> {
        let mut len = self.len_bytes().saturating_sub(offset);
        let mut layers = self.layers.iter_mut().enumerate().peekable();
        while let Some((layer, map)) = layers.next() {
            let (part, part_len) = map.part(offset)?;
            len = len.min(part_len);
            if part == Part::Nothing
                && let Some((_, below)) = layers.peek()
                && offset < below.len_bytes
            {
                len = len.min(below.len_bytes - offset);
                continue;
            }
            return Ok(Located {
                extent: extent(offset, len, layer, part),
                part,
            });
        }
        Ok(Located::beyond(offset, len))
    }

    /// Shortens data to what is all hole or all data in the file, and calls what is hole zeros.
    pub(crate) fn without_holes(&self, located: Located) -> Result<Located> {
        let Part::Data { host } = located.part else {
            return Ok(located);
        };
        let Some(map) = self.layers.get(located.extent.layer) else {
            return Ok(located);
        };
        let mut located = located;
        let hole = map.hole_at(host, located.extent.length)?;
        if hole > 0 {
            located.extent.length = hole;
            located.part = Part::Zero { host: Some(host) };
        } else {
            located.extent.length = map.data_at(host, located.extent.length)?;
        }
        Ok(located)
    }

    /// Fills `buf`, no longer than the extent, with what is there.
    pub(crate) fn read(&self, located: Located, buf: &mut [u8]) -> Result<()> {
        match self.layers.get(located.extent.layer) {
            Some(map) => map.read(located.part, buf),
            None => {
                buf.fill(0);
                Ok(())
            }
        }
    }

    /// Whether two parts are the same bytes of the same file.
    pub(crate) fn same_bytes(&self, mine: Located, other: &Self, theirs: Located) -> bool {
        let identity = |view: &Self, located: Located| view.layers.get(located.extent.layer)?.identity;
        let (first, second) = (identity(self, mine), identity(other, theirs));
        first.is_some() && first == second && mine.part == theirs.part && mine.part != Part::Nothing
    }
}

/// The extent of a part.
fn extent(start: u64, length: u64, layer: usize, part: Part) -> Extent {
    Extent {
        start,
        length,
        depth: layer as u64,
        present: part != Part::Nothing,
        zero: matches!(part, Part::Nothing | Part::Zero { .. }),
        data: matches!(part, Part::Data { .. } | Part::Compressed { .. }),
        compressed: matches!(part, Part::Compressed { .. }),
        offset: match part {
            Part::Zero { host } => host,
            Part::Data { host } => Some(host),
            Part::Nothing | Part::Compressed { .. } => None,
        },
        layer,
    }
}
