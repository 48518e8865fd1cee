//! Measures captures: freeze, stalls and throughput by size of memory, and prints a table.
//!
//! Run it as `cargo run --release -p memsnap --example capture_bench [MIB...]`, for example with
//! `256 1024 4096`. One thread writes random places flat out all the while. Every row is the median
//! of five captures of the same memory by freeze; `null` throws chunks away, `zstd` is a real snapshot writer whose output
//! goes to /dev/null.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use memsnap::{
    Capture, CaptureOptions, CaptureReport, ChunkEncoder, ChunkSink, SinkError, memory_map, stop_and_copy,
};
use snapfile::{ChunkLayout, ChunkNumber, ChunkSize, Writer, WriterOptions};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Captures per row.
const CAPTURES: usize = 5;

fn main() -> Result<()> {
    if let Err(error) = uffd::Uffd::supported_features() {
        println!("SKIPPED: {error}");
        return Ok(());
    }
    let sizes = env::args()
        .skip(1)
        .map(|text| text.parse())
        .collect::<std::result::Result<Vec<usize>, _>>()?;
    println!(
        "{:>6} {:>5} {:>9} {:>9} {:>7} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8}",
        "MiB",
        "sink",
        "freeze us",
        "arm ms",
        "touched",
        "faults",
        "copy MiB",
        "p50 us",
        "p99 us",
        "max us",
        "drain ms",
        "MiB/s",
        "writes %"
    );
    for mib in if sizes.is_empty() { vec![64] } else { sizes } {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), mib << 20)])?;
        fill(&memory)?;
        for sink in ["null", "zstd"] {
            measure(&memory, mib, sink)?;
        }
        stopped(&memory, mib)?;
    }
    Ok(())
}

/// Half text-like, a quarter random, a quarter of long zero runs; everything populated.
fn fill(memory: &GuestMemoryMmap) -> Result<()> {
    let words: Vec<String> = (0..4096u32)
        .map(|n| format!("{:x} ", n.wrapping_mul(2_654_435_761)))
        .collect();
    let (mut random, mut page) = (1u64, vec![0u8; 4096]);
    for address in (0..=memory.last_addr().0).step_by(4096) {
        random = next(random);
        match address >> 18 & 3 {
            0 | 1 => {
                let text = (0..700).map(|n| &words[(next(random ^ n) >> 40) as usize % words.len()]);
                let text = text.flat_map(|word| word.bytes());
                page.iter_mut()
                    .zip(text)
                    .for_each(|(byte, letter)| *byte = letter);
            }
            2 => page.chunks_mut(8).for_each(|word| {
                random = next(random);
                word.copy_from_slice(&random.to_le_bytes());
            }),
            _ => {
                page.fill(0);
                page[..8].copy_from_slice(&random.to_le_bytes());
            }
        }
        memory.write_slice(&page, GuestAddress(address))?;
    }
    Ok(())
}

fn next(random: u64) -> u64 {
    random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407)
}

/// One row: the capture with the median freeze.
fn measure(memory: &GuestMemoryMmap, mib: usize, sink: &str) -> Result<()> {
    let (pause, stop, writes) = (RwLock::new(()), AtomicBool::new(false), AtomicU64::new(0));
    let mut reports = thread::scope(|scope| {
        scope.spawn(|| write_until(memory, &pause, &stop, &writes));
        let reports = (0..CAPTURES)
            .map(|_| capture(memory, &pause, &writes, sink))
            .collect::<Result<Vec<_>>>();
        stop.store(true, Ordering::Relaxed);
        reports
    })?;
    reports.sort_by_key(|(report, _)| report.freeze);
    let (report, speed) = &reports[CAPTURES / 2];
    let us = |duration: Duration| duration.as_micros();
    println!(
        "{mib:>6} {sink:>5} {:>9} {:>9} {:>7} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8.0}",
        us(report.freeze),
        report.arm.as_millis(),
        report.chunks_touched_at_freeze,
        report.faults_draining,
        report.copied_bytes >> 20,
        us(report.stall.p50),
        us(report.stall.p99),
        us(report.stall.max),
        report.drain.as_millis(),
        throughput(mib, report.drain),
        speed * 100.0,
    );
    Ok(())
}

/// One capture, and the writer's speed during it as a fraction of its speed just before.
fn capture(
    memory: &GuestMemoryMmap,
    pause: &RwLock<()>,
    writes: &AtomicU64,
    sink: &str,
) -> Result<(CaptureReport, f64)> {
    let rate =
        |from: u64, elapsed: Duration| (writes.load(Ordering::Relaxed) - from) as f64 / elapsed.as_secs_f64();
    let (before, from) = (Instant::now(), writes.load(Ordering::Relaxed));
    thread::sleep(Duration::from_millis(200));
    let before = rate(from, before.elapsed());
    let options = CaptureOptions {
        max_stall: Duration::from_secs(10),
        ..CaptureOptions::default()
    };
    let (begun, from) = (Instant::now(), writes.load(Ordering::Relaxed));
    let freeze = |layout: ChunkLayout| -> Result<Capture> {
        let mut capture = Capture::arm(memory, layout, options)?;
        let _paused = pause.write().expect("no writer panics");
        capture.freeze()?;
        Ok(capture)
    };
    let report = if sink == "null" {
        let layout = ChunkLayout::new(&memory_map(memory)?, ChunkSize::DEFAULT);
        freeze(layout)?.drain(&NullSink)?
    } else {
        let writer = real_writer(memory)?;
        let report = freeze(writer.layout().clone())?.drain(&writer)?;
        writer.finish()?;
        report
    };
    Ok((report, rate(from, begun.elapsed()) / before))
}

/// The same memory, stopped: what the walkers can do undisturbed.
fn stopped(memory: &GuestMemoryMmap, mib: usize) -> Result<()> {
    let writer = real_writer(memory)?;
    let report = stop_and_copy(
        memory,
        writer.layout().clone(),
        CaptureOptions::default(),
        &writer,
    )?;
    let (_, summary) = writer.finish()?;
    println!(
        "{mib:>6}  stop and copy: {} ms, {} MiB/s, file {} MiB",
        report.drain.as_millis(),
        throughput(mib, report.drain),
        summary.file_len >> 20
    );
    Ok(())
}

fn throughput(mib: usize, elapsed: Duration) -> u128 {
    mib as u128 * 1_000_000 / elapsed.as_micros().max(1)
}

fn real_writer(memory: &GuestMemoryMmap) -> Result<Writer<File>> {
    let output = OpenOptions::new().write(true).open("/dev/null")?;
    Ok(Writer::new(
        output,
        &memory_map(memory)?,
        WriterOptions::default(),
    )?)
}

/// Writes random places, as fast as it goes.
fn write_until(memory: &GuestMemoryMmap, pause: &RwLock<()>, stop: &AtomicBool, writes: &AtomicU64) {
    let (mut random, len) = (7, memory.last_addr().0 + 1);
    while !stop.load(Ordering::Relaxed) {
        let _running = pause.read().expect("no writer panics");
        for _ in 0..64 {
            random = next(random);
            let address = GuestAddress(((random >> 16) % len) & !7);
            memory
                .store(random, address, Ordering::Relaxed)
                .expect("the address is inside");
        }
        writes.fetch_add(64, Ordering::Relaxed);
    }
}

/// Takes everything and keeps nothing.
struct NullSink;

impl ChunkSink for NullSink {
    fn encoder(&self) -> Box<dyn ChunkEncoder + '_> {
        Box::new(NullSink)
    }

    fn put_zero(&self, _chunks: Range<u64>) -> std::result::Result<(), SinkError> {
        Ok(())
    }
}

impl ChunkEncoder for NullSink {
    fn put_chunk(&mut self, _chunk: ChunkNumber, _plain: &[u8]) -> std::result::Result<(), SinkError> {
        Ok(())
    }
}
