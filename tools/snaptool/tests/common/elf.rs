//! Reads ELF cores, as far as the tests need it.

use std::fs;
use std::path::Path;

pub const PT_LOAD: u64 = 1;
pub const PT_NOTE: u64 = 4;

/// A core file that was read.
pub struct Core {
    bytes: Vec<u8>,
    pub headers: Vec<ProgramHeader>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramHeader {
    pub kind: u64,
    pub offset: u64,
    pub virtual_address: u64,
    pub guest_address: u64,
    pub file_bytes: u64,
    pub memory_bytes: u64,
}

/// A note: name without its zero, type, content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub name: String,
    pub kind: u64,
    pub content: Vec<u8>,
}

impl Core {
    /// Reads a core for x86-64 whose program headers stand behind the ELF header.
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let mut core = Self {
            bytes,
            headers: Vec::new(),
        };
        assert_eq!(core.bytes[..7], *b"\x7fELF\x02\x01\x01");
        assert_eq!(
            (core.word(16, 2), core.word(18, 2)),
            (4, 62),
            "ET_CORE, EM_X86_64"
        );
        assert_eq!((core.word(32, 8), core.word(54, 2)), (64, 56));
        core.headers = (0..core.word(56, 2))
            .map(|number| core.header(64 + 56 * number))
            .collect();
        core
    }

    fn header(&self, at: u64) -> ProgramHeader {
        let field = |offset| self.word(at + offset, 8);
        ProgramHeader {
            kind: self.word(at, 4),
            offset: field(8),
            virtual_address: field(16),
            guest_address: field(24),
            file_bytes: field(32),
            memory_bytes: field(40),
        }
    }

    /// A little-endian number of `len` bytes at an offset of the file.
    fn word(&self, at: u64, len: usize) -> u64 {
        let at = usize::try_from(at).unwrap();
        self.bytes[at..at + len]
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte))
    }

    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub fn segments(&self) -> impl Iterator<Item = &ProgramHeader> {
        self.headers.iter().filter(|header| header.kind == PT_LOAD)
    }

    /// The segments in the upper half of the address space, sorted: virtual, guest physical, length.
    pub fn kernel_segments(&self) -> Vec<(u64, u64, u64)> {
        let mut segments: Vec<_> = self
            .segments()
            .filter(|header| header.virtual_address >= 0xff00_0000_0000_0000)
            .map(|header| (header.virtual_address, header.guest_address, header.file_bytes))
            .collect();
        segments.sort_unstable();
        segments
    }

    /// What a debugger sees at a virtual address.
    pub fn at(&self, virtual_address: u64, len: usize) -> Option<&[u8]> {
        let segment = self.segments().find(|header| {
            virtual_address
                .checked_sub(header.virtual_address)
                .is_some_and(|offset| offset < header.file_bytes)
        })?;
        let at = usize::try_from(segment.offset + virtual_address - segment.virtual_address).ok()?;
        self.bytes.get(at..at + len)
    }

    /// All notes, in the order of the file.
    pub fn notes(&self) -> Vec<Note> {
        let header = self.headers.iter().find(|header| header.kind == PT_NOTE).unwrap();
        let (mut at, end) = (header.offset, header.offset + header.file_bytes);
        let mut notes = Vec::new();
        while at < end {
            let (name_len, content_len) = (self.word(at, 4), self.word(at + 4, 4));
            let bytes = |at: u64, len: u64| {
                let at = usize::try_from(at).unwrap();
                self.bytes[at..at + usize::try_from(len).unwrap()].to_vec()
            };
            let content = at + 12 + name_len.next_multiple_of(4);
            let mut name = String::from_utf8(bytes(at + 12, name_len)).unwrap();
            assert_eq!(name.pop(), Some('\0'));
            notes.push(Note {
                name,
                kind: self.word(at + 8, 4),
                content: bytes(content, content_len),
            });
            at = content + content_len.next_multiple_of(4);
        }
        notes
    }
}
