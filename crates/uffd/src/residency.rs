//! Which pages are there, found without touching them.
//!
//! `mincore(2)` answers on every kernel: for anonymous memory whether a page is mapped (an empty entry
//! and a write-protect marker both count as absent, a page being migrated as present), for a memory file
//! whether the page cache has it. A page that was swapped out looks absent too, so an absent page is only
//! known to be zero where no swap is in use.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::{PAGE_SIZE, sys};

/// Fills `pages` with one byte per page from host `address` on: 1 where the page is there.
///
/// # Errors
/// [`Error::Call`] where the range is not mapped.
///
/// # Panics
/// When `pages` has fewer bytes than `len` has pages.
pub fn residency(address: usize, len: usize, pages: &mut [u8]) -> Result<()> {
    sys::mincore(address, len, pages).map_err(|error| Error::call("mincore", address, len, error))?;
    for page in pages.iter_mut().take(len / PAGE_SIZE) {
        *page &= 1;
    }
    Ok(())
}

/// Answers which pages are certainly zero because they were never there.
///
/// It watches `/proc/swaps`: once swap has been in use (or cannot be looked up), nothing counts as
/// absent any more, since an absent page may be one that was swapped out.
#[derive(Debug)]
pub struct Residency {
    swaps: Option<File>,
    /// Set when swap was seen in use; never cleared, since pages may have gone out meanwhile.
    swap_seen: AtomicBool,
}

impl Residency {
    /// Starts watching for swap.
    pub fn new() -> Self {
        let residency = Residency {
            swaps: File::open("/proc/swaps").ok(),
            swap_seen: AtomicBool::new(false),
        };
        residency.swap_in_use();
        residency
    }

    /// Like [`residency`], but a page counts as there unless it is certainly absent.
    ///
    /// Returns whether any page is there.
    ///
    /// # Errors
    /// [`Error::Call`] where the range is not mapped.
    ///
    /// # Panics
    /// When `pages` has fewer bytes than `len` has pages.
    pub fn find(&self, address: usize, len: usize, pages: &mut [u8]) -> Result<bool> {
        residency(address, len, pages)?;
        let pages = &mut pages[..len / PAGE_SIZE];
        let present = pages.iter().map(|page| usize::from(*page)).sum::<usize>();
        // The look at the swaps comes after the look at the pages: a page that mincore calls absent was
        // swapped out before, so the swap is listed now, or was when the watching began.
        if present < pages.len() && self.swap_in_use() {
            pages.fill(1);
            return Ok(!pages.is_empty());
        }
        Ok(present > 0)
    }

    /// The runs of equal pages in what [`Residency::find`] filled in, each with whether it is there.
    pub fn runs(pages: &[u8]) -> impl Iterator<Item = (Range<usize>, bool)> + '_ {
        let mut at = 0;
        pages.chunk_by(|left, right| left == right).map(move |run| {
            let range = at..at + run.len();
            at = range.end;
            (range, run[0] != 0)
        })
    }

    /// Whether swap is, or since the beginning ever was, in use.
    pub fn swap_in_use(&self) -> bool {
        if !self.swap_seen.load(Ordering::Relaxed) && self.lists_swap() {
            self.swap_seen.store(true, Ordering::Relaxed);
        }
        self.swap_seen.load(Ordering::Relaxed)
    }

    /// Whether `/proc/swaps` has a line after its heading, or cannot be read.
    fn lists_swap(&self) -> bool {
        let mut text = [0; 512];
        match self.swaps.as_ref().map(|swaps| swaps.read_at(&mut text, 0)) {
            Some(Ok(len)) => text[..len].iter().filter(|byte| **byte == b'\n').count() != 1,
            Some(Err(_)) | None => true,
        }
    }
}

impl Default for Residency {
    fn default() -> Self {
        Self::new()
    }
}
