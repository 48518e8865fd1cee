//! What a random reader needs to find anything: header, footer, memory map, directory, index root.
//!
//! Each is read on its own and is simply absent if it is damaged, so that the rest can still be
//! looked at. What depends on an absent structure is not checked; the damage itself is a finding.

use crate::error::{Corruption, Error, Result};
use crate::footer::{self, FOOTER_LEN};
use crate::format::{FOOTER_FRAME_LEN, FooterFields, FrameHeader, FrameType, HEADER_LEN, MAGIC, RootEntry};
use crate::frame::{FRAME_HEADER_LEN, FrameInfo};
use crate::header::{self, Header};
use crate::index::{self, IndexShape};
use crate::memory_map::{ChunkLayout, MemoryMap};
use crate::section::{SectionEntry, directory, map};
use crate::storage::ReadAt;

use super::findings::Findings;

/// The structures of a file that are sound.
pub(super) struct Structures {
    pub(super) file_bytes: u64,
    pub(super) header: Option<Header>,
    pub(super) map: Option<MemoryMap>,
    /// How memory is cut and indexed; `None` as well if header and memory map do not agree.
    pub(super) shape: Option<IndexShape>,
    pub(super) footer: Option<FooterFields>,
    pub(super) root: Option<Vec<RootEntry>>,
    pub(super) directory: Option<Vec<SectionEntry>>,
    /// Whether there is no footer at all, sound or not.
    pub(super) incomplete: bool,
    /// Bytes read and checked so far.
    pub(super) checked_bytes: u64,
    /// Frames read and checked so far.
    pub(super) frames: u64,
}

impl Structures {
    /// Reads all structures of a file of `file_bytes`.
    ///
    /// # Errors
    /// The file cannot be read, or needs a newer reader.
    pub(super) fn read(storage: &dyn ReadAt, file_bytes: u64, findings: &Findings) -> Result<Self> {
        let mut structures = Self {
            file_bytes,
            header: None,
            map: None,
            shape: None,
            footer: None,
            root: None,
            directory: None,
            incomplete: false,
            checked_bytes: 0,
            frames: 0,
        };
        let Some(header_bytes) = structures.read_header(storage, findings)? else {
            return Ok(structures);
        };
        structures.read_footer(storage, findings)?;
        structures.read_map(storage, findings)?;
        if let Some(footer) = structures.footer {
            structures.check_identity(&footer, &header_bytes, findings);
            structures.read_directory(storage, &footer, findings)?;
            structures.read_root(storage, &footer, findings)?;
        }
        Ok(structures)
    }

    /// Returns the offset at which the footer begins, or would begin.
    pub(super) fn footer_offset(&self) -> u64 {
        self.file_bytes.saturating_sub(FOOTER_LEN)
    }

    /// Returns whether the footer speaks of chunks in a parent.
    pub(super) fn has_parent_chunks(&self) -> bool {
        self.footer
            .as_ref()
            .is_some_and(|footer| footer.parent_chunks > 0)
    }

    /// Reads the header; returns its bytes unless the file is too short to have anything else.
    fn read_header(&mut self, storage: &dyn ReadAt, findings: &Findings) -> Result<Option<[u8; HEADER_LEN]>> {
        let mut bytes = [0; HEADER_LEN];
        let present = usize::try_from(self.file_bytes)
            .unwrap_or(HEADER_LEN)
            .min(HEADER_LEN);
        let (there, _) = bytes.split_at_mut(present);
        storage.read_exact_at(there, 0)?;
        if present < HEADER_LEN {
            let magic_len = present.min(MAGIC.len());
            let is_ours = bytes.get(..magic_len) == MAGIC.get(..magic_len);
            let error = match is_ours {
                true => Error::Incomplete {
                    len_bytes: self.file_bytes,
                },
                false => Corruption::Magic {}.into(),
            };
            findings.note::<()>(Err(error))?;
            self.incomplete = true;
            return Ok(None);
        }
        self.header = findings.note(Header::parse(&bytes))?;
        self.checked_bytes += HEADER_LEN as u64;
        Ok(Some(bytes))
    }

    fn read_footer(&mut self, storage: &dyn ReadAt, findings: &Findings) -> Result<()> {
        let mut tail = [0; FOOTER_FRAME_LEN];
        let room = self.file_bytes >= HEADER_LEN as u64 + FOOTER_LEN;
        if room {
            storage.read_exact_at(&mut tail, self.footer_offset())?;
        }
        if !room || !footer::is_footer(&tail) {
            self.incomplete = true;
            findings.note::<()>(Err(Error::Incomplete {
                len_bytes: self.file_bytes,
            }))?;
            return Ok(());
        }
        let parsed = findings.note(footer::parse(&tail, self.file_bytes))?;
        self.footer = parsed.map(|(_, fields)| fields);
        self.count_frame(FOOTER_LEN);
        Ok(())
    }

    fn read_map(&mut self, storage: &dyn ReadAt, findings: &Findings) -> Result<()> {
        let Some((frame, padded)) =
            self.read_frame(storage, HEADER_LEN as u64, FrameType::Section, 0, findings)?
        else {
            return Ok(());
        };
        let parsed = frame.payload(&padded).and_then(|payload| {
            let (entry, stored) = SectionEntry::parse(&frame, payload)?;
            map::from_section(&entry, &entry.decode_body(&frame, stored)?)
        });
        self.map = findings.note(parsed)?;
        if let (Some(map), Some(header)) = (&self.map, &self.header) {
            let layout = ChunkLayout::new(map, header.chunk_size);
            let leaf_entries_log2 = header.leaf_entries_log2;
            let agrees = header.check_layout(&layout).map(|()| IndexShape {
                layout,
                leaf_entries_log2,
            });
            self.shape = findings.note(agrees)?;
        }
        Ok(())
    }

    fn check_identity(&self, footer: &FooterFields, header_bytes: &[u8; HEADER_LEN], findings: &Findings) {
        let Some(header) = &self.header else { return };
        let fields = [
            ("file id", footer.file_id == header.file_id.0),
            (
                "header checksum",
                footer.header_crc == header::checksum(header_bytes),
            ),
        ];
        for (field, _) in fields.iter().filter(|(_, agrees)| !agrees) {
            findings.corrupt(Corruption::FooterField {
                offset: self.footer_offset(),
                field,
            });
        }
    }

    fn read_directory(
        &mut self,
        storage: &dyn ReadAt,
        footer: &FooterFields,
        findings: &Findings,
    ) -> Result<()> {
        let offset = footer.directory_offset;
        let Some((frame, padded)) = self.read_frame(storage, offset, FrameType::Directory, 0, findings)?
        else {
            return Ok(());
        };
        self.check_target("directory checksum", footer.directory_crc, &frame, findings);
        let parsed = frame
            .payload(&padded)
            .and_then(|payload| directory::parse(&frame, payload));
        self.directory = findings.note(parsed)?;
        let Some(sections) = &self.directory else {
            return Ok(());
        };
        if sections.len() as u64 != u64::from(footer.section_count) {
            findings.corrupt(Corruption::FooterField {
                offset: self.footer_offset(),
                field: "section count",
            });
        }
        for (number, section) in (0..).zip(sections.clone()) {
            self.check_section_header(storage, number, &section, findings)?;
        }
        Ok(())
    }

    /// Checks the frame header of a section against the directory.
    fn check_section_header(
        &mut self,
        storage: &dyn ReadAt,
        number: u64,
        section: &SectionEntry,
        findings: &Findings,
    ) -> Result<()> {
        let Some(frame) =
            self.read_frame_header(storage, section.offset, FrameType::Section, number, findings)?
        else {
            return Ok(());
        };
        let fields = [
            ("length", section.len_bytes == frame.fields.plain_len),
            ("stored length", section.stored_len == frame.fields.stored_len),
            ("digest", section.digest == frame.digest()),
        ];
        for (field, _) in fields.iter().filter(|(_, agrees)| !agrees) {
            let (offset, name) = (section.offset, section.name.clone());
            findings.corrupt(Corruption::DirectoryMismatch { offset, name, field });
        }
        Ok(())
    }

    fn read_root(&mut self, storage: &dyn ReadAt, footer: &FooterFields, findings: &Findings) -> Result<()> {
        let offset = footer.root_offset;
        let Some((frame, padded)) = self.read_frame(storage, offset, FrameType::Root, 0, findings)? else {
            return Ok(());
        };
        self.check_target("root checksum", footer.root_crc, &frame, findings);
        let Some(payload) = findings.note(frame.payload(&padded))? else {
            return Ok(());
        };
        if let Some(shape) = &self.shape {
            self.root = findings.note(index::parse_root(&frame, payload, shape))?;
        }
        Ok(())
    }

    fn check_target(&self, field: &'static str, stated: u32, frame: &FrameInfo, findings: &Findings) {
        if stated != frame.fields.payload_crc {
            let (offset, value) = (self.footer_offset(), u64::from(stated));
            findings.corrupt(Corruption::FooterTarget { offset, field, value });
        }
    }

    /// Reads the header of the frame that should be at `offset`.
    fn read_frame_header(
        &self,
        storage: &dyn ReadAt,
        offset: u64,
        frame_type: FrameType,
        key: u64,
        findings: &Findings,
    ) -> Result<Option<FrameInfo>> {
        findings.note(
            read_frame_header(storage, self.file_bytes, offset).and_then(|frame| {
                frame.expect(frame_type, key)?;
                Ok(frame)
            }),
        )
    }

    /// Reads the frame that should be at `offset`, its payload with the padding still unchecked.
    fn read_frame(
        &mut self,
        storage: &dyn ReadAt,
        offset: u64,
        frame_type: FrameType,
        key: u64,
        findings: &Findings,
    ) -> Result<Option<(FrameInfo, Vec<u8>)>> {
        let Some(frame) = self.read_frame_header(storage, offset, frame_type, key, findings)? else {
            return Ok(None);
        };
        let padded = read_payload(storage, &frame)?;
        self.count_frame(frame.end() - offset);
        Ok(Some((frame, padded)))
    }

    fn count_frame(&mut self, len_bytes: u64) {
        self.frames += 1;
        self.checked_bytes += len_bytes;
    }
}

/// Reads the frame header at `offset` and makes sure that the frame lies within the file.
pub(super) fn read_frame_header(storage: &dyn ReadAt, file_bytes: u64, offset: u64) -> Result<FrameInfo> {
    let fits = |len_bytes: u64| offset.checked_add(len_bytes).is_some_and(|end| end <= file_bytes);
    if !fits(FRAME_HEADER_LEN) || !offset.is_multiple_of(8) {
        return Err(Corruption::FrameMagic { offset }.into());
    }
    let mut bytes = [0; FrameHeader::LEN];
    storage.read_exact_at(&mut bytes, offset)?;
    let frame = FrameInfo::parse(&bytes, offset)?;
    if frame.end() > file_bytes {
        let (frame, len_bytes) = (frame.name(), u64::from(frame.fields.stored_len));
        return Err(Corruption::FrameLength {
            frame,
            offset,
            len_bytes,
        }
        .into());
    }
    Ok(frame)
}

/// Reads the payload of a frame that lies within the file, with its padding.
pub(super) fn read_payload(storage: &dyn ReadAt, frame: &FrameInfo) -> Result<Vec<u8>> {
    let mut padded = vec![0; usize::try_from(frame.padded_len()).unwrap_or(0)];
    storage.read_exact_at(&mut padded, frame.offset + FRAME_HEADER_LEN)?;
    Ok(padded)
}
