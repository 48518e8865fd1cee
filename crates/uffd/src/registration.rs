//! A range of memory registered with a userfaultfd, kept alive for as long as it is.
//!
//! Offsets, not addresses, name the parts of a range, so nothing outside it can be reached. Long
//! operations go in pieces of [`PIECE`]: the kernel holds the address-space lock during one call, and
//! every page fault of the process waits for it.

#![expect(unsafe_code, reason = "page copies into memory that is known by address only")]

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use userfaultfd::RegisterMode;

use crate::PAGE_SIZE;
use crate::error::{Error, Result, to_io};
use crate::features::Features;
use crate::sys;
use crate::uffd::Uffd;

/// Bytes per call when a whole registration is unprotected or given back.
const PIECE: usize = 16 << 20;
/// Attempts at a call that answers `EAGAIN`; the address space is being changed by another thread.
const ATTEMPTS: u32 = 10_000;

/// Memory that is mapped for as long as the value lives.
///
/// # Safety
/// For the whole life of the value, `start()..start() + len_bytes()` is one mapping (or several in a
/// row) of this process, page-aligned at both ends, never unmapped or moved, and its bytes may be
/// changed by others at any time: no Rust reference to them exists.
pub unsafe trait MappedRange: Send + Sync {
    /// First byte.
    fn start(&self) -> NonNull<u8>;
    /// Length in bytes, a multiple of the page size.
    fn len_bytes(&self) -> usize;
}

/// Which accesses of a registered range raise events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(RegisterMode);

impl Mode {
    /// Writes to protected pages.
    pub const WRITE_PROTECT: Mode = Mode(RegisterMode::WRITE_PROTECT);
    /// Accesses to pages that are not there.
    pub const MISSING: Mode = Mode(RegisterMode::MISSING);
    /// Both.
    pub const MISSING_AND_WRITE_PROTECT: Mode =
        Mode(RegisterMode::MISSING.union(RegisterMode::WRITE_PROTECT));
}

/// A registered range. Dropping it lifts every protection, wakes every waiter and unregisters it.
#[derive(Debug)]
pub struct Registration<M: MappedRange> {
    uffd: Arc<Uffd>,
    range: M,
    mode: Mode,
    /// Whether the kernel still knows the range; cleared once, by `unregister`.
    active: AtomicBool,
}

impl<M: MappedRange> Registration<M> {
    /// Registers all of `range`.
    ///
    /// # Errors
    /// [`Error::Call`] where the kernel refuses: memory mapped from an ordinary file, or already
    /// registered with another userfaultfd.
    pub fn new(uffd: &Arc<Uffd>, range: M, mode: Mode) -> Result<Self> {
        let (address, len) = (range.start().as_ptr(), range.len_bytes());
        uffd.inner()
            .register_with_mode(address.cast(), len, mode.0)
            .map_err(|error| Error::call("UFFDIO_REGISTER", address as usize, len, to_io(error)))?;
        Ok(Registration {
            uffd: Arc::clone(uffd),
            range,
            mode,
            active: AtomicBool::new(true),
        })
    }

    /// The memory that is registered.
    pub fn range(&self) -> &M {
        &self.range
    }

    /// Offset of a host address within the range, if it lies inside.
    pub fn offset_of(&self, address: usize) -> Option<usize> {
        address
            .checked_sub(self.start())
            .filter(|offset| *offset < self.range.len_bytes())
    }

    /// Makes writes to `bytes` (offsets into the range) fault.
    ///
    /// Pages that are not there are covered where the kernel and the open features allow it
    /// ([`Features::WP_UNPOPULATED`] for anonymous memory), else silently skipped.
    ///
    /// # Errors
    /// [`Error::Range`] or [`Error::Call`].
    pub fn write_protect(&self, bytes: Range<usize>) -> Result<()> {
        let (address, len) = self.locate(&bytes)?;
        retry("UFFDIO_WRITEPROTECT", address, len, || {
            self.uffd.inner().write_protect(address as *mut libc::c_void, len)
        })
    }

    /// Lets writes to `bytes` pass again, and wakes those who wait there if `wake` says so.
    ///
    /// # Errors
    /// [`Error::Range`] or [`Error::Call`].
    pub fn unprotect(&self, bytes: Range<usize>, wake: bool) -> Result<()> {
        let (address, len) = self.locate(&bytes)?;
        let lifted = retry("UFFDIO_WRITEPROTECT (lift)", address, len, || {
            self.uffd
                .inner()
                .remove_write_protection(address as *mut libc::c_void, len, wake)
        });
        lifted.or_else(|error| self.unless_given_back(error, bytes))
    }

    /// Like [`Registration::unprotect`] with a wake-up, but does not repeat: `false` means that the kernel
    /// wants its events read first. For the thread that reads them.
    ///
    /// # Errors
    /// [`Error::Range`] or [`Error::Call`].
    pub fn try_unprotect(&self, bytes: Range<usize>) -> Result<bool> {
        let (address, len) = self.locate(&bytes)?;
        match self
            .uffd
            .inner()
            .remove_write_protection(address as *mut libc::c_void, len, true)
        {
            Ok(()) => Ok(true),
            Err(error) => match to_io(error) {
                again if is_again(&again) => Ok(false),
                other => {
                    let error = Error::call("UFFDIO_WRITEPROTECT (lift)", address, len, other);
                    self.unless_given_back(error, bytes).map(|()| true)
                }
            },
        }
    }

    /// Lifts the protection of the whole range, in pieces, and wakes everyone.
    ///
    /// # Errors
    /// [`Error::Call`] for the first piece that fails; the others are still lifted.
    pub fn unprotect_all(&self) -> Result<()> {
        self.pieces()
            .map(|piece| self.unprotect(piece, true))
            .fold(Ok(()), Result::and)
    }

    /// Wakes those who wait for a page of `bytes`.
    ///
    /// # Errors
    /// [`Error::Range`] or [`Error::Call`].
    pub fn wake(&self, bytes: Range<usize>) -> Result<()> {
        let (address, len) = self.locate(&bytes)?;
        retry("UFFDIO_WAKE", address, len, || {
            self.uffd.inner().wake(address as *mut libc::c_void, len)
        })
    }

    /// Fills missing pages from `plain` and wakes those who wait for them.
    ///
    /// Pages that are there already keep their content. `plain` is a whole number of pages.
    ///
    /// # Errors
    /// [`Error::Range`] or [`Error::Call`].
    pub fn copy(&self, offset: usize, plain: &[u8]) -> Result<()> {
        let (address, len) = self.locate(&(offset..offset.saturating_add(plain.len())))?;
        self.fill("UFFDIO_COPY", address, len, |done| {
            let source = plain[done..].as_ptr().cast();
            // SAFETY:
            // - `source` is valid for the `len - done` bytes left of `plain`.
            // - The destination lies inside the range that `self` keeps mapped (`locate`), whose bytes
            //   may change at any time by the contract of `MappedRange`.
            unsafe {
                self.uffd
                    .inner()
                    .copy(source, (address + done) as *mut libc::c_void, len - done, true)
            }
        })
    }

    /// Fills missing pages with zeros and wakes those who wait for them.
    ///
    /// Pages that are there already keep their content.
    ///
    /// # Errors
    /// [`Error::Range`] or [`Error::Call`].
    pub fn zero(&self, bytes: Range<usize>) -> Result<()> {
        let (address, len) = self.locate(&bytes)?;
        self.fill("UFFDIO_ZEROPAGE", address, len, |done| {
            // SAFETY: the destination lies inside the range that `self` keeps mapped (`locate`), whose
            // bytes may change at any time by the contract of `MappedRange`.
            unsafe {
                self.uffd
                    .inner()
                    .zeropage((address + done) as *mut libc::c_void, len - done, true)
            }
        })
    }

    /// Maps every page of `bytes` as a read of it would, without reading.
    ///
    /// # Errors
    /// [`Error::Range`], or [`Error::Call`] on kernels before 5.14.
    pub fn populate_read(&self, bytes: Range<usize>) -> Result<()> {
        let (address, len) = self.locate(&bytes)?;
        sys::populate_read(address, len)
            .map_err(|error| Error::call("MADV_POPULATE_READ", address, len, error))
    }

    /// Gives the range back: protection lifted, waiters woken, the userfaultfd no longer concerned.
    ///
    /// Happens once; later calls and the drop do nothing. Goes on past a piece that fails. Lifting the
    /// protection of what has been given back, as a late fault may make another thread do, succeeds.
    ///
    /// # Errors
    /// [`Error::Call`] for the first piece that failed.
    pub fn unregister(&self) -> Result<()> {
        if !self.active.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        // Unregistering lifts protection itself since Linux 6.0. The nearest visible mark of a kernel
        // that new is this feature of 6.4.
        let kernel_lifts = self.uffd.supported().contains(Features::WP_UNPOPULATED);
        let mut outcome = Ok(());
        for piece in self.pieces() {
            if !kernel_lifts && self.mode != Mode::MISSING {
                outcome = outcome.and(self.unprotect(piece.clone(), true));
            }
            let (address, len) = (self.start() + piece.start, piece.len());
            outcome = outcome.and(retry("UFFDIO_UNREGISTER", address, len, || {
                self.uffd.inner().unregister(address as *mut libc::c_void, len)
            }));
            // The kernel wakes those who wait for missing pages, but not those who wait to write.
            outcome = outcome.and(self.wake(piece));
        }
        outcome
    }

    /// A lift may fail only while the range is registered. Giving it back lifts by itself, but a fault that
    /// was reported before still waits to be woken.
    fn unless_given_back(&self, error: Error, bytes: Range<usize>) -> Result<()> {
        if self.active.load(Ordering::Acquire) {
            Err(error)
        } else {
            self.wake(bytes)
        }
    }

    fn start(&self) -> usize {
        self.range.start().as_ptr() as usize
    }

    fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<M> {
        let len = self.range.len_bytes();
        (0..len)
            .step_by(PIECE)
            .map(move |start| start..len.min(start + PIECE))
    }

    /// Checks `bytes` and turns them into a host address and a length.
    fn locate(&self, bytes: &Range<usize>) -> Result<(usize, usize)> {
        let len = self.range.len_bytes();
        let aligned = bytes.start.is_multiple_of(PAGE_SIZE) && bytes.end.is_multiple_of(PAGE_SIZE);
        if !aligned || bytes.start >= bytes.end || bytes.end > len {
            return Err(Error::Range {
                start: bytes.start,
                end: bytes.end,
                len,
            });
        }
        Ok((self.start() + bytes.start, bytes.len()))
    }

    /// Repeats a page-filling call until `len` bytes are there; a page that is there already is passed.
    fn fill(
        &self,
        operation: &'static str,
        address: usize,
        len: usize,
        mut call: impl FnMut(usize) -> userfaultfd::Result<usize>,
    ) -> Result<()> {
        let (mut done, mut attempts) = (0, 0);
        while done < len {
            done += match call(done) {
                Ok(filled) => filled,
                // On EAGAIN the crate passes on the byte count, or a negative error number as one.
                Err(userfaultfd::Error::PartiallyCopied(filled)) if filled <= len - done => filled,
                Err(userfaultfd::Error::PartiallyCopied(_)) => 0,
                Err(error) => match to_io(error) {
                    exists if exists.raw_os_error() == Some(libc::EEXIST) => {
                        self.wake(address - self.start() + done..address - self.start() + done + PAGE_SIZE)?;
                        PAGE_SIZE
                    }
                    again if is_again(&again) => 0,
                    other => return Err(Error::call(operation, address + done, len - done, other)),
                },
            };
            attempts += 1;
            if attempts > ATTEMPTS && done == 0 {
                let source = io::Error::from_raw_os_error(libc::EAGAIN);
                return Err(Error::call(operation, address, len, source));
            }
        }
        Ok(())
    }
}

impl<M: MappedRange> Drop for Registration<M> {
    fn drop(&mut self) {
        // The only failure left is a mapping that is gone, and then there is nothing to give back.
        let _ = self.unregister();
    }
}

fn is_again(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAGAIN)
}

/// Repeats a call for as long as the kernel answers `EAGAIN`: another thread is changing the address
/// space, or has an event to be read first. Bounded, so that an unread event cannot hang the caller.
fn retry(
    operation: &'static str,
    address: usize,
    len: usize,
    mut call: impl FnMut() -> userfaultfd::Result<()>,
) -> Result<()> {
    let mut attempt = 0;
    loop {
        let error = match call() {
            Ok(()) => return Ok(()),
            Err(error) => to_io(error),
        };
        attempt += 1;
        if !is_again(&error) || attempt == ATTEMPTS {
            return Err(Error::call(operation, address, len, error));
        }
        thread::yield_now();
    }
}
