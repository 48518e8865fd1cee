//! Discards straight to the host kernel.
#![expect(unsafe_code, reason = "madvise on guest memory")]

use std::io;

use rustix::mm::Advice;
use rustix::param::page_size;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::Discard;

/// Gives memory back with `madvise`: `MADV_DONTNEED` for private memory, `MADV_REMOVE` for shared.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostDiscard;

impl Discard for HostDiscard {
    fn discard(&self, memory: &GuestMemoryMmap, gpa: u64, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut address = GuestAddress(gpa);
        for slice in memory.get_slices(address, len) {
            let slice = slice.map_err(io::Error::other)?;
            let region = memory.find_region(address);
            let shared = region.is_some_and(|region| region.flags() & libc::MAP_SHARED != 0);
            discard_slice(&slice, shared)?;
            address = address.unchecked_add(slice.len() as u64);
        }
        Ok(())
    }
}

fn discard_slice(slice: &VolatileSlice<'_>, shared: bool) -> io::Result<()> {
    let guard = slice.ptr_guard_mut();
    let page = page_size();
    let skipped = guard.as_ptr().align_offset(page);
    let Some(rest) = guard.len().checked_sub(skipped) else {
        return Ok(());
    };
    let len = rest - rest % page;
    if len == 0 {
        return Ok(());
    }
    let advice = if shared {
        Advice::LinuxRemove
    } else {
        Advice::LinuxDontNeed
    };
    // The sum stays inside the slice.
    let start = guard.as_ptr().wrapping_add(skipped);
    // SAFETY:
    // - `start..start + len` are whole pages inside the slice, which borrows the mapping of guest memory.
    // - guest memory is only ever accessed as volatile bytes that the guest may change at any time, so pages
    //   that become zero break no promise.
    unsafe { rustix::mm::madvise(start.cast(), len, advice) }?;
    Ok(())
}
