//! Memory with threads that write it flat out, a pause, and an oracle of what it was.

#![expect(unsafe_code, reason = "madvise by address")]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};
use std::thread::{self, JoinHandle};

use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileMemory,
};

use memsnap::{Capture, CaptureOptions, memory_map};
use snapfile::{ChunkLayout, ChunkSize};

pub const MIB: usize = 1 << 20;
pub const PAGE: usize = 4096;
/// Where the second region of [`two_regions`] begins: there is a hole before it.
pub const HIGH: u64 = 4 << 30;

/// Whether captures can run here; says so loudly where they cannot.
pub fn can_capture() -> bool {
    let available = uffd::Uffd::supported_features().is_ok();
    if !available {
        eprintln!("SKIPPED: no userfaultfd that takes kernel faults on this machine");
    }
    available
}

/// What is behind the memory of a test.
#[derive(Clone, Copy, Debug)]
pub enum Backing {
    Anonymous,
    /// Anonymous, with transparent huge pages asked for.
    Huge,
    Memfd,
}

/// Two regions with a hole between: the first of `len` bytes, the second a page and a quarter of it.
pub fn two_regions(len: usize, backing: Backing) -> GuestMemoryMmap<()> {
    let ranges = [(GuestAddress(0), len), (GuestAddress(HIGH), len / 4 + PAGE)];
    let memory = match backing {
        Backing::Anonymous | Backing::Huge => GuestMemoryMmap::from_ranges(&ranges).unwrap(),
        Backing::Memfd => {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let file = Arc::new(File::from(rustix::fs::memfd_create("guest", flags).unwrap()));
            file.set_len((len + len / 4 + PAGE) as u64).unwrap();
            let offsets = [0, len as u64];
            let ranges = ranges.iter().zip(offsets).map(|(&(address, len), offset)| {
                (
                    address,
                    len,
                    Some(FileOffset::from_arc(Arc::clone(&file), offset)),
                )
            });
            GuestMemoryMmap::from_ranges_with_files(ranges).unwrap()
        }
    };
    if matches!(backing, Backing::Huge) {
        for region in memory.iter() {
            // SAFETY: the advice changes how pages are allocated, not what they hold.
            let advised = unsafe {
                rustix::mm::madvise(
                    region.get_mmap().as_ptr().cast(),
                    region.get_mmap().size(),
                    rustix::mm::Advice::LinuxHugepage,
                )
            };
            advised.expect("transparent huge pages can be asked for");
        }
    }
    memory
}

/// How `memory` is cut into chunks of `chunk_bytes`.
pub fn layout(memory: &GuestMemoryMmap<()>, chunk_bytes: u32) -> ChunkLayout {
    ChunkLayout::new(&memory_map(memory).unwrap(), ChunkSize::new(chunk_bytes).unwrap())
}

/// Writes something into every page.
pub fn populate(memory: &GuestMemoryMmap<()>) {
    for region in memory.iter() {
        for offset in (0..region.len()).step_by(PAGE) {
            let address = GuestAddress(vm_memory::Address::raw_value(&region.start_addr()) + offset);
            memory.write_obj(offset ^ 0x5A5A_5A5A, address).unwrap();
        }
    }
}

/// The content of all regions, one after another; pages that are not there are not touched.
pub fn contents(memory: &GuestMemoryMmap<()>) -> Vec<u8> {
    let mut all = Vec::new();
    for region in memory.iter() {
        let mapping = region.get_mmap();
        let mut present = vec![0; mapping.size() / PAGE];
        uffd::residency(mapping.as_ptr() as usize, mapping.size(), &mut present).unwrap();
        let start = all.len();
        all.resize(start + mapping.size(), 0);
        for (page, _) in present.iter().enumerate().filter(|(_, there)| **there == 1) {
            let target = &mut all[start + page * PAGE..][..PAGE];
            mapping.get_slice(page * PAGE, PAGE).unwrap().copy_to(target);
        }
    }
    all
}

/// Threads that write random places of the memory as fast as they can.
pub struct Writers {
    pause: Arc<RwLock<()>>,
    stop: Arc<AtomicBool>,
    pub written: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    pub fn start(memory: &GuestMemoryMmap<()>, count: u64) -> Self {
        let mut writers = Writers::idle();
        for seed in 1..=count {
            let memory = memory.clone();
            writers.add(move |step| {
                let (region, offset) = place(&memory, step.wrapping_mul(seed | 1).wrapping_add(seed));
                memory
                    .store(step, GuestAddress(region + offset), Ordering::Relaxed)
                    .unwrap();
            });
        }
        writers
    }

    /// Nobody writes yet.
    pub fn idle() -> Self {
        Writers {
            pause: Arc::default(),
            stop: Arc::default(),
            written: Arc::default(),
            threads: Vec::new(),
        }
    }

    /// Adds a thread that does `write` again and again, with an ever-changing number.
    pub fn add(&mut self, mut write: impl FnMut(u64) + Send + 'static) {
        let (pause, stop) = (Arc::clone(&self.pause), Arc::clone(&self.stop));
        let written = Arc::clone(&self.written);
        self.threads.push(thread::spawn(move || {
            let mut step = 0x9E37_79B9_7F4A_7C15u64;
            while !stop.load(Ordering::Relaxed) {
                let _running = pause.read().unwrap();
                for _ in 0..32 {
                    step ^= step << 13;
                    step ^= step >> 7;
                    step ^= step << 17;
                    write(step);
                }
                written.fetch_add(32, Ordering::Relaxed);
            }
        }));
    }

    /// Stops every writer between two writes until the guard is dropped.
    pub fn pause(&self) -> RwLockWriteGuard<'_, ()> {
        self.pause.write().unwrap()
    }

    /// Returns once the writers have gone on by some hundred writes.
    pub fn wait_for_progress(&self) {
        let before = self.written.load(Ordering::Relaxed);
        while self.written.load(Ordering::Relaxed) < before + 256 {
            thread::yield_now();
        }
    }

    /// Ends the writers; returns only if none of them is stuck.
    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// A random place for eight bytes: a region's address and an offset.
pub fn place(memory: &GuestMemoryMmap<()>, random: u64) -> (u64, u64) {
    let regions: Vec<_> = memory
        .iter()
        .map(|region| (region.start_addr().0, region.len()))
        .collect();
    let total: u64 = regions.iter().map(|(_, len)| len).sum();
    let mut offset = (random % total) & !7;
    for (address, len) in regions {
        if offset < len {
            return (address, offset);
        }
        offset -= len;
    }
    unreachable!("the offset is below the sum of lengths")
}

/// Arms, and freezes under a pause; returns the capture and what memory was.
pub fn arm_and_freeze(
    memory: &GuestMemoryMmap<()>,
    writers: &Writers,
    chunk_bytes: u32,
    options: CaptureOptions,
) -> (Capture, Vec<u8>) {
    let mut capture = Capture::arm(memory, layout(memory, chunk_bytes), options).unwrap();
    let paused = writers.pause();
    capture.freeze().unwrap();
    let expected = contents(memory);
    drop(paused);
    (capture, expected)
}

/// Returns once a write has met the protection of `capture`, which must be frozen.
pub fn wait_for_fault(capture: &Capture) {
    while capture.control().progress().faults == 0 {
        thread::yield_now();
    }
}

/// Fails unless the memory is as free as if there had been no capture: every page writable at once, no
/// protection bit left, no range registered.
pub fn assert_free(memory: &GuestMemoryMmap<()>) {
    for region in memory.iter() {
        let mapping = region.get_mmap();
        let start = mapping.as_ptr() as usize;
        assert_eq!(
            protected_pages(start, mapping.size()),
            0,
            "protection bits are left"
        );
        assert!(
            !vm_flags(start).iter().any(|flag| flag == "uw" || flag == "um"),
            "still registered"
        );
    }
    populate(memory);
}

/// Pages whose page map entry says that they are write-protected by userfaultfd.
fn protected_pages(start: usize, len: usize) -> usize {
    let mut pagemap = File::open("/proc/self/pagemap").unwrap();
    pagemap.seek(SeekFrom::Start((start / PAGE * 8) as u64)).unwrap();
    let mut entries = vec![0; len / PAGE * 8];
    pagemap.read_exact(&mut entries).unwrap();
    let entries = entries
        .chunks_exact(8)
        .map(|entry| u64::from_le_bytes(entry.try_into().unwrap()));
    entries.filter(|entry| entry & 1 << 57 != 0).count()
}

/// The flags of the mapping that begins at or before `address`.
fn vm_flags(address: usize) -> Vec<String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let parse = |text| usize::from_str_radix(text, 16).ok();
        if let Some((Some(start), Some(end))) = range.map(|(start, end)| (parse(start), parse(end))) {
            inside = (start..end).contains(&address);
        }
        if let Some(flags) = line.strip_prefix("VmFlags: ").filter(|_| inside) {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    panic!("{address:#x} is not mapped")
}
