//! Typed, named payloads beside guest memory.

use crate::digest::Digest;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SectionKind {
    /// The guest's memory regions; written by the writer itself.
    MemoryMap,
    /// State of a vCPU, a device or the virtual machine.
    VmState,
    /// What the host must offer for the guest to run.
    Platform,
    /// The guest's disks.
    DiskTable,
    /// Who made the snapshot, when and where, and free-form labels.
    Provenance,
    /// What the capture cost.
    Statistics,
    /// Order in which a restored guest touches its pages.
    WorkingSet,
    /// A signature of the root digest.
    Signature,
    /// A code that this version does not know.
    Unknown(u32),
}

/// How the payload of a section is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encoding {
    /// Bytes whose meaning the kind defines.
    Bytes,
    /// One CBOR map.
    Cbor,
    /// A code that this version does not know.
    Unknown(u8),
}

/// A section with its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// Its name, unique among the sections of its kind; at most 255 bytes.
    pub name: String,
    /// Version of the payload's schema.
    pub version: u32,
    /// Encoding of the payload.
    pub encoding: Encoding,
    /// The plain payload.
    pub payload: Vec<u8>,
}

/// A section as the directory lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionEntry {
    /// What it holds.
    pub kind: SectionKind,
    /// Its name.
    pub name: String,
    /// Version of the payload's schema.
    pub version: u32,
    /// Encoding of the payload.
    pub encoding: Encoding,
    /// Whether it is part of the guest's state and so of the root digest.
    pub state: bool,
    /// Offset of its frame in the file.
    pub offset: u64,
    /// Bytes of the plain payload.
    pub len_bytes: u32,
    /// Bytes of the frame's payload.
    pub stored_len: u32,
    /// BLAKE3 of the plain payload.
    pub digest: Digest,
}
