//! The kernel calls that no crate wraps: descriptor creation, `UFFDIO_API`, `PAGEMAP_SCAN`, `mincore`
//! and `madvise` by address.
//!
//! Every number is written out and asserted at compile time against the kernel's encoding formula.
//! The functions are safe: each hands the kernel either plain values or memory that it borrows.
#![expect(unsafe_code, reason = "system calls that no safe wrapper covers")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `UFFDIO_API` (`_IOWR(0xAA, 0x3F, struct uffdio_api)`).
const UFFDIO_API: u64 = 0xC018_AA3F;
/// `USERFAULTFD_IOC_NEW` (`_IO(0xAA, 0)`), on `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: u64 = 0xAA00;
/// `PAGEMAP_SCAN` (`_IOWR('f', 16, struct pm_scan_arg)`), on `/proc/self/pagemap`.
const PAGEMAP_SCAN: u64 = 0xC060_6610;
/// The protocol number that `UFFDIO_API` asks for.
const UFFD_API: u64 = 0xAA;
/// `MADV_POPULATE_READ` (Linux 5.14).
const MADV_POPULATE_READ: libc::c_int = 22;

const IOC_NONE: u64 = 0;
const IOC_READ_WRITE: u64 = 3;

const fn ioc(direction: u64, kind: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | kind << 8 | number
}

const _: () = assert!(UFFDIO_API == ioc(IOC_READ_WRITE, 0xAA, 0x3F, size_of::<UffdioApi>()));
const _: () = assert!(USERFAULTFD_IOC_NEW == ioc(IOC_NONE, 0xAA, 0, 0));
const _: () = assert!(PAGEMAP_SCAN == ioc(IOC_READ_WRITE, b'f' as u64, 16, size_of::<PmScanArg>()));
const _: () = assert!(size_of::<PageRegion>() == 24);

/// `struct uffdio_api`.
#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct page_region` of `PAGEMAP_SCAN`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PageRegion {
    pub start: u64,
    pub end: u64,
    pub categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// What to look for in one `PAGEMAP_SCAN` call.
pub(crate) struct ScanRequest {
    pub start: u64,
    pub end: u64,
    pub flags: u64,
    pub inverted: u64,
    pub required: u64,
    pub any_of: u64,
    pub reported: u64,
}

/// Opens a non-blocking userfaultfd that takes faults from user and kernel code.
///
/// The device comes first because file permissions can grant it to a process without capabilities.
pub(crate) fn open_userfaultfd() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let from_device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd")
        .and_then(|device| {
            // SAFETY: `USERFAULTFD_IOC_NEW` takes an integer argument and touches no memory of ours.
            let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
            owned(fd.into())
        });
    from_device.or_else(|_| {
        // SAFETY: `userfaultfd(2)` takes an integer argument and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        owned(fd)
    })
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: the kernel has just returned this descriptor; nothing else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `UFFDIO_API`: enables `features` and answers with all that the kernel supports.
pub(crate) fn uffdio_api(fd: BorrowedFd<'_>, features: u64) -> io::Result<u64> {
    let mut argument = UffdioApi {
        api: UFFD_API,
        features,
        ioctls: 0,
    };
    // SAFETY: `argument` is a `repr(C)` struct of the size encoded in UFFDIO_API and outlives the call.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut argument) };
    if answer == 0 {
        Ok(argument.features)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `PAGEMAP_SCAN`: fills `found` and returns how many entries it holds and where the walk ended.
pub(crate) fn pagemap_scan(
    pagemap: BorrowedFd<'_>,
    request: &ScanRequest,
    found: &mut [PageRegion],
) -> io::Result<(usize, u64)> {
    let mut argument = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        flags: request.flags,
        start: request.start,
        end: request.end,
        walk_end: 0,
        vec: found.as_mut_ptr() as u64,
        vec_len: found.len() as u64,
        max_pages: 0,
        category_inverted: request.inverted,
        category_mask: request.required,
        category_anyof_mask: request.any_of,
        return_mask: request.reported,
    };
    // SAFETY:
    // - `argument` is a `repr(C)` struct of the size encoded in PAGEMAP_SCAN and outlives the call.
    // - The kernel writes at most `vec_len` entries at `vec`: exactly the slice borrowed mutably here,
    //   whose elements are plain integers, valid for any bit pattern.
    let answer = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
    match usize::try_from(answer) {
        Ok(count) => Ok((count, argument.walk_end)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// `mincore(2)`: bit 0 of `pages[i]` tells whether page `i` from `address` on is there.
pub(crate) fn mincore(address: usize, len: usize, pages: &mut [u8]) -> io::Result<()> {
    assert!(
        pages.len() >= len.div_ceil(crate::PAGE_SIZE),
        "mincore needs a byte per page"
    );
    // SAFETY: the kernel only inspects the range (an unmapped one is an error), and writes one byte
    // per page into `pages`, which the assertion shows to be long enough.
    let answer = unsafe { libc::mincore(address as *mut libc::c_void, len, pages.as_mut_ptr()) };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `madvise(MADV_POPULATE_READ)`: maps every page as a read of it would.
pub(crate) fn populate_read(address: usize, len: usize) -> io::Result<()> {
    // SAFETY: populating changes no byte that anyone can observe; an unmapped range is an error.
    let answer = unsafe { libc::madvise(address as *mut libc::c_void, len, MADV_POPULATE_READ) };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
