//! Locks against other programs, those that QEMU takes.
//!
//! QEMU's file driver gives each permission on an image a byte of the file (`block/file-posix.c`): whoever uses
//! a permission holds a shared lock on byte `100 + permission`, and whoever forbids others a permission one on
//! byte `200 + permission`. Nobody holds an exclusive lock. After taking its own, a program asks whether an
//! exclusive lock on the opposite bytes would be granted; if not, somebody stands in the way. The locks belong
//! to the open file description, so that two opens in one process exclude each other, too.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::storage::Access;

/// First byte of the permissions in use.
const USED_BASE: i64 = 100;
/// First byte of the permissions that others must not use.
const FORBIDDEN_BASE: i64 = 200;
/// Number of permissions that QEMU knows.
const PERMISSIONS: u32 = 4;

/// The content must be consistent while it is read.
const CONSISTENT_READ: u32 = 1 << 0;
/// The content is written.
const WRITE: u32 = 1 << 1;
/// The length is changed.
const RESIZE: u32 = 1 << 3;

/// Why a file could not be locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another program uses the file in a way that excludes ours.
    #[error("the file is in use by another program")]
    InUse,
    /// The operating system refused.
    #[error("cannot lock the file")]
    Io(#[from] io::Error),
}

/// Locks that belong to an open file description.
#[derive(Debug)]
pub enum Lock {}

impl Lock {
    /// Locks `file` for `access`: many may read, or one may write.
    ///
    /// The file must be open for reading. The locks end with the last descriptor of its open file description.
    ///
    /// # Errors
    /// Another program has it in a way that excludes `access`, or the system cannot lock it; `file` then holds
    /// no locks at all.
    pub fn acquire(file: &File, access: Access) -> Result<(), LockError> {
        let used = match access {
            Access::ReadOnly => CONSISTENT_READ,
            Access::ReadWrite => CONSISTENT_READ | WRITE | RESIZE,
        };
        // An image changes its metadata with every allocation, so that not even a reader bears a writer. A
        // writer says so, too: QEMU's tools otherwise read a raw file while it changes.
        let forbidden = match access {
            Access::ReadOnly => WRITE | RESIZE,
            Access::ReadWrite => CONSISTENT_READ | WRITE | RESIZE,
        };
        let result = take(file, used, forbidden).and_then(|()| examine(file, used, forbidden));
        if result.is_err() {
            // The first error is the one that matters.
            let _ = Self::release(file);
        }
        result
    }

    /// Lets those read that can do with an inconsistent image, such as `qemu-img info --force-share`.
    ///
    /// For a writer of qcow2: other readers are kept out by its permission to write, which they forbid.
    ///
    /// # Errors
    /// The operating system's.
    pub fn share_reading(file: &File) -> io::Result<()> {
        bytes_of(FORBIDDEN_BASE, CONSISTENT_READ).try_for_each(|byte| set(file, libc::F_UNLCK, byte))
    }

    /// Turns the locks of a writer into those of a reader.
    ///
    /// # Errors
    /// The operating system's.
    pub fn downgrade(file: &File) -> io::Result<()> {
        bytes_of(USED_BASE, WRITE | RESIZE).try_for_each(|byte| set(file, libc::F_UNLCK, byte))?;
        Self::share_reading(file)
    }

    /// Gives up all locks of the open file description.
    ///
    /// # Errors
    /// The operating system's.
    pub fn release(file: &File) -> io::Result<()> {
        let all = (1 << PERMISSIONS) - 1;
        for byte in bytes_of(USED_BASE, all).chain(bytes_of(FORBIDDEN_BASE, all)) {
            set(file, libc::F_UNLCK, byte)?;
        }
        Ok(())
    }
}

/// Returns the bytes that stand for the permissions of a mask.
fn bytes_of(base: i64, mask: u32) -> impl Iterator<Item = i64> {
    (0..PERMISSIONS)
        .filter(move |permission| mask & (1 << permission) != 0)
        .map(move |permission| base + i64::from(permission))
}

fn take(file: &File, used: u32, forbidden: u32) -> Result<(), LockError> {
    for byte in bytes_of(USED_BASE, used).chain(bytes_of(FORBIDDEN_BASE, forbidden)) {
        match set(file, libc::F_RDLCK, byte) {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                return Err(LockError::InUse);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Looks for others that forbid what we use or use what we forbid.
fn examine(file: &File, used: u32, forbidden: u32) -> Result<(), LockError> {
    for byte in bytes_of(FORBIDDEN_BASE, used).chain(bytes_of(USED_BASE, forbidden)) {
        let mut description = describe(libc::F_WRLCK, byte);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut description)).map_err(io::Error::from)?;
        if i32::from(description.l_type) != libc::F_UNLCK {
            return Err(LockError::InUse);
        }
    }
    Ok(())
}

fn set(file: &File, kind: i32, byte: i64) -> io::Result<()> {
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&describe(kind, byte))) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns the system's description of a lock of `kind` on one byte.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the constants of libc are wider than the field they are for"
)]
fn describe(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}
