//! Counts memory and work, so that what has no bound is seen.
#![expect(unsafe_code, reason = "an allocator is unsafe to be one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use qcow2::{MemoryStorage, Storage};

/// Most bytes that one image may make us hold at a time.
const MAX_BYTES: usize = 256 << 20;
/// Most calls of the storage for one operation on one image.
const MAX_CALLS: u64 = 2_000_000;
/// Most bytes moved for one operation on one image.
const MAX_MOVED_BYTES: u64 = 4 << 30;

/// The system's allocator, which counts what each thread holds.
struct Metered;

#[global_allocator]
static ALLOCATOR: Metered = Metered;

thread_local! {
    /// Bytes that the thread allocated and has not freed; below zero where it freed another's.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// The most that it held since it was last asked.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let held = HELD.get().wrapping_add(bytes);
    HELD.set(held);
    PEAK.set(PEAK.get().max(held));
}

// SAFETY:
// - Every call goes to the system's allocator with the caller's own arguments, so that its contract is met.
// - Counting neither allocates nor unwinds: the thread's counters need no initialisation and no destructor.
unsafe impl GlobalAlloc for Metered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's layout, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's layout, passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller's pointer came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Does something and asserts that it did not hold much memory meanwhile.
pub fn bounded<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    let held = usize::try_from(PEAK.get() - before).unwrap_or(0);
    assert!(held <= MAX_BYTES, "{what} held {held} bytes");
    result
}

/// A storage in memory that stops the test where an operation reads or writes without end.
#[derive(Debug)]
pub struct Bounded {
    pub inner: MemoryStorage,
    calls: AtomicU64,
    moved: AtomicU64,
}

impl Bounded {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            inner: MemoryStorage::from_bytes(bytes),
            calls: AtomicU64::new(0),
            moved: AtomicU64::new(0),
        }
    }

    fn count(&self, len: usize) {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        let moved = self.moved.fetch_add(len as u64, Ordering::Relaxed);
        assert!(
            calls < MAX_CALLS && moved < MAX_MOVED_BYTES,
            "work without bound: {calls} calls, {moved} bytes"
        );
    }
}

impl Storage for Bounded {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.count(buf.len());
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.count(buf.len());
        // A write far behind the end would only fill this machine's memory with zeros.
        if offset > 1 << 30 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inner.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > 1 << 30 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inner.set_len(len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.punch_hole(offset, len)
    }
}
