//! Event descriptors in the terms of the standard library.
#![expect(unsafe_code, reason = "the event type has no safe way to lend its descriptor")]

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// Lends an event's descriptor, to be watched or polled.
#[must_use]
pub fn descriptor(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY:
    // - an `EventFd` owns an open descriptor until it is dropped.
    // - the result borrows the event, so it does not outlive it.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Makes an event unready; one that another thread has read meanwhile is unready already.
pub fn clear(event: &EventFd) {
    let _ = event.read();
}
