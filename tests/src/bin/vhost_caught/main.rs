//! Shows that a capture sees what the kernel's vhost worker writes into guest memory.
//!
//! There is no guest: a thread plays the driver of a vhost-vsock device on rings in memory of this process,
//! and a client streams numbers to it by `AF_VSOCK`, so that a worker of the kernel writes receive buffers all
//! over that memory without pause. Every round captures the memory: protect it, stop the driver and the
//! device, copy all of it as the oracle, freeze, let the device go on while the driver stays stopped, wait
//! until the kernel has written, and drain. Every chunk must be equal to the oracle's, and as the driver
//! stands still, every write-protect fault is the kernel's: a round without one is a failure. The stream must
//! arrive without a gap over all rounds.
//!
//! With `--no-protect` nothing is protected, and every round must find differences: the oracle can fail.
//!
//! Usage: `vhost_caught [--rounds N] [--memory MIB] [--no-protect]`. Prints one JSON object; exit code 0 if all
//! is as it should be, 1 otherwise. Needs root and the kernel module `vhost_vsock`.

mod compare;
mod device;
mod driver;
mod rings;
mod stream;

use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use memsnap::{Capture, CaptureOptions, memory_map, stop_and_copy};
use serde_json::{Value, json};
use snapfile::{ChunkLayout, ChunkSize};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::compare::Comparison;
use crate::device::Device;
use crate::driver::Driver;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Context id of the guest that is not there.
const CID: u32 = 4711;
/// Bytes of a chunk.
const CHUNK_BYTES: u32 = 16 << 10;
/// Buffers that the kernel has to fill after the point in time before memory is drained.
const WRITES_BEFORE_DRAIN: u16 = 8;
/// Bytes that have to arrive between two rounds, so that each finds other memory.
const BYTES_BETWEEN_ROUNDS: u64 = 1 << 20;
/// Longest wait for anything; for slow machines.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
struct Options {
    rounds: u32,
    memory_bytes: usize,
    protect: bool,
}

/// What one round found.
#[derive(Clone, Copy, Debug)]
struct Round {
    chunks: u64,
    chunks_that_differ: u64,
    kernel_faults: u64,
    kernel_buffers: u16,
    longest_stall: Duration,
}

fn main() {
    match options().and_then(|options| run(options).map(|rounds| report(options, &rounds))) {
        Ok((report, good)) => {
            println!("{report:#}");
            process::exit(i32::from(!good));
        }
        Err(error) => {
            println!("{:#}", json!({ "passed": false, "error": error.to_string() }));
            eprintln!("FAILED: {error}");
            process::exit(1);
        }
    }
}

fn options() -> Result<Options> {
    let mut options = Options {
        rounds: 20,
        memory_bytes: 64 << 20,
        protect: true,
    };
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--no-protect" => options.protect = false,
            "--rounds" => options.rounds = words.next().ok_or("--rounds: a number is missing")?.parse()?,
            "--memory" => {
                let mib: usize = words.next().ok_or("--memory: MiB are missing")?.parse()?;
                options.memory_bytes = mib << 20;
            }
            other => return Err(format!("{other}: unknown option").into()),
        }
    }
    if options.rounds == 0 || options.memory_bytes < 16 << 20 {
        return Err("at least one round and 16 MiB are needed".into());
    }
    Ok(options)
}

fn run(options: Options) -> Result<Vec<Round>> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), options.memory_bytes)])?;
    let (mut device, kicks) = Device::start(CID, &memory)?;
    let driver = Arc::new(Mutex::new(Driver::new(&memory, CID, kicks)?));
    let client = stream::Client::start(CID, driver::PORT);
    let player = driver::Player::start(&driver);
    let rounds = all_rounds(options, &memory, &mut device, &driver);
    let played = player.stop();
    let streamed = client.stop();
    // What went wrong in a thread says more than that a round waited for it in vain.
    played?;
    streamed?;
    rounds
}

fn all_rounds(
    options: Options,
    memory: &GuestMemoryMmap,
    device: &mut Device,
    driver: &Mutex<Driver>,
) -> Result<Vec<Round>> {
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        let before = locked(driver).bytes();
        wait_for("the stream", device, || {
            locked(driver).bytes() >= before + BYTES_BETWEEN_ROUNDS
        })?;
        rounds.push(if options.protect {
            protected_round(memory, device, driver)?
        } else {
            unprotected_round(memory, device, driver)?
        });
    }
    Ok(rounds)
}

fn protected_round(memory: &GuestMemoryMmap, device: &mut Device, driver: &Mutex<Driver>) -> Result<Round> {
    let options = CaptureOptions {
        max_stall: PATIENCE,
        ..CaptureOptions::default()
    };
    let mut capture = Capture::arm(memory, layout(memory)?, options)?;
    let stopped = stop(device, driver)?;
    let comparison = Comparison::with_copy_of(memory)?;
    let used = stopped.received_index()?;
    let frozen = capture.freeze();
    device.resume();
    frozen?;
    wait_for("writes of the kernel", device, || {
        written_since(&stopped, used) >= WRITES_BEFORE_DRAIN
    })?;
    let report = capture.drain(&comparison)?;
    Ok(Round {
        chunks: comparison.chunks(),
        chunks_that_differ: comparison.differences(),
        kernel_faults: report.faults_draining,
        kernel_buffers: written_since(&stopped, used),
        longest_stall: report.stall.max,
    })
}

fn unprotected_round(memory: &GuestMemoryMmap, device: &mut Device, driver: &Mutex<Driver>) -> Result<Round> {
    let stopped = stop(device, driver)?;
    let comparison = Comparison::with_copy_of(memory)?;
    let used = stopped.received_index()?;
    device.resume();
    wait_for("writes of the kernel", device, || {
        written_since(&stopped, used) >= WRITES_BEFORE_DRAIN
    })?;
    stop_and_copy(memory, layout(memory)?, CaptureOptions::default(), &comparison)?;
    Ok(Round {
        chunks: comparison.chunks(),
        chunks_that_differ: comparison.differences(),
        kernel_faults: 0,
        kernel_buffers: written_since(&stopped, used),
        longest_stall: Duration::ZERO,
    })
}

/// Stops the kernel's worker and the driver. All buffers have been given back to the device by then, so that
/// the kernel can go on without the driver.
fn stop<'a>(device: &mut Device, driver: &'a Mutex<Driver>) -> Result<MutexGuard<'a, Driver>> {
    let mut stopped = locked(driver);
    device.pause()?;
    while stopped.work()? {}
    Ok(stopped)
}

/// The report, and whether it is a good one.
fn report(options: Options, rounds: &[Round]) -> (Value, bool) {
    let good = |round: &Round| {
        if options.protect {
            round.chunks_that_differ == 0 && round.kernel_faults > 0
        } else {
            round.chunks_that_differ > 0
        }
    };
    let bad = rounds.iter().filter(|round| !good(round)).count();
    for round in rounds.iter().filter(|round| !good(round)) {
        eprintln!("FAILED: {round:?}");
    }
    let sum = |field: fn(&Round) -> u64| rounds.iter().map(field).sum::<u64>();
    let detail = |round: &Round| {
        json!({
            "chunks": round.chunks,
            "chunks_that_differ": round.chunks_that_differ,
            "kernel_faults": round.kernel_faults,
            "kernel_buffers": round.kernel_buffers,
            "longest_stall_us": u64::try_from(round.longest_stall.as_micros()).unwrap_or(u64::MAX),
        })
    };
    let report = json!({
        "test": "vhost_caught",
        "passed": bad == 0,
        "protect": options.protect,
        "memory_bytes": options.memory_bytes,
        "chunk_bytes": CHUNK_BYTES,
        "rounds": rounds.len(),
        "bad_rounds": bad,
        "chunks_compared": sum(|round| round.chunks),
        "chunks_that_differ": sum(|round| round.chunks_that_differ),
        "kernel_faults": sum(|round| round.kernel_faults),
        "kernel_buffers": sum(|round| round.kernel_buffers.into()),
        "details": rounds.iter().map(detail).collect::<Vec<_>>(),
    });
    (report, bad == 0)
}

fn layout(memory: &GuestMemoryMmap) -> Result<ChunkLayout> {
    Ok(ChunkLayout::new(
        &memory_map(memory)?,
        ChunkSize::new(CHUNK_BYTES)?,
    ))
}

fn written_since(driver: &Driver, used: u16) -> u16 {
    driver.received_index().map_or(0, |now| now.wrapping_sub(used))
}

fn locked(driver: &Mutex<Driver>) -> MutexGuard<'_, Driver> {
    driver.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_for(what: &str, device: &Device, mut condition: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !condition() {
        if device.has_failed() {
            return Err(format!("{what}: the device asks for a reset").into());
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("{what}: nothing for {} s", PATIENCE.as_secs()).into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
