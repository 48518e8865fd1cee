//! The order in which frames may follow each other (spec 5.8).
//!
//! ```text
//! map section -> sections, data, extents -> leaves, ascending -> root -> directory -> footer
//! ```
//!
//! Padding and unknown frames may stand anywhere after the first frame and before the footer.

use crate::error::Corruption;
use crate::format::{FrameType, HEADER_LEN};
use crate::frame::FrameInfo;

/// How far the file has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Start,
    Content,
    Leaves,
    Root,
    Directory,
    Footer,
}

/// Admits frames in file order.
#[derive(Debug)]
pub(super) struct Sequence {
    stage: Stage,
    sections: u64,
    next_leaf: u64,
    /// Frames admitted, in order or not.
    pub(super) frames: u64,
}

impl Sequence {
    pub(super) fn new() -> Self {
        Self {
            stage: Stage::Start,
            sections: 0,
            next_leaf: 0,
            frames: 0,
        }
    }

    /// Returns whether the footer has been admitted.
    pub(super) fn is_complete(&self) -> bool {
        self.stage == Stage::Footer
    }

    /// Takes a frame that could not be recognised into account: it may have been of any type.
    pub(super) fn skip(&mut self) {
        self.stage = self.stage.max(Stage::Content);
        self.sections = u64::MAX;
    }

    /// Admits the next frame, or tells that it may not stand here.
    pub(super) fn admit(&mut self, frame: &FrameInfo) -> Result<(), Corruption> {
        self.frames += 1;
        let out_of_order = Corruption::FrameOrder {
            frame: frame.name(),
            offset: frame.offset,
        };
        let key = frame.fields.key;
        let (allowed, next) = match frame.frame_type {
            Some(FrameType::Section) if self.stage == Stage::Start => {
                (frame.offset == HEADER_LEN as u64, Stage::Content)
            }
            Some(FrameType::Section | FrameType::Data | FrameType::Extents) => {
                (self.stage == Stage::Content, Stage::Content)
            }
            Some(FrameType::Leaf) => {
                let ascends = self.stage < Stage::Leaves || key >= self.next_leaf;
                self.next_leaf = key.saturating_add(1);
                (
                    self.stage >= Stage::Content && self.stage <= Stage::Leaves && ascends,
                    Stage::Leaves,
                )
            }
            Some(FrameType::Root) => (
                self.stage >= Stage::Content && self.stage < Stage::Root,
                Stage::Root,
            ),
            Some(FrameType::Directory) => (self.stage == Stage::Root, Stage::Directory),
            Some(FrameType::Footer) => (self.stage == Stage::Directory, Stage::Footer),
            Some(FrameType::Padding) | None => (
                self.stage > Stage::Start && self.stage < Stage::Footer,
                self.stage,
            ),
        };
        self.stage = self.stage.max(next);
        if !allowed {
            return Err(out_of_order);
        }
        if frame.frame_type == Some(FrameType::Section) && self.sections != u64::MAX {
            self.sections += 1;
            if key != self.sections - 1 {
                return Err(Corruption::FrameFields {
                    frame: frame.name(),
                    offset: frame.offset,
                    field: "key",
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::ChunkKind;
    use crate::digest::Digest;
    use crate::frame::FrameDraft;

    fn frame(frame_type: u8, key: u64, offset: u64) -> FrameInfo {
        let draft = FrameDraft {
            frame_type,
            kind: ChunkKind::Raw,
            key,
            plain_len: 0,
            digest: Digest::NONE,
        };
        FrameInfo::parse(&draft.header(&[]).encode(), offset).unwrap()
    }

    /// Returns the positions of the frames that are not admitted.
    fn refused(frames: &[(u8, u64)]) -> Vec<usize> {
        let mut sequence = Sequence::new();
        let admit = |(position, &(frame_type, key)): (usize, &(u8, u64))| {
            let offset = (HEADER_LEN + 64 * position) as u64;
            sequence
                .admit(&frame(frame_type, key, offset))
                .is_err()
                .then_some(position)
        };
        frames.iter().enumerate().filter_map(admit).collect()
    }

    #[test]
    fn the_order_of_the_specification_is_admitted() {
        let order = [
            (1, 0),
            (4, 0),
            (2, 7),
            (1, 1),
            (3, 0),
            (200, 9),
            (5, 0),
            (5, 3),
            (4, 0),
            (6, 0),
            (7, 0),
            (8, 0),
        ];
        assert_eq!(refused(&order), [0; 0]);
        assert_eq!(refused(&[(1, 0), (6, 0), (7, 0), (8, 0)]), [0; 0]);
    }

    #[test]
    fn every_other_order_is_refused_where_it_breaks() {
        assert_eq!(refused(&[(2, 0)]), [0]);
        assert_eq!(refused(&[(4, 0), (1, 0)]), [0, 1]);
        assert_eq!(refused(&[(1, 0), (1, 2)]), [1]);
        assert_eq!(refused(&[(1, 0), (5, 1), (5, 1)]), [2]);
        assert_eq!(refused(&[(1, 0), (5, 0), (2, 0)]), [2]);
        assert_eq!(refused(&[(1, 0), (6, 0), (6, 0)]), [2]);
        assert_eq!(refused(&[(1, 0), (7, 0)]), [1]);
        assert_eq!(refused(&[(1, 0), (6, 0), (7, 0), (8, 0), (4, 0)]), [4]);
    }
}
