//! One thing that is wrong with an image, as data and as a sentence.

use std::fmt;

use serde::Serialize;

/// One thing that is wrong with an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Where in the file: the cluster, or where the entry that is wrong points to.
    pub offset: u64,
    /// What is wrong.
    #[serde(flatten)]
    pub kind: FindingKind,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FindingKind {
    /// A cluster's refcount is higher than the number of references.
    Leak {
        /// The image's refcount.
        refcount: u64,
        /// References that were found.
        references: u64,
    },
    /// A cluster's refcount is lower than the number of references.
    CountTooLow {
        /// The image's refcount.
        refcount: u64,
        /// References that were found.
        references: u64,
    },
    /// A cluster's refcount cannot be told, for its refcount block is nowhere.
    CountUnknown,
    /// A cluster has more references than its refcount can hold.
    CountOverflow,
    /// The copied flag of an entry contradicts the refcount of the cluster.
    WrongCopied {
        /// What the entry leads to.
        of: Structure,
        /// The cluster's refcount.
        refcount: u64,
    },
    /// A compressed cluster has the copied flag.
    CopiedCompressed,
    /// An entry has bits that the specification reserves.
    ReservedBits {
        /// What the entry leads to.
        of: Structure,
        /// The entry.
        entry: u64,
    },
    /// Something does not begin with a cluster.
    Misaligned {
        /// What it is.
        of: Structure,
    },
    /// Something lies beyond the end of the file.
    BeyondEnd {
        /// What it is.
        of: Structure,
    },
    /// A cluster of metadata is used for something else as well.
    Overlap {
        /// What else uses it.
        with: Structure,
    },
    /// A refcount block is referenced by more than its entry in the refcount table.
    SharedRefcountBlock {
        /// References that were found.
        references: u64,
    },
    /// An L1 table of a snapshot is larger than any can be.
    L1TooLarge,
    /// A snapshot lacks the extra data that version 3 requires.
    IncompleteSnapshot,
    /// The directory of bitmaps cannot be read.
    BitmapDirectory,
}

/// A part of an image that is referenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Structure {
    /// The header's cluster.
    Header,
    /// An L1 table.
    L1Table,
    /// An L2 table.
    L2Table,
    /// A cluster of guest data.
    Data,
    /// Compressed guest data.
    CompressedData,
    /// The snapshot table.
    SnapshotTable,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The directory of bitmaps.
    BitmapDirectory,
    /// The table of a bitmap.
    BitmapTable,
    /// The bits of a bitmap.
    BitmapData,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::L1Table => "l1 table",
            Self::L2Table => "l2 table",
            Self::Data => "data cluster",
            Self::CompressedData => "compressed data",
            Self::SnapshotTable => "snapshot table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::BitmapDirectory => "bitmap directory",
            Self::BitmapTable => "bitmap table",
            Self::BitmapData => "bitmap data",
        })
    }
}

impl Finding {
    /// Returns whether only room is lost.
    #[must_use]
    pub fn is_leak(&self) -> bool {
        matches!(self.kind, FindingKind::Leak { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.offset;
        match self.kind {
            FindingKind::Leak { refcount, references } => {
                write!(
                    f,
                    "leak: cluster at {at:#x} has refcount {refcount} but {references} references"
                )
            }
            FindingKind::CountTooLow { refcount, references } => {
                write!(
                    f,
                    "cluster at {at:#x} has refcount {refcount} but {references} references"
                )
            }
            FindingKind::CountUnknown => write!(f, "refcount of the cluster at {at:#x} cannot be told"),
            FindingKind::CountOverflow => {
                write!(
                    f,
                    "cluster at {at:#x} has more references than its refcount can hold"
                )
            }
            FindingKind::WrongCopied { of, refcount } => {
                write!(
                    f,
                    "copied flag of the {of} at {at:#x} contradicts its refcount {refcount}"
                )
            }
            FindingKind::CopiedCompressed => write!(f, "compressed data at {at:#x} has the copied flag"),
            FindingKind::ReservedBits { of, entry } => {
                write!(f, "entry {entry:#018x} of the {of} at {at:#x} has reserved bits")
            }
            FindingKind::Misaligned { of } => write!(f, "{of} at {at:#x} does not begin with a cluster"),
            FindingKind::BeyondEnd { of } => write!(f, "{of} at {at:#x} lies beyond the end of the file"),
            FindingKind::Overlap { with } => write!(f, "metadata at {at:#x} is used by a {with} as well"),
            FindingKind::SharedRefcountBlock { references } => {
                write!(f, "refcount block at {at:#x} has {references} references")
            }
            FindingKind::L1TooLarge => write!(f, "l1 table at {at:#x} is larger than any can be"),
            FindingKind::IncompleteSnapshot => {
                write!(
                    f,
                    "snapshot with the l1 table at {at:#x} lacks its machine state's and disk's size"
                )
            }
            FindingKind::BitmapDirectory => write!(f, "bitmap directory at {at:#x} cannot be read"),
        }
    }
}
