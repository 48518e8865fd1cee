//! The directory: every section with its place, behind the data (spec 7.7 to 7.9).

use std::collections::HashSet;

use super::{Encoding, SectionEntry, SectionKind, section_name};
use crate::digest::Digest;
use crate::error::{Corruption, Error, LimitExceeded, Result};
use crate::format::{DirectoryEntry, HEADER_LEN, SECTION_STATE, align8};
use crate::frame::FrameInfo;
use crate::limits;

/// Encodes the payload of the directory.
pub(crate) fn encode(sections: &[SectionEntry]) -> Vec<u8> {
    let mut payload = Vec::new();
    for section in sections {
        let entry = DirectoryEntry {
            offset: section.offset,
            kind: section.kind.code(),
            version: section.version,
            stored_len: section.stored_len,
            plain_len: section.len_bytes,
            encoding: section.encoding.code(),
            flags: if section.state { SECTION_STATE } else { 0 },
            name_len: u16::try_from(section.name.len()).unwrap_or(u16::MAX),
            reserved: [0; 4],
            digest: section.digest.0,
        };
        payload.extend_from_slice(&entry.encode());
        payload.extend_from_slice(section.name.as_bytes());
        payload.resize(payload.len().next_multiple_of(8), 0);
    }
    payload
}

/// Decodes the checked payload of the directory's frame.
pub(crate) fn parse(frame: &FrameInfo, payload: &[u8]) -> Result<Vec<SectionEntry>> {
    let mut rest = payload;
    let mut sections: Vec<SectionEntry> = Vec::new();
    let mut total = 0u64;
    while !rest.is_empty() {
        let number = sections.len() as u64;
        LimitExceeded::check("sections", number + 1, limits::MAX_SECTIONS)?;
        let invalid = |field| Corruption::DirectoryLayout {
            offset: frame.offset,
            entry: number,
            field,
        };
        let section = parse_entry(&mut rest).map_err(|field| Error::from(invalid(field)))?;
        let previous = sections
            .last()
            .map_or(HEADER_LEN as u64 - 1, |section| section.offset);
        let in_order = if number == 0 {
            section.offset == HEADER_LEN as u64
        } else {
            section.offset > previous
        };
        if !in_order || section.offset % 8 != 0 || section.offset >= frame.offset {
            let section_offset = section.offset;
            let offset = frame.offset;
            return Err(Corruption::DirectoryOffset {
                offset,
                entry: number,
                section_offset,
            }
            .into());
        }
        LimitExceeded::check(
            "section bytes",
            u64::from(section.len_bytes),
            limits::MAX_SECTION_BYTES,
        )?;
        total += u64::from(section.len_bytes);
        LimitExceeded::check("bytes of all sections", total, limits::MAX_SECTIONS_BYTES)?;
        sections.push(section);
    }
    refuse_twins(&sections)?;
    Ok(sections)
}

/// Takes one entry off the front; `Err` names the field that breaks a rule.
fn parse_entry(rest: &mut &[u8]) -> std::result::Result<SectionEntry, &'static str> {
    let raw = DirectoryEntry::split_from(rest).ok_or("length")?;
    if u64::from(raw.name_len) > limits::MAX_SECTION_NAME {
        return Err("name length");
    }
    let padded_len = usize::try_from(align8(u64::from(raw.name_len))).unwrap_or(usize::MAX);
    let (padded, tail) = rest.split_at_checked(padded_len).ok_or("length")?;
    *rest = tail;
    let (name, padding) = padded
        .split_at_checked(usize::from(raw.name_len))
        .ok_or("length")?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err("padding");
    }
    Ok(SectionEntry {
        kind: SectionKind::from_code(raw.kind),
        name: section_name(name).ok_or("name")?,
        version: raw.version,
        encoding: Encoding::from_code(raw.encoding),
        state: raw.flags & SECTION_STATE != 0,
        offset: raw.offset,
        len_bytes: raw.plain_len,
        stored_len: raw.stored_len,
        digest: Digest(raw.digest),
    })
}

/// Refuses two sections of one kind and name (spec 7.5).
fn refuse_twins(sections: &[SectionEntry]) -> Result<()> {
    let mut seen = HashSet::new();
    for section in sections {
        if !seen.insert((section.kind, section.name.as_str())) {
            return Err(Corruption::SectionTwice {
                offset: section.offset,
                kind: section.kind.code(),
                name: section.name.clone(),
            }
            .into());
        }
    }
    Ok(())
}

/// Refuses a directory entry that does not agree with the section it names (spec 7.9).
pub(crate) fn check_agreement(listed: &SectionEntry, found: &SectionEntry) -> Result<()> {
    let fields = [
        ("kind", listed.kind == found.kind),
        ("name", listed.name == found.name),
        ("version", listed.version == found.version),
        ("encoding", listed.encoding == found.encoding),
        ("state flag", listed.state == found.state),
        ("length", listed.len_bytes == found.len_bytes),
        ("stored length", listed.stored_len == found.stored_len),
        ("digest", listed.digest == found.digest),
    ];
    match fields.iter().find(|(_, agrees)| !agrees) {
        None => Ok(()),
        Some((field, _)) => Err(Corruption::DirectoryMismatch {
            offset: found.offset,
            name: found.name.clone(),
            field,
        }
        .into()),
    }
}
