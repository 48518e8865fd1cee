//! The memory map as a section (spec 7.6).

use super::{Encoding, Section, SectionEntry, SectionKind};
use crate::error::{Corruption, Error, LimitExceeded, Result};
use crate::format::{HEADER_LEN, MEMORY_MAP_VERSION, MapPrefix, MapRegion};
use crate::limits;
use crate::memory_map::{MemoryMap, MemoryRegion};

/// Encodes a memory map as the section that comes first in the file.
pub(crate) fn to_section(map: &MemoryMap) -> Section {
    let region_count = u32::try_from(map.regions().len()).unwrap_or(u32::MAX);
    let mut payload = MapPrefix {
        region_count,
        reserved: [0; 12],
    }
    .encode()
    .to_vec();
    for region in map.regions() {
        let MemoryRegion {
            guest_address,
            len_bytes,
        } = *region;
        payload.extend_from_slice(
            &MapRegion {
                guest_address,
                len_bytes,
                reserved: [0; 16],
            }
            .encode(),
        );
    }
    Section {
        kind: SectionKind::MemoryMap,
        name: String::new(),
        version: MEMORY_MAP_VERSION,
        encoding: Encoding::Bytes,
        payload,
    }
}

/// Decodes the memory map from the first section of the file.
pub(crate) fn from_section(entry: &SectionEntry, body: &[u8]) -> Result<MemoryMap> {
    let invalid = |field| {
        Error::from(Corruption::MemoryMap {
            offset: entry.offset,
            field,
        })
    };
    if entry.kind != SectionKind::MemoryMap || entry.offset != HEADER_LEN as u64 {
        return Err(invalid("place"));
    }
    if !entry.name.is_empty() {
        return Err(invalid("name"));
    }
    if entry.version != MEMORY_MAP_VERSION {
        return Err(invalid("version"));
    }
    if entry.encoding != Encoding::Bytes {
        return Err(invalid("encoding"));
    }
    let mut rest = body;
    let prefix = MapPrefix::split_from(&mut rest).ok_or_else(|| invalid("length"))?;
    LimitExceeded::check(
        "memory regions",
        u64::from(prefix.region_count),
        limits::MAX_REGIONS,
    )?;
    let (records, tail) = rest.as_chunks::<{ MapRegion::LEN }>();
    if records.len() as u64 != u64::from(prefix.region_count) || !tail.is_empty() {
        return Err(invalid("length"));
    }
    let regions = records.iter().map(|record| {
        let MapRegion {
            guest_address,
            len_bytes,
            ..
        } = MapRegion::decode(record);
        MemoryRegion {
            guest_address,
            len_bytes,
        }
    });
    MemoryMap::new(regions.collect()).map_err(|error| match error {
        Error::Usage(_) => invalid("region"),
        other => other,
    })
}
