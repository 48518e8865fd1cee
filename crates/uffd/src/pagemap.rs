//! `PAGEMAP_SCAN` (Linux 6.7): the pages of a range by category, in runs, by the page tables' own walk.
//!
//! It sees every page in one call where `/proc/self/pagemap` needs eight bytes read per page, and it can
//! fetch and clear the written state of memory tracked with [`crate::Features::WP_ASYNC`] at once.

use std::fs::File;
use std::ops::{BitOr, Range};
use std::os::fd::AsFd;

use crate::error::{Error, Result};
use crate::sys::{self, PageRegion, ScanRequest};

/// Flag of `pm_scan_arg`: protect the pages that are reported.
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
/// Flag of `pm_scan_arg`: fail unless all memory is registered with `WP_ASYNC`.
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
/// Runs fetched per call.
const BATCH: usize = 512;

/// A set of page categories, as `PAGEMAP_SCAN` numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PageCategories(u64);

impl PageCategories {
    /// No category.
    pub const NONE: PageCategories = PageCategories(0);
    /// The memory is registered for asynchronous write protection.
    pub const WRITE_PROTECT_ALLOWED: PageCategories = PageCategories(1 << 0);
    /// The page was written since it was last protected.
    pub const WRITTEN: PageCategories = PageCategories(1 << 1);
    /// The page belongs to a file or to shared memory.
    pub const FILE: PageCategories = PageCategories(1 << 2);
    /// The page is mapped.
    pub const PRESENT: PageCategories = PageCategories(1 << 3);
    /// The page is swapped out, being migrated, or stands for a write-protect marker.
    pub const SWAPPED: PageCategories = PageCategories(1 << 4);
    /// The page is the shared zero page.
    pub const ZERO_PAGE: PageCategories = PageCategories(1 << 5);
    /// The page is part of a mapped huge page.
    pub const HUGE: PageCategories = PageCategories(1 << 6);

    /// Whether every category of `other` is in this set.
    pub const fn contains(self, other: PageCategories) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for PageCategories {
    type Output = PageCategories;

    fn bitor(self, other: PageCategories) -> PageCategories {
        PageCategories(self.0 | other.0)
    }
}

/// A run of pages of the same categories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageExtent {
    /// Host addresses.
    pub addresses: Range<usize>,
    /// The categories that were asked to be reported and apply.
    pub categories: PageCategories,
}

/// An open `/proc/self/pagemap`.
#[derive(Debug)]
pub struct PagemapScanner(File);

impl PagemapScanner {
    /// Opens the page map of this process.
    ///
    /// # Errors
    /// [`Error::Call`] where `/proc` is not mounted or the kernel lacks `PAGEMAP_SCAN`.
    pub fn open() -> Result<Self> {
        let call = |error| Error::call("PAGEMAP_SCAN", 0, 0, error);
        let scanner = PagemapScanner(File::open("/proc/self/pagemap").map_err(call)?);
        let nothing = ScanRequest {
            start: 0,
            end: 0,
            flags: 0,
            inverted: 0,
            required: 0,
            any_of: 0,
            reported: 0,
        };
        sys::pagemap_scan(scanner.0.as_fd(), &nothing, &mut []).map_err(call)?;
        Ok(scanner)
    }

    /// Visits the runs of pages in `addresses` that have any category of `wanted`, in ascending order.
    ///
    /// # Errors
    /// [`Error::Call`] where the kernel refuses the range.
    pub fn scan(
        &self,
        addresses: Range<usize>,
        wanted: PageCategories,
        visit: impl FnMut(PageExtent),
    ) -> Result<()> {
        self.walk(addresses, wanted, 0, visit)
    }

    /// Visits the runs of pages written since the last call and protects them again, atomically.
    ///
    /// The memory must be registered for write-protect faults with [`crate::Features::WP_ASYNC`].
    ///
    /// # Errors
    /// [`Error::Call`] where it is not, or where the kernel refuses the range.
    pub fn take_written(&self, addresses: Range<usize>, visit: impl FnMut(PageExtent)) -> Result<()> {
        self.walk(
            addresses,
            PageCategories::WRITTEN,
            PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
            visit,
        )
    }

    fn walk(
        &self,
        addresses: Range<usize>,
        wanted: PageCategories,
        flags: u64,
        mut visit: impl FnMut(PageExtent),
    ) -> Result<()> {
        let mut found = vec![PageRegion::default(); BATCH];
        let (mut start, end) = (addresses.start as u64, addresses.end as u64);
        while start < end {
            let request = ScanRequest {
                start,
                end,
                flags,
                inverted: 0,
                required: 0,
                any_of: wanted.0,
                reported: wanted.0,
            };
            let (count, walk_end) = sys::pagemap_scan(self.0.as_fd(), &request, &mut found)
                .map_err(|error| Error::call("PAGEMAP_SCAN", addresses.start, addresses.len(), error))?;
            for run in &found[..count] {
                visit(PageExtent {
                    addresses: to_address(run.start)..to_address(run.end),
                    categories: PageCategories(run.categories),
                });
            }
            start = walk_end;
        }
        Ok(())
    }
}

/// Addresses of this process fit `usize` by definition.
#[expect(clippy::cast_possible_truncation, reason = "an address of this process")]
fn to_address(address: u64) -> usize {
    address as usize
}
