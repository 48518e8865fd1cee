//! Measures the writer and the reader on this machine: `cargo run --release -p snapfile --example throughput`.
//!
//! For each kind of content, codec and number of threads: encoding to memory that is thrown away,
//! decoding from memory, in MB (10^6 bytes) of guest memory per second, the best of three runs; the
//! same per second of processor time, which says more on a busy machine; and what remains of the
//! size. `zstd -1` alone, with the same chunks, is the yardstick. An argument picks a content.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use snapfile::{ChunkNumber, Codec, MemoryMap, MemoryRegion, Snapshot, Writer, WriterOptions};

const CHUNK: usize = 64 << 10;
const MEMORY: usize = 256 << 20;
const RUNS: usize = 3;

/// Takes everything and keeps nothing.
struct Discard;

impl Write for Discard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the memory of the guest looks like.
#[derive(Clone, Copy, Debug)]
enum Content {
    Zero,
    Compressible,
    Incompressible,
    /// A quarter of each: zero, compressible twice, incompressible.
    Mixed,
}

/// Makes memory like that of a running system: structures with counters, pointers and text.
fn memory(content: Content) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    // Touched, or all pages would be one page of zeros in the processor's cache.
    let mut bytes = vec![1u8; MEMORY];
    for (number, chunk) in bytes.chunks_mut(CHUNK).enumerate() {
        let kind = match (content, number % 4) {
            (Content::Mixed, 0) => Content::Zero,
            (Content::Mixed, 1 | 2) => Content::Compressible,
            (Content::Mixed, _) => Content::Incompressible,
            (kind, _) => kind,
        };
        for (at, word) in chunk.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let value = match kind {
                Content::Zero => 0,
                Content::Incompressible => next(),
                _ if at % 16 < 4 => 0xffff_8880_0000_0000 | (next() & 0x3f_ffc0),
                _ if at % 16 < 6 => next() & 0xffff,
                _ if at % 16 < 8 => (number * 4096 + at / 16) as u64,
                _ if at % 16 < 11 => u64::from_le_bytes(*b"/usr/lib"),
                _ => 0,
            };
            *word = value.to_le_bytes();
        }
    }
    bytes
}

/// Runs `work` for every chunk number on some threads, each with a state of its own.
fn on_threads<S>(threads: usize, state: impl Fn() -> S + Sync, work: impl Fn(&mut S, usize) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut state = state();
                loop {
                    let chunk = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
                    if chunk >= MEMORY / CHUNK {
                        break;
                    }
                    work(&mut state, chunk);
                }
            });
        }
    });
}

/// Best rates of some runs, in MB of guest memory.
#[derive(Clone, Copy)]
struct Rate {
    per_second: f64,
    per_cpu_second: f64,
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>7.0} {:>7.0}", self.per_second, self.per_cpu_second)
    }
}

/// Returns the processor time of all threads so far, by the kernel's 10 ms clock.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

/// Returns the best of some runs, and what the last run returned.
fn best<T>(mut run: impl FnMut() -> T) -> (Rate, T) {
    let (mut seconds, mut cpu) = (f64::MAX, f64::MAX);
    let mut result = None;
    for _ in 0..RUNS {
        let (start, cpu_start) = (Instant::now(), cpu_seconds());
        result = Some(run());
        seconds = seconds.min(start.elapsed().as_secs_f64());
        cpu = cpu.min((cpu_seconds() - cpu_start).max(0.005));
    }
    let megabytes = MEMORY as f64 / 1e6;
    let rate = Rate {
        per_second: megabytes / seconds,
        per_cpu_second: megabytes / cpu,
    };
    (rate, result.expect("there is at least one run"))
}

fn encode<W: Write + Send>(memory: &[u8], codec: Codec, threads: usize, output: W) -> (W, u64) {
    let map = MemoryMap::new(vec![MemoryRegion {
        guest_address: 0,
        len_bytes: MEMORY as u64,
    }])
    .expect("a map");
    let options = WriterOptions {
        codec,
        ..WriterOptions::default()
    };
    let writer = Writer::new(output, &map, options).expect("a writer");
    on_threads(
        threads,
        || writer.encoder(),
        |encoder, chunk| {
            let plain = memory.chunks_exact(CHUNK).nth(chunk).expect("a chunk");
            encoder
                .put_chunk(ChunkNumber(chunk as u64), plain)
                .expect("a chunk is encoded");
        },
    );
    let (output, summary) = writer.finish().expect("a snapshot");
    (output, summary.file_len)
}

fn decode(snapshot: &Snapshot, threads: usize) {
    on_threads(
        threads,
        || (snapshot.decoder(), vec![0; CHUNK]),
        |(decoder, plain), chunk| {
            decoder
                .read_chunk(ChunkNumber(chunk as u64), plain)
                .expect("a chunk is decoded");
        },
    );
}

fn zstd_alone(memory: &[u8], threads: usize) -> Rate {
    let state = || {
        let context = zstd::bulk::Compressor::new(1).expect("a context");
        (context, vec![0; zstd::zstd_safe::compress_bound(CHUNK)])
    };
    let (rate, ()) = best(|| {
        on_threads(threads, state, |(context, buffer), chunk| {
            let plain = memory.chunks_exact(CHUNK).nth(chunk).expect("a chunk");
            context
                .compress_to_buffer(plain, buffer.as_mut_slice())
                .expect("a chunk is compressed");
        });
    });
    rate
}

fn measure(content: Content) {
    let memory = memory(content);
    for threads in [1, 2] {
        println!(
            "{content:<15?} {:<9} {threads:>7} {}",
            "(zstd -1)",
            zstd_alone(&memory, threads)
        );
    }
    let codecs = [
        ("zstd -3", Codec::Zstd { level: -3 }),
        ("zstd 1", Codec::Zstd { level: 1 }),
        ("lz4", Codec::Lz4),
        ("raw", Codec::Raw),
    ];
    for (name, codec) in codecs {
        let (file, _) = encode(&memory, codec, 2, Vec::new());
        let snapshot = Snapshot::from_storage(Box::new(file)).expect("a snapshot");
        for threads in [1, 2] {
            let (encoded, (_, len)) = best(|| encode(&memory, codec, threads, Discard));
            let (decoded, ()) = best(|| decode(&snapshot, threads));
            let size = 100.0 * len as f64 / MEMORY as f64;
            println!("{content:<15?} {name:<9} {threads:>7} {encoded} {decoded} {size:>6.1}%");
        }
    }
}

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default().to_lowercase();
    println!(
        "{:<15} {:<9} {:>7} {:>15} {:>15} {:>7}",
        "content", "codec", "threads", "encode  /CPU", "decode  /CPU", "size"
    );
    for content in [
        Content::Zero,
        Content::Compressible,
        Content::Incompressible,
        Content::Mixed,
    ] {
        if format!("{content:?}").to_lowercase().starts_with(&wanted) {
            measure(content);
        }
    }
}
