//! The root digest: the identity of a guest's state (spec 8.16).

use std::cmp::Ordering;

use super::Digest;
use crate::format::ROOT_DOMAIN;
use crate::memory_map::MemoryMap;

/// What enters the root digest of a state section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StateSection {
    pub(crate) kind: u32,
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) len_bytes: u64,
    pub(crate) digest: Digest,
}

impl StateSection {
    fn order(&self, other: &Self) -> Ordering {
        self.kind
            .cmp(&other.kind)
            .then_with(|| self.name.as_bytes().cmp(other.name.as_bytes()))
    }
}

/// Returns the root digest of a guest with these regions and state sections, in any order.
pub(crate) fn root_digest(
    architecture: u16,
    map: &MemoryMap,
    region_digests: &[Digest],
    mut sections: Vec<StateSection>,
) -> Digest {
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    let mut record = ROOT_DOMAIN.to_vec();
    record.extend(u32::from(architecture).to_le_bytes());
    record.extend(count(map.regions().len()));
    for (region, digest) in map.regions().iter().zip(region_digests) {
        record.extend(region.guest_address.to_le_bytes());
        record.extend(region.len_bytes.to_le_bytes());
        record.extend(digest.0);
    }
    sections.sort_by(StateSection::order);
    record.extend(count(sections.len()));
    for section in &sections {
        record.extend(section.kind.to_le_bytes());
        record.extend(section.version.to_le_bytes());
        record.extend(count(section.name.len()));
        record.extend(section.name.as_bytes());
        record.extend(section.len_bytes.to_le_bytes());
        record.extend(section.digest.0);
    }
    Digest::of(&record)
}
