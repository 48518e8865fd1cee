//! Disks whose bytes are a file's bytes.
#![expect(
    unsafe_code,
    reason = "vectored I/O on guest memory, open file description locks"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use vm_memory::VolatileSlice;
use vm_memory::volatile_memory::PtrGuardMut;

use crate::block::{BlockBackend, GuestBuffers, SECTOR_BYTES};
use crate::error::{Error, Result};

/// Most buffers in one system call (`IOV_MAX` of Linux).
const MAX_BUFFERS: usize = 1024;
/// Bytes written at once where zeros have to be written.
const ZEROS_BYTES: usize = 64 << 10;

/// A raw image: a file or a block device, byte for byte.
///
/// The file is locked, advisory: many may have it for reading, or one for writing. The lock belongs to the
/// open file and ends when its last descriptor is closed.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    len_bytes: u64,
    read_only: bool,
}

impl RawFile {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// It cannot be opened, is in use, or its size is not one or more whole sectors.
    pub fn open(path: &Path, read_only: bool) -> Result<Self> {
        let failed = |source| Error::OpenDisk {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(failed)?;
        match lock(&file, read_only) {
            Ok(()) => {}
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::AGAIN | Errno::ACCESS)) => {
                return Err(Error::DiskInUse {
                    path: path.to_owned(),
                });
            }
            Err(error) => return Err(failed(error)),
        }
        // Unlike the metadata's length, this is the size of a block device, too.
        let len_bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if len_bytes == 0 || !len_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Error::DiskSize {
                path: path.to_owned(),
                len_bytes,
            });
        }
        Ok(Self {
            file,
            len_bytes,
            read_only,
        })
    }

    /// Returns the file.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
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
        match rustix::fs::fallocate(&self.file, flags | FallocateFlags::KEEP_SIZE, offset, len_bytes) {
            Ok(()) => Ok(Fallocated::Done),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => Ok(Fallocated::Unsupported),
            Err(error) => Err(error.into()),
        }
    }

    fn write_zero_bytes(&self, mut offset: u64, mut len_bytes: u64) -> io::Result<()> {
        let zeros = [0; ZEROS_BYTES];
        while len_bytes > 0 {
            let some = usize::try_from(len_bytes).map_or(ZEROS_BYTES, |len| len.min(ZEROS_BYTES));
            self.file
                .write_all_at(zeros.get(..some).unwrap_or(&zeros), offset)?;
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
        self.transfer(buffers, offset, |vectors, position| {
            let count = vectors.len().try_into().unwrap_or(libc::c_int::MAX);
            // SAFETY:
            // - `vectors` are `count` live entries, each a slice of guest memory whose guard `transfer` holds.
            // - guest memory is volatile bytes to everyone, so the kernel may write it at any time.
            unsafe { libc::preadv64(self.file.as_raw_fd(), vectors.as_ptr(), count, position) }
        })
    }

    fn write_at(&self, buffers: GuestBuffers<'_, '_>, offset: u64) -> io::Result<()> {
        self.transfer(buffers, offset, |vectors, position| {
            let count = vectors.len().try_into().unwrap_or(libc::c_int::MAX);
            // SAFETY:
            // - `vectors` are `count` live entries, each a slice of guest memory whose guard `transfer` holds.
            // - the kernel only reads them.
            unsafe { libc::pwritev64(self.file.as_raw_fd(), vectors.as_ptr(), count, position) }
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
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

/// Narrows a constant of `fcntl` to the type of the structure's field.
#[expect(clippy::cast_possible_truncation, reason = "the constants are 0, 1 and 2")]
const fn short(constant: libc::c_int) -> libc::c_short {
    constant as libc::c_short
}

/// Locks the whole file for reading or writing, without waiting.
fn lock(file: &File, read_only: bool) -> io::Result<()> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    // Start and length zero mean the whole file, however it grows; an OFD lock wants the process id to be zero.
    let region = libc::flock64 {
        l_type: short(kind),
        l_whence: short(libc::SEEK_SET),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY:
    // - `region` is the structure that this command reads, and outlives the call.
    // - the descriptor is open.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const region) };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
