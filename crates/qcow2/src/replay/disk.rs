//! The files and their directory at one moment, and what one event changes.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{DirectoryChange, Event, FileNumber};

/// Contents of all files, and the names that lead to them.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    contents: Vec<Vec<u8>>,
    names: BTreeMap<String, FileNumber>,
}

impl Disk {
    pub(super) fn add_file(&mut self, name: &str, content: Vec<u8>) -> FileNumber {
        let file = self.next_file();
        self.contents.push(content);
        self.names.insert(name.to_owned(), file);
        file
    }

    /// The number that the next file created gets.
    pub(super) fn next_file(&self) -> FileNumber {
        self.contents.len()
    }

    pub(super) fn file_named(&self, name: &str) -> Option<FileNumber> {
        self.names.get(name).copied()
    }

    pub(super) fn len(&self, file: FileNumber) -> u64 {
        self.contents.get(file).map_or(0, |content| content.len() as u64)
    }

    /// Reads a range of a file; what is beyond its end reads as zeros.
    pub(super) fn read(&self, file: FileNumber, buf: &mut [u8], offset: u64) {
        buf.fill(0);
        let content = self.contents.get(file).map_or(&[][..], Vec::as_slice);
        let there = content.get(position(offset)..).unwrap_or_default();
        let len = there.len().min(buf.len());
        buf[..len].copy_from_slice(&there[..len]);
    }

    /// Applies the whole of an event. Syncs and marks change nothing.
    pub(super) fn apply(&mut self, event: &Event) {
        match event {
            Event::Write { file, offset, data } => self.write(*file, *offset, data),
            Event::SetLen { file, len } => self.content(*file).resize(position(*len), 0),
            Event::Punch { file, offset, len } => self.punch(*file, *offset, *len),
            Event::Directory(change) => self.change_directory(change),
            Event::Sync { .. } | Event::SyncDirectory | Event::Mark(_) => {}
        }
    }

    /// Applies a part of a write: the bytes `range` of its data.
    pub(super) fn apply_part(&mut self, event: &Event, range: Range<usize>) {
        if let Event::Write { file, offset, data } = event {
            self.write(*file, offset + range.start as u64, &data[range]);
        }
    }

    pub(super) fn change_directory(&mut self, change: &DirectoryChange) {
        match change {
            DirectoryChange::Create { name, file } => {
                self.content(*file);
                self.names.insert(name.clone(), *file);
            }
            DirectoryChange::Link { from, to } => {
                if let Some(file) = self.file_named(from) {
                    self.names.insert(to.clone(), file);
                }
            }
            DirectoryChange::Rename { from, to } => {
                if let Some(file) = self.names.remove(from) {
                    self.names.insert(to.clone(), file);
                }
            }
            DirectoryChange::Remove { name } => {
                self.names.remove(name);
            }
        }
    }

    /// The content of every named file.
    pub(super) fn named_contents(&self) -> BTreeMap<String, Vec<u8>> {
        let content = |file: &FileNumber| self.contents.get(*file).cloned().unwrap_or_default();
        self.names
            .iter()
            .map(|(name, file)| (name.clone(), content(file)))
            .collect()
    }

    fn write(&mut self, file: FileNumber, offset: u64, data: &[u8]) {
        let content = self.content(file);
        let start = position(offset);
        let end = start + data.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(data);
    }

    fn punch(&mut self, file: FileNumber, offset: u64, len: u64) {
        let content = self.content(file);
        let end = position(offset.saturating_add(len)).min(content.len());
        let start = position(offset).min(end);
        content[start..end].fill(0);
    }

    /// The content of a file, which exists from its first mention on: its data can reach the medium before its name.
    fn content(&mut self, file: FileNumber) -> &mut Vec<u8> {
        if self.contents.len() <= file {
            self.contents.resize_with(file + 1, Vec::new);
        }
        &mut self.contents[file]
    }
}

/// An offset of a file in memory as an index.
fn position(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
