//! Registrations against the real kernel, with threads that fault from user and from kernel code.

#![expect(unsafe_code, reason = "maps memory and reads it by address")]

use std::io::{Seek, Write};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use uffd::{
    Event, FaultBatch, FaultKind, Features, MappedRange, Mode, PAGE_SIZE, PageCategories, PagemapScanner,
    Registration, Residency, Uffd, residency,
};

const PAGES: usize = 64;
const LEN: usize = PAGES * PAGE_SIZE;

/// Private anonymous memory, unmapped on drop.
#[derive(Clone)]
struct Memory(Arc<Mapping>);

struct Mapping(NonNull<u8>);

// SAFETY: the memory is only reached through atomics and system calls.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

// SAFETY: the mapping is page-aligned, lives until the last clone is dropped, and is never borrowed.
unsafe impl MappedRange for Memory {
    fn start(&self) -> NonNull<u8> {
        self.0.0
    }

    fn len_bytes(&self) -> usize {
        LEN
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `Memory::new` made, and nobody knows it any more.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), LEN) };
    }
}

impl Memory {
    fn new() -> Self {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice concerns nobody.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), LEN, protection, MapFlags::PRIVATE) };
        Memory(Arc::new(Mapping(NonNull::new(start.unwrap().cast()).unwrap())))
    }

    /// The first eight bytes of a page.
    fn word(&self, page: usize) -> &AtomicU64 {
        assert!(page < PAGES);
        // SAFETY: the offset is below the length asserted above.
        let address = unsafe { self.0.0.as_ptr().add(page * PAGE_SIZE) };
        // SAFETY: the address is page-aligned, mapped as long as `self`, and only used as atomics.
        unsafe { AtomicU64::from_ptr(address.cast()) }
    }

    fn address(&self, page: usize) -> usize {
        self.0.0.as_ptr() as usize + page * PAGE_SIZE
    }

    fn populate(&self) {
        for page in 0..PAGES {
            self.word(page).store(page as u64, Ordering::Relaxed);
        }
    }
}

/// A userfaultfd, or a loud skip.
fn open(features: Features) -> Option<Arc<Uffd>> {
    match Uffd::open(features) {
        Ok(uffd) => Some(Arc::new(uffd)),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            None
        }
    }
}

/// Waits for events and returns them.
fn next_events(uffd: &Uffd) -> Vec<Event> {
    let mut batch = FaultBatch::new(8);
    loop {
        poll(&mut [PollFd::new(uffd, PollFlags::IN)], None).unwrap();
        let events = uffd.read_events(&mut batch).unwrap();
        if !events.is_empty() {
            return events.to_vec();
        }
    }
}

fn page(index: usize) -> std::ops::Range<usize> {
    index * PAGE_SIZE..(index + 1) * PAGE_SIZE
}

#[test]
fn a_write_to_protected_memory_waits_until_it_is_let_go() {
    let Some(uffd) = open(Features::PAGEFAULT_FLAG_WP) else {
        return;
    };
    let memory = Memory::new();
    memory.populate();
    let registration = Registration::new(&uffd, memory.clone(), Mode::WRITE_PROTECT).unwrap();
    registration.write_protect(0..LEN).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| memory.word(5).store(500, Ordering::Relaxed));
        let expected = Event::Fault {
            address: memory.address(5),
            kind: FaultKind::WriteProtect,
            write: true,
        };
        assert_eq!(next_events(&uffd), [expected]);
        assert_eq!(memory.word(5).load(Ordering::Relaxed), 5, "the write waits");
        registration.unprotect(page(5), true).unwrap();
    });
    assert_eq!(memory.word(5).load(Ordering::Relaxed), 500);
}

#[test]
fn a_write_from_kernel_code_waits_too() {
    let Some(uffd) = open(Features::PAGEFAULT_FLAG_WP) else {
        return;
    };
    let memory = Memory::new();
    memory.populate();
    let mut file = tempfile();
    file.write_all(&777u64.to_ne_bytes()).unwrap();
    file.rewind().unwrap();
    let registration = Registration::new(&uffd, memory.clone(), Mode::WRITE_PROTECT).unwrap();
    registration.write_protect(0..LEN).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: eight bytes of a mapping that outlives the call, reached elsewhere as atomics only.
            let target = unsafe { std::slice::from_raw_parts_mut(memory.address(3) as *mut u8, 8) };
            assert_eq!(rustix::io::pread(&file, target, 0), Ok(8));
        });
        assert!(matches!(
            next_events(&uffd)[..],
            [Event::Fault {
                kind: FaultKind::WriteProtect,
                ..
            }]
        ));
        assert_eq!(
            memory.word(3).load(Ordering::Relaxed),
            3,
            "the kernel's write waits"
        );
        registration.unprotect(page(3), true).unwrap();
    });
    assert_eq!(memory.word(3).load(Ordering::Relaxed), 777);
}

fn tempfile() -> std::fs::File {
    let file = rustix::fs::memfd_create("source", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    std::fs::File::from(file)
}

#[test]
fn protection_covers_pages_that_are_not_there_if_the_feature_says_so() {
    let Some(uffd) = open(Features::PAGEFAULT_FLAG_WP | Features::WP_UNPOPULATED) else {
        return;
    };
    let memory = Memory::new();
    let registration = Registration::new(&uffd, memory.clone(), Mode::WRITE_PROTECT).unwrap();
    registration.write_protect(0..LEN).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| memory.word(9).store(9, Ordering::Relaxed));
        assert!(matches!(
            next_events(&uffd)[..],
            [Event::Fault { write: true, .. }]
        ));
        registration.unprotect(page(9), true).unwrap();
    });
}

#[test]
fn dropping_a_registration_lets_every_waiter_go() {
    let Some(uffd) = open(Features::PAGEFAULT_FLAG_WP) else {
        return;
    };
    let memory = Memory::new();
    memory.populate();
    let registration = Registration::new(&uffd, memory.clone(), Mode::WRITE_PROTECT).unwrap();
    registration.write_protect(0..LEN).unwrap();
    thread::scope(|scope| {
        for index in [1, 20, 63] {
            let memory = &memory;
            scope.spawn(move || memory.word(index).store(1000, Ordering::Relaxed));
        }
        let mut waiting = 0;
        while waiting < 3 {
            waiting += next_events(&uffd).len();
        }
        drop(registration);
    });
    assert_eq!(memory.word(63).load(Ordering::Relaxed), 1000);
    // Free again: another userfaultfd may have it.
    let other = open(Features::PAGEFAULT_FLAG_WP).unwrap();
    Registration::new(&other, memory, Mode::WRITE_PROTECT).unwrap();
}

#[test]
fn missing_pages_are_filled_by_copy_and_by_zeros() {
    let Some(uffd) = open(Features::NONE) else { return };
    let memory = Memory::new();
    let registration = Registration::new(&uffd, memory.clone(), Mode::MISSING).unwrap();
    let mut plain = vec![0; 2 * PAGE_SIZE];
    plain[PAGE_SIZE..][..8].copy_from_slice(&42u64.to_ne_bytes());
    thread::scope(|scope| {
        let reader = scope.spawn(|| memory.word(11).load(Ordering::Relaxed));
        let expected = Event::Fault {
            address: memory.address(11),
            kind: FaultKind::Missing,
            write: false,
        };
        assert_eq!(next_events(&uffd), [expected]);
        registration.copy(10 * PAGE_SIZE, &plain).unwrap();
        assert_eq!(reader.join().unwrap(), 42);
    });
    registration.zero(page(12)).unwrap();
    assert_eq!(memory.word(12).load(Ordering::Relaxed), 0);
    // A page that is there keeps its content, its neighbour is filled all the same.
    plain[..8].copy_from_slice(&1u64.to_ne_bytes());
    registration.copy(12 * PAGE_SIZE, &plain).unwrap();
    assert_eq!(memory.word(12).load(Ordering::Relaxed), 0);
    assert_eq!(memory.word(13).load(Ordering::Relaxed), 42);
}

#[test]
fn ranges_outside_or_between_pages_are_refused() {
    let Some(uffd) = open(Features::PAGEFAULT_FLAG_WP) else {
        return;
    };
    let registration = Registration::new(&uffd, Memory::new(), Mode::WRITE_PROTECT).unwrap();
    for bytes in [0..LEN + PAGE_SIZE, 1..PAGE_SIZE, 0..100, PAGE_SIZE..PAGE_SIZE] {
        assert!(matches!(
            registration.write_protect(bytes),
            Err(uffd::Error::Range { .. })
        ));
    }
}

#[test]
fn a_feature_that_no_kernel_has_is_named() {
    if open(Features::NONE).is_none() {
        return;
    }
    let error = Uffd::open(Features::from_bits(1 << 60)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel's userfaultfd lacks 0x1000000000000000"
    );
}

#[test]
fn discarding_memory_raises_an_event() {
    let Some(uffd) = open(Features::PAGEFAULT_FLAG_WP | Features::EVENT_REMOVE) else {
        return;
    };
    let memory = Memory::new();
    memory.populate();
    let _registration = Registration::new(&uffd, memory.clone(), Mode::WRITE_PROTECT).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let advice = rustix::mm::Advice::LinuxDontNeed;
            // SAFETY: the page is part of a mapping that outlives the call; its content is given up.
            unsafe { rustix::mm::madvise(memory.address(2) as *mut _, PAGE_SIZE, advice) }.unwrap();
        });
        assert_eq!(
            next_events(&uffd),
            [Event::Remove {
                start: memory.address(2),
                end: memory.address(3)
            }]
        );
    });
}

#[test]
fn residency_finds_what_is_there_and_what_is_only_protected_absent() {
    let memory = Memory::new();
    memory.word(7).store(1, Ordering::Relaxed);
    let mut pages = [9; PAGES];
    let find = |pages: &mut [u8]| {
        residency(memory.address(0), LEN, pages).unwrap();
        pages
            .iter()
            .enumerate()
            .filter(|(_, there)| **there == 1)
            .map(|(page, _)| page)
            .collect::<Vec<_>>()
    };
    assert_eq!(find(&mut pages), [7]);
    let Some(uffd) = open(Features::PAGEFAULT_FLAG_WP | Features::WP_UNPOPULATED) else {
        return;
    };
    let registration = Registration::new(&uffd, memory.clone(), Mode::WRITE_PROTECT).unwrap();
    registration.write_protect(0..LEN).unwrap();
    assert_eq!(find(&mut pages), [7], "a protection marker is not a page");
    let residency = Residency::new();
    let any = residency.find(memory.address(8), PAGE_SIZE, &mut pages).unwrap();
    assert_eq!(
        any,
        residency.swap_in_use(),
        "absent, unless it might be swapped out"
    );
}

#[test]
fn pagemap_scan_reports_present_pages_in_runs() {
    let scanner = match PagemapScanner::open() {
        Ok(scanner) => scanner,
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    let memory = Memory::new();
    for page in [3, 4, 5, 30] {
        memory.word(page).store(1, Ordering::Relaxed);
    }
    let mut found = Vec::new();
    let all = memory.address(0)..memory.address(0) + LEN;
    scanner
        .scan(all, PageCategories::PRESENT, |run| found.push(run.addresses))
        .unwrap();
    assert_eq!(
        found,
        [
            memory.address(3)..memory.address(6),
            memory.address(30)..memory.address(31)
        ]
    );
}

#[test]
fn written_pages_are_taken_once() {
    let features = Features::PAGEFAULT_FLAG_WP | Features::WP_ASYNC | Features::WP_UNPOPULATED;
    let (Some(uffd), Ok(scanner)) = (open(features), PagemapScanner::open()) else {
        return;
    };
    let memory = Memory::new();
    memory.populate();
    let registration = Registration::new(&uffd, memory.clone(), Mode::WRITE_PROTECT).unwrap();
    registration.write_protect(0..LEN).unwrap();
    memory.word(8).store(1, Ordering::Relaxed);
    let take = || {
        let (mut found, all) = (Vec::new(), memory.address(0)..memory.address(0) + LEN);
        scanner
            .take_written(all, |run| found.push(run.addresses))
            .unwrap();
        found
    };
    let written = memory.address(8)..memory.address(9);
    assert!(take().iter().eq([&written]));
    assert!(take().is_empty());
    memory.word(8).store(2, Ordering::Relaxed);
    assert!(take().iter().eq([&written]));
}
