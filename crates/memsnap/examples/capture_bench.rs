//! Measures captures: pause, gaps, stalls and throughput by size of memory and by load.
//!
//! Run it as `cargo run --release -p memsnap --example capture_bench [MIB...]`, for example with
//! `256 1024 4096`. A thread writes random pages all the while, either *flat* out over all memory or *paced*:
//! ten pages each millisecond. Every row is the capture with the median freeze of five. The sink `null`
//! throws chunks away; `zstd` is a snapshot writer whose output goes to /dev/null. For comparison the same
//! bytes are captured while nobody writes, and compressed by the `zstd` program where there is one.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::process::{Command, Stdio};
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
/// Pages that the paced writer writes each millisecond.
const PACE: u64 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    Flat,
    Paced,
}

/// A thread that writes, and what is seen of it from outside.
#[derive(Default)]
struct Guest {
    pause: RwLock<()>,
    /// Somebody wants to pause the writer, which would not let them in by itself.
    pausing: AtomicBool,
    stop: AtomicBool,
    writes: AtomicU64,
    /// The longest time that a batch of writes took, in microseconds.
    gap_us: AtomicU64,
}

/// One capture as the guest saw it.
struct Outcome {
    report: CaptureReport,
    gap: Duration,
    /// The longest batch just before the capture: what the machine does to it anyway.
    gap_before: Duration,
    /// Its speed during the capture as a fraction of its speed just before.
    speed: f64,
}

fn main() -> Result<()> {
    if let Err(error) = uffd::Uffd::supported_features() {
        println!("SKIPPED: {error}");
        return Ok(());
    }
    let sizes = env::args().skip(1).map(|text| text.parse());
    let mut sizes = sizes.collect::<std::result::Result<Vec<usize>, _>>()?;
    if sizes.is_empty() {
        sizes.push(64);
    }
    println!(
        "   MiB  load sink  freeze  touched  arm  faults  copied |  stall p50    p99     max |    gap  before  speed |  drain   rate"
    );
    println!(
        "                       us   chunks   ms             MiB |         us     us      us |     us      us      % |     ms  MiB/s"
    );
    for mib in sizes {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), mib << 20)])?;
        fill(&memory)?;
        for load in [Load::Paced, Load::Flat] {
            for sink in ["null", "zstd"] {
                print_row(mib, load, sink, &measure(&memory, load, sink)?);
            }
        }
        stopped(&memory, mib)?;
        zstd_program(&memory, mib)?;
    }
    Ok(())
}

fn print_row(mib: usize, load: Load, sink: &str, outcome: &Outcome) {
    let Outcome {
        report,
        gap,
        gap_before,
        speed,
    } = outcome;
    let us = |duration: Duration| duration.as_micros();
    println!(
        "{mib:>6} {:>5} {sink} {:>7} {:>8} {:>4} {:>7} {:>7} | {:>10} {:>6} {:>7} | {:>6} {:>7} {:>6.0} | {:>6} {:>6}",
        format!("{load:?}").to_lowercase(),
        us(report.freeze),
        report.chunks_touched_at_freeze,
        report.arm.as_millis(),
        report.faults_draining,
        report.copied_bytes >> 20,
        us(report.stall.p50),
        us(report.stall.p99),
        us(report.stall.max),
        us(*gap),
        us(*gap_before),
        speed * 100.0,
        report.drain.as_millis(),
        rate(mib, report.drain),
    );
}

/// Half hexadecimal text, a quarter random, a quarter all but zero; everything populated.
fn fill(memory: &GuestMemoryMmap) -> Result<()> {
    let mut random = 1;
    for address in (0..=memory.last_addr().0).step_by(4096) {
        let mut page = vec![0; 4096];
        random = next(random);
        match (address >> 18) & 3 {
            0 | 1 => {
                let lines = (0..200)
                    .map(|line| format!("{:x} {line}: {:x}\n", random % 977, (random >> line) & 0xFFFF));
                page = lines.collect::<String>().into_bytes();
                page.resize(4096, b' ');
            }
            2 => page.chunks_mut(8).for_each(|word| {
                random = next(random);
                word.copy_from_slice(&random.to_le_bytes());
            }),
            _ => page[..8].copy_from_slice(&random.to_le_bytes()),
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

/// The capture with the median freeze.
fn measure(memory: &GuestMemoryMmap, load: Load, sink: &str) -> Result<Outcome> {
    let guest = Guest::default();
    let mut outcomes = thread::scope(|scope| {
        scope.spawn(|| guest.write(memory, load));
        let outcomes = (0..CAPTURES)
            .map(|_| capture(memory, &guest, sink))
            .collect::<Result<Vec<_>>>();
        guest.stop.store(true, Ordering::Relaxed);
        outcomes
    })?;
    outcomes.sort_by_key(|outcome| outcome.report.freeze);
    Ok(outcomes.swap_remove(CAPTURES / 2))
}

fn capture(memory: &GuestMemoryMmap, guest: &Guest, sink: &str) -> Result<Outcome> {
    let (begun, from) = guest.mark();
    thread::sleep(Duration::from_millis(200));
    let (speed_before, gap_before) = (guest.speed_since(begun, from), guest.gap());
    let (begun, from) = guest.mark();
    let freeze = |layout: ChunkLayout| -> Result<Capture> {
        let options = CaptureOptions {
            max_stall: Duration::from_secs(10),
            ..CaptureOptions::default()
        };
        let mut capture = Capture::arm(memory, layout, options)?;
        guest.pausing.store(true, Ordering::SeqCst);
        let _paused = guest.pause.write().expect("the writer does not panic");
        guest.pausing.store(false, Ordering::SeqCst);
        capture.freeze()?;
        Ok(capture)
    };
    let report = if sink == "null" {
        freeze(ChunkLayout::new(&memory_map(memory)?, ChunkSize::DEFAULT))?.drain(&NullSink)?
    } else {
        let writer = real_writer(memory)?;
        let report = freeze(writer.layout().clone())?.drain(&writer)?;
        writer.finish()?;
        report
    };
    let gap = guest.gap();
    Ok(Outcome {
        report,
        gap,
        gap_before,
        speed: guest.speed_since(begun, from) / speed_before,
    })
}

/// The same memory while nobody writes.
fn stopped(memory: &GuestMemoryMmap, mib: usize) -> Result<()> {
    let writer = real_writer(memory)?;
    let report = stop_and_copy(
        memory,
        writer.layout().clone(),
        CaptureOptions::default(),
        &writer,
    )?;
    let (_, summary) = writer.finish()?;
    let (elapsed, file) = (report.drain, summary.file_len >> 20);
    println!(
        "{mib:>6} stop and copy: {} ms, {} MiB/s, {file} MiB",
        elapsed.as_millis(),
        rate(mib, elapsed)
    );
    Ok(())
}

/// The same bytes through the `zstd` program on as many threads.
fn zstd_program(memory: &GuestMemoryMmap, mib: usize) -> Result<()> {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").or_else(|_| tempfile::NamedTempFile::new())?;
    memory.write_all_volatile_to(GuestAddress(0), &mut file.as_file(), mib << 20)?;
    file.as_file().flush()?;
    let threads = format!("-T{}", thread::available_parallelism()?);
    let begun = Instant::now();
    let mut program = Command::new("zstd");
    program
        .args(["-q", "-1", &threads, "-c"])
        .arg(file.path())
        .stdout(Stdio::null());
    let Ok(status) = program.status() else {
        println!("{mib:>6} zstd -1 {threads}: no such program");
        return Ok(());
    };
    let elapsed = begun.elapsed();
    println!(
        "{mib:>6} zstd -1 {threads}: {} ms, {} MiB/s, {status}",
        elapsed.as_millis(),
        rate(mib, elapsed)
    );
    Ok(())
}

fn rate(mib: usize, elapsed: Duration) -> u128 {
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

impl Guest {
    /// Writes random pages until stopped.
    fn write(&self, memory: &GuestMemoryMmap, load: Load) {
        let (mut random, pages) = (7, (memory.last_addr().0 + 1) / 4096);
        let batch = if load == Load::Flat { 64 } else { PACE };
        let mut tick = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            while self.pausing.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            let running = self.pause.read().expect("nobody panics in the pause");
            for _ in 0..batch {
                random = next(random);
                let address = GuestAddress((random >> 16) % pages * 4096);
                memory
                    .store(random, address, Ordering::Relaxed)
                    .expect("the address is inside");
            }
            drop(running);
            self.writes.fetch_add(batch, Ordering::Relaxed);
            let elapsed = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.gap_us.fetch_max(elapsed, Ordering::Relaxed);
            if load == Load::Paced {
                tick = (tick + Duration::from_millis(1)).max(Instant::now() - Duration::from_millis(1));
                thread::sleep(tick.saturating_duration_since(Instant::now()));
            }
        }
    }

    /// Begins to measure speed and gaps.
    fn mark(&self) -> (Instant, u64) {
        self.gap_us.store(0, Ordering::Relaxed);
        (Instant::now(), self.writes.load(Ordering::Relaxed))
    }

    fn gap(&self) -> Duration {
        Duration::from_micros(self.gap_us.load(Ordering::Relaxed))
    }

    fn speed_since(&self, begun: Instant, from: u64) -> f64 {
        (self.writes.load(Ordering::Relaxed) - from) as f64 / begun.elapsed().as_secs_f64()
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
