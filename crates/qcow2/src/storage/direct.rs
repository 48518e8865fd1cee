//! Reads and writes of any position and length on a file opened with `O_DIRECT`.
//!
//! The kernel wants positions, lengths and buffers aligned. Every transfer goes through an aligned bounce
//! buffer; a write that does not begin and end on a boundary reads the units at its ends, changes them and
//! writes them back. Two such writes may share a unit though their bytes do not overlap, so an unaligned write
//! excludes every other write, while aligned ones go on side by side.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{PoisonError, RwLock};

use rustix::fs::{AtFlags, StatxFlags};

/// Alignment that every medium in use accepts, where the kernel does not tell (before Linux 6.1).
const FALLBACK_ALIGNMENT: usize = 4096;
/// Most bytes of one bounce buffer.
const BOUNCE_BYTES: usize = 1 << 20;

/// How a file wants to be read and written directly.
#[derive(Debug)]
pub(super) struct DirectFile {
    offset_alignment: usize,
    memory_alignment: usize,
    /// Held shared by aligned writes, exclusively by those that read, change and write back.
    writes: RwLock<()>,
}

/// A buffer whose bytes begin at an aligned address.
struct Bounce {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Bounce {
    fn new(len: usize, alignment: usize) -> Self {
        let bytes = vec![0; len + alignment];
        let address = bytes.as_ptr().addr();
        let start = address.next_multiple_of(alignment) - address;
        Self { bytes, start, len }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
            .get_mut(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

impl DirectFile {
    /// Asks the kernel how `file`, opened with `O_DIRECT`, wants its transfers aligned.
    pub(super) fn new(file: &File) -> Self {
        let known = |alignment: u32| {
            usize::try_from(alignment)
                .ok()
                .filter(|alignment| alignment.is_power_of_two() && *alignment <= BOUNCE_BYTES)
                .unwrap_or(FALLBACK_ALIGNMENT)
        };
        let answer = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
        Self {
            offset_alignment: known(answer.map_or(0, |stat| stat.stx_dio_offset_align)),
            memory_alignment: known(answer.map_or(0, |stat| stat.stx_dio_mem_align)),
            writes: RwLock::new(()),
        }
    }

    fn bounce(&self, len: usize) -> Bounce {
        Bounce::new(len, self.memory_alignment)
    }

    fn is_aligned(&self, offset: u64, len: usize) -> bool {
        let alignment = self.offset_alignment as u64;
        offset.is_multiple_of(alignment) && (len as u64).is_multiple_of(alignment)
    }

    /// Returns the aligned span around a range: its beginning, its length, and where the range begins in it.
    fn span(&self, offset: u64, len: usize) -> (u64, usize, usize) {
        let alignment = self.offset_alignment as u64;
        let start = offset - offset % alignment;
        // Less than the alignment, which is a usize.
        let head = usize::try_from(offset % alignment).unwrap_or(0);
        (start, (head + len).next_multiple_of(self.offset_alignment), head)
    }

    /// Fills an aligned buffer from an aligned offset on, with zeros beyond the end of the file.
    fn read_units(&self, file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match file.read_at(buf, offset) {
                // The file ends here; to ask for the rest from here on would not be aligned.
                Ok(moved) if moved == 0 || !moved.is_multiple_of(self.offset_alignment) => {
                    buf.get_mut(moved..).unwrap_or_default().fill(0);
                    return Ok(());
                }
                Ok(moved) => {
                    buf = buf.get_mut(moved..).unwrap_or_default();
                    offset = offset.saturating_add(moved as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Fills `buf` from `offset` on, with zeros beyond the end of the file.
    pub(super) fn read_at(&self, file: &File, buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        for piece in buf.chunks_mut(BOUNCE_BYTES) {
            let (start, len, head) = self.span(offset, piece.len());
            let mut bounce = self.bounce(len);
            let bytes = bounce.bytes_mut();
            self.read_units(file, bytes, start)?;
            if let Some(wanted) = bytes.get(head..head + piece.len()) {
                piece.copy_from_slice(wanted);
            }
            offset = offset.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Writes all of `buf` at `offset`.
    pub(super) fn write_at(&self, file: &File, buf: &[u8], mut offset: u64) -> io::Result<()> {
        for piece in buf.chunks(BOUNCE_BYTES) {
            if self.is_aligned(offset, piece.len()) {
                let _shared = self.writes.read().unwrap_or_else(PoisonError::into_inner);
                let mut bounce = self.bounce(piece.len());
                let bytes = bounce.bytes_mut();
                bytes.copy_from_slice(piece);
                file.write_all_at(bytes, offset)?;
            } else {
                self.write_unaligned(file, piece, offset)?;
            }
            offset = offset.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    fn write_unaligned(&self, file: &File, piece: &[u8], offset: u64) -> io::Result<()> {
        let _exclusive = self.writes.write().unwrap_or_else(PoisonError::into_inner);
        let len_before = file.metadata()?.len();
        let (start, len, head) = self.span(offset, piece.len());
        let mut bounce = self.bounce(len);
        let bytes = bounce.bytes_mut();
        self.read_units(file, bytes, start)?;
        if let Some(target) = bytes.get_mut(head..head + piece.len()) {
            target.copy_from_slice(piece);
        }
        file.write_all_at(bytes, start)?;
        // The last unit may have made a regular file longer than its last byte asks for.
        let wanted = len_before.max(offset + piece.len() as u64);
        if file.metadata()?.is_file() && start + len as u64 > wanted {
            file.set_len(wanted)?;
        }
        Ok(())
    }

    /// Cuts or grows the file while nothing is written.
    pub(super) fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        let _exclusive = self.writes.write().unwrap_or_else(PoisonError::into_inner);
        file.set_len(len)
    }
}
