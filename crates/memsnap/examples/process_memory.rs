//! Snapshots a plain process's memory while its threads write it: no virtual machine, no KVM.
//!
//! Run it as `cargo run --release -p memsnap --example process_memory [MIB]`. The vmsnap part is `snapshot`
//! below; `Pause` stops the writers, as kicking its processors stops a virtual machine.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};
use std::{env, thread};

use memsnap::{Capture, CaptureOptions, CaptureReport, memory_map, restore_eager};
use snapfile::{Snapshot, SnapshotFile, Writer, WriterOptions};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Lets any number of writers run, or none.
#[derive(Default)]
struct Pause {
    wanted: AtomicBool,
    running: RwLock<()>,
}

impl Pause {
    /// Waits until no writer is running; none will until the guard is dropped.
    fn stop(&self) -> RwLockWriteGuard<'_, ()> {
        self.wanted.store(true, Ordering::SeqCst);
        let stopped = self.running.write().expect("no writer panics");
        self.wanted.store(false, Ordering::SeqCst);
        stopped
    }

    /// Lets the caller write until the guard is dropped. Busy writers alone would never let `stop` in.
    fn run(&self) -> RwLockReadGuard<'_, ()> {
        while self.wanted.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        self.running.read().expect("nobody panics in the pause")
    }
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Takes a snapshot of `memory` while others write it, as of the one moment at which they are paused.
/// `witness` is called in that moment, to know afterwards what the snapshot must hold.
fn snapshot(
    memory: &GuestMemoryMmap,
    path: &Path,
    pause: &Pause,
    witness: impl FnOnce(),
) -> Result<(CaptureReport, Duration)> {
    let file = SnapshotFile::create(path)?;
    let writer = Writer::new(file, &memory_map(memory)?, WriterOptions::default())?;
    let mut capture = Capture::arm(memory, writer.layout().clone(), CaptureOptions::default())?;
    let begun = Instant::now();
    let paused = pause.stop();
    capture.freeze()?;
    let pause_time = begun.elapsed();
    witness();
    drop(paused);
    let report = capture.drain(&writer)?;
    writer.finish()?.0.commit()?;
    Ok((report, pause_time))
}

fn main() -> Result<()> {
    let mib = env::args().nth(1).map_or(Ok(64), |text| text.parse::<usize>())?;
    if let Err(error) = uffd::Uffd::supported_features() {
        println!("SKIPPED: {error}");
        return Ok(());
    }
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), mib << 20)])?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("process.vmsnap");
    let (pause, stop, writes) = (Pause::default(), AtomicBool::new(false), AtomicU64::new(0));
    let mut witness = vec![0; mib << 20];

    let (report, pause_time) = thread::scope(|scope| {
        for seed in [1, 2] {
            let (memory, pause, stop, writes) = (&memory, &pause, &stop, &writes);
            scope.spawn(move || write_until(memory, seed, pause, stop, writes));
        }
        while writes.load(Ordering::Relaxed) < 100_000 {
            thread::yield_now();
        }
        let outcome = snapshot(&memory, &path, &pause, || {
            memory
                .read_slice(&mut witness, GuestAddress(0))
                .expect("the memory is there");
        });
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;

    let restored = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), mib << 20)])?;
    restore_eager(&restored, &Snapshot::open(&path)?, 0, &|_| {})?;
    let mut content = vec![0; mib << 20];
    restored.read_slice(&mut content, GuestAddress(0))?;
    if content != witness {
        return Err("the snapshot is not what memory was in the pause".into());
    }
    println!("{mib} MiB, two threads writing: the snapshot is exactly what memory was in the pause");
    println!(
        "pause                {pause_time:?}, of it protecting {:?}",
        report.freeze
    );
    println!(
        "command to pause     {:?} in {} rounds",
        report.command_to_t, report.arm_rounds
    );
    println!(
        "writes that waited   {}, half of them at most {:?}, the longest {:?}",
        report.stall.count, report.stall.p50, report.stall.max
    );
    println!(
        "snapshot complete    {:?} after the pause, {} bytes",
        report.drain,
        path.metadata()?.len()
    );
    Ok(())
}

/// Writes a running number to random places, as fast as it goes.
fn write_until(memory: &GuestMemoryMmap, seed: u64, pause: &Pause, stop: &AtomicBool, writes: &AtomicU64) {
    let len = vm_memory::GuestMemoryBackend::last_addr(memory).0 + 1;
    let mut random = seed;
    while !stop.load(Ordering::Relaxed) {
        let _running = pause.run();
        for _ in 0..64 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let address = GuestAddress(((random >> 16) % len) & !7);
            memory
                .store(random, address, Ordering::Relaxed)
                .expect("the address is inside");
        }
        writes.fetch_add(64, Ordering::Relaxed);
    }
}
