//! Disks whose bytes are a file's bytes.
#![expect(unsafe_code, reason = "vectored I/O on guest memory")]

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use qcow2::{Access, Cache, FileStorage, Storage};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use vm_memory::VolatileSlice;
use vm_memory::volatile_memory::PtrGuardMut;

use crate::block::disk::open_error;
use crate::block::{BlockBackend, GuestBuffers, bounce};
use crate::error::Result;

/// Most buffers in one system call (`IOV_MAX` of Linux).
const MAX_BUFFERS: usize = 1024;
/// Bytes written at once where zeros have to be written.
const ZEROS_BYTES: usize = 64 << 10;

/// A raw image: a file or a block device, byte for byte.
///
/// Through the page cache the kernel moves the bytes between the file and guest memory; past it they go
/// through a buffer, for direct transfers would pin pages of guest memory.
#[derive(Debug)]
pub struct RawFile {
    storage: Arc<FileStorage>,
    direct: bool,
    len_bytes: u64,
    read_only: bool,
}

impl RawFile {
    /// Opens the image at `path`, locked against use by other programs: many may have it for reading, or one for
    /// writing.
    ///
    /// # Errors
    /// It cannot be opened or is in use.
    pub fn open(path: &Path, access: Access, cache: Cache) -> Result<Self> {
        let failed = |error| open_error(path, error);
        let storage = FileStorage::open(path, access, cache).map_err(failed)?;
        let len_bytes = storage.len().map_err(|error| failed(error.into()))?;
        Ok(Self {
            storage: Arc::new(storage),
            direct: cache == Cache::None,
            len_bytes,
            read_only: access == Access::ReadOnly,
        })
    }

    /// Returns the file.
    #[must_use]
    pub fn storage(&self) -> &Arc<FileStorage> {
        &self.storage
    }

    /// Moves all bytes of `buffers` with `call`, which moves some of them at a position.
    fn transfer(
        &self,
        buffers: GuestBuffers<'_, '_>,
        mut offset: u64,
        call: impl Fn(&[libc::iovec], i64) -> isize,
    ) -> io::Result<()> {
        let guards: Vec<PtrGuardMut> = buffers.iter().map(VolatileSlice::ptr_guard_mut).collect();
        let filled = guards.iter().filter(|guard| guard.len() > 0);
        let mut vectors: Vec<libc::iovec> = filled
            .map(|guard| libc::iovec {
                iov_base: guard.as_ptr().cast(),
                iov_len: guard.len(),
            })
            .collect();
        let mut rest = vectors.as_mut_slice();
        while !rest.is_empty() {
            let position = i64::try_from(offset).map_err(io::Error::other)?;
            let some = rest.get(..MAX_BUFFERS).unwrap_or(rest);
            let Ok(moved) = usize::try_from(call(some, position)) else {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            };
            if moved == 0 {
                // The file is shorter than it was when it was opened, or the medium is full.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += moved as u64;
            rest = advance(rest, moved);
        }
        Ok(())
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len_bytes: u64) -> io::Result<Fallocated> {
        match rustix::fs::fallocate(
            self.storage.file(),
            flags | FallocateFlags::KEEP_SIZE,
            offset,
            len_bytes,
        ) {
            Ok(()) => Ok(Fallocated::Done),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => Ok(Fallocated::Unsupported),
            Err(error) => Err(error.into()),
        }
    }

    fn write_zero_bytes(&self, mut offset: u64, mut len_bytes: u64) -> io::Result<()> {
        let zeros = [0; ZEROS_BYTES];
        while len_bytes > 0 {
            let some = usize::try_from(len_bytes).map_or(ZEROS_BYTES, |len| len.min(ZEROS_BYTES));
            self.storage
                .write_at(zeros.get(..some).unwrap_or(&zeros), offset)?;
            offset += some as u64;
            len_bytes -= some as u64;
        }
        Ok(())
    }
}

/// Whether a file system knew what was asked of it.
#[derive(PartialEq, Eq)]
enum Fallocated {
    Done,
    Unsupported,
}

impl BlockBackend for RawFile {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, buffers: GuestBuffers<'_, '_>, offset: u64) -> io::Result<()> {
        if self.direct {
            return bounce::read(buffers, offset, |piece, offset| {
                self.storage.read_at(piece, offset)
            });
        }
        let file = self.storage.file();
        self.transfer(buffers, offset, |vectors, position| {
            let count = vectors.len().try_into().unwrap_or(libc::c_int::MAX);
            // SAFETY:
            // - `vectors` are `count` live entries, each a slice of guest memory whose guard `transfer` holds.
            // - guest memory is volatile bytes to everyone, so the kernel may write it at any time.
            unsafe { libc::preadv64(file.as_raw_fd(), vectors.as_ptr(), count, position) }
        })
    }

    fn write_at(&self, buffers: GuestBuffers<'_, '_>, offset: u64) -> io::Result<()> {
        if self.direct {
            return bounce::write(buffers, offset, |piece, offset| {
                self.storage.write_at(piece, offset)
            });
        }
        let file = self.storage.file();
        self.transfer(buffers, offset, |vectors, position| {
            let count = vectors.len().try_into().unwrap_or(libc::c_int::MAX);
            // SAFETY:
            // - `vectors` are `count` live entries, each a slice of guest memory whose guard `transfer` holds.
            // - the kernel only reads them.
            unsafe { libc::pwritev64(file.as_raw_fd(), vectors.as_ptr(), count, position) }
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.storage.sync()
    }

    fn discard(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        // A file system that cannot forget keeps the content, which is as good as anything.
        self.fallocate(FallocateFlags::PUNCH_HOLE, offset, len_bytes)
            .map(|_| ())
    }

    fn write_zeroes(&self, offset: u64, len_bytes: u64, may_unmap: bool) -> io::Result<()> {
        let way = if may_unmap {
            FallocateFlags::PUNCH_HOLE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        match self.fallocate(way, offset, len_bytes)? {
            Fallocated::Done => Ok(()),
            Fallocated::Unsupported => self.write_zero_bytes(offset, len_bytes),
        }
    }
}

/// Returns what of `vectors` remains after `moved` bytes.
fn advance(mut vectors: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = vectors.first_mut() {
        if moved < first.iov_len {
            // Inside the slice that the entry stands for.
            first.iov_base = first.iov_base.wrapping_byte_add(moved);
            first.iov_len -= moved;
            break;
        }
        moved -= first.iov_len;
        vectors = vectors.split_first_mut().map_or(&mut [], |(_, others)| others);
    }
    vectors
}

#[cfg(test)]
mod tests;
