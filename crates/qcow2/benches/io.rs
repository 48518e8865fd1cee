//! Guest I/O beside a raw file and beside `qemu-img bench`, through the page cache and directly.
//!
//! Each figure is the median of three runs over a disk of 256 MiB, one request at a time. Runs of writes end with a
//! flush, which counts; for QEMU that takes the time of the whole process, its start included. QEMU has no random
//! requests here: its small ones go through the disk by strides. Only the ratios mean anything from one machine to
//! another.
//!
//! `cargo bench -p qcow2 --bench io [DIRECTORY]`

#![allow(clippy::unwrap_used, reason = "a bench that cannot run says why by panicking")]
#![allow(
    clippy::cast_precision_loss,
    clippy::print_stdout,
    reason = "figures for people"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use qcow2::replay::Random;
use qcow2::{Access, Cache, CreateOptions, FileStorage, Image, ImageOptions, RawImage};

/// Size of the disk.
const DISK: u64 = 256 << 20;
/// Requests of a run, at most; fewer where the disk ends.
const REQUESTS: u64 = 16_384;

/// One kind of load.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    bytes: usize,
    random: bool,
    write: bool,
    /// The disk is empty before.
    empty: bool,
}

const fn load(name: &'static str, bytes: usize, random: bool, write: bool, empty: bool) -> Load {
    Load {
        name,
        bytes,
        random,
        write,
        empty,
    }
}

const LOADS: [Load; 9] = [
    load("read 64k in order", 64 << 10, false, false, false),
    load("read 1M in order", 1 << 20, false, false, false),
    load("read 4k at random", 4 << 10, true, false, false),
    load("write 64k in order", 64 << 10, false, true, false),
    load("write 1M in order", 1 << 20, false, true, false),
    load("write 4k at random", 4 << 10, true, true, false),
    load("write 64k in order, empty disk", 64 << 10, false, true, true),
    load("write 1M in order, empty disk", 1 << 20, false, true, true),
    load("write 4k at random, empty disk", 4 << 10, true, true, true),
];

/// What is measured.
enum Disk {
    Raw(RawImage),
    Ours(Box<Image>),
}

impl Disk {
    fn open(path: &Path, raw: bool, cache: Cache) -> Self {
        if raw {
            return Self::Raw(RawImage::open(path, Access::ReadWrite, cache).unwrap());
        }
        let file = FileStorage::open(path, Access::ReadWrite, cache).unwrap();
        Self::Ours(Box::new(
            Image::open(std::sync::Arc::new(file), None, &ImageOptions::default()).unwrap(),
        ))
    }

    fn transfer(&self, load: Load, buf: &mut [u8], offset: u64) {
        match (self, load.write) {
            (Self::Raw(disk), true) => disk.write_at(buf, offset).unwrap(),
            (Self::Raw(disk), false) => qcow2::Layer::read_at(disk, buf, offset).unwrap(),
            (Self::Ours(disk), true) => disk.write_at(buf, offset).unwrap(),
            (Self::Ours(disk), false) => disk.read_at(buf, offset).unwrap(),
        }
    }

    fn flush(&self) {
        match self {
            Self::Raw(disk) => disk.flush().unwrap(),
            Self::Ours(disk) => disk.flush().unwrap(),
        }
    }
}

fn requests(load: Load, cache: Cache) -> u64 {
    let most = if cache == Cache::None {
        REQUESTS / 8
    } else {
        REQUESTS
    };
    most.min(DISK / load.bytes as u64)
}

/// Makes the disk's file, empty or with every cluster written.
fn make(path: &Path, raw: bool, empty: bool) {
    let file = std::fs::File::create(path).unwrap();
    if raw {
        file.set_len(DISK).unwrap();
    } else {
        let storage = FileStorage::from_file(file, Access::ReadWrite);
        qcow2::create(&storage, &CreateOptions::new(DISK)).unwrap();
    }
    if !empty {
        let disk = Disk::open(path, raw, Cache::Writeback);
        let whole = Load {
            write: true,
            ..LOADS[1]
        };
        let mut buf = vec![1; whole.bytes];
        (0..DISK)
            .step_by(whole.bytes)
            .for_each(|offset| disk.transfer(whole, &mut buf, offset));
        disk.flush();
    }
}

/// Runs a load in this process and returns MiB in a second.
fn measure(path: &Path, raw: bool, load: Load, cache: Cache) -> f64 {
    make(path, raw, load.empty);
    let disk = Disk::open(path, raw, cache);
    let mut random = Random::new(1);
    let mut buf = vec![2; load.bytes];
    let (requests, places) = (requests(load, cache), DISK / load.bytes as u64);
    let begun = Instant::now();
    for number in 0..requests {
        let place = if load.random {
            random.below(places)
        } else {
            number % places
        };
        disk.transfer(load, &mut buf, place * load.bytes as u64);
    }
    if load.write {
        disk.flush();
    }
    rate(load, requests, begun.elapsed().as_secs_f64())
}

/// Runs a load with `qemu-img bench`, if it is here.
fn measure_qemu(path: &Path, load: Load, cache: Cache) -> Option<f64> {
    make(path, false, load.empty);
    let requests = requests(load, cache);
    let step = if load.random {
        DISK / requests + 4096
    } else {
        load.bytes as u64
    };
    let mut command = Command::new("qemu-img");
    command.args([
        "bench",
        "-f",
        "qcow2",
        "-d",
        "1",
        "-t",
        if cache == Cache::None { "none" } else { "writeback" },
    ]);
    command.args([
        "-c",
        &requests.to_string(),
        "-s",
        &load.bytes.to_string(),
        "-S",
        &step.to_string(),
    ]);
    if load.write {
        command.args(["-w", "--pattern", "2", "--flush-interval", &requests.to_string()]);
    }
    let begun = Instant::now();
    let output = command.arg(path).stderr(Stdio::null()).output().ok()?;
    let whole = begun.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stdout);
    let seconds = said
        .split("completed in ")
        .nth(1)?
        .split(' ')
        .next()?
        .parse()
        .ok()?;
    // Its clock stops before the last flush, which ends with the process.
    Some(rate(load, requests, if load.write { whole } else { seconds }))
}

fn rate(load: Load, requests: u64, seconds: f64) -> f64 {
    (requests * load.bytes as u64) as f64 / f64::from(1 << 20) / seconds
}

fn median(mut run: impl FnMut() -> Option<f64>) -> Option<f64> {
    let mut rates = [run()?, run()?, run()?];
    rates.sort_by(f64::total_cmp);
    Some(rates[1])
}

fn main() {
    let directory = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let directory = tempfile::tempdir_in(directory.map_or_else(std::env::temp_dir, PathBuf::from)).unwrap();
    let path = directory.path().join("disk");
    println!("MiB/s, one request at a time            |   raw |  ours | ours/raw |  qemu | ours/qemu");
    for cache in [Cache::Writeback, Cache::None] {
        let how = if cache == Cache::None { "direct" } else { "cached" };
        for load in LOADS {
            let raw = median(|| Some(measure(&path, true, load, cache))).unwrap();
            let ours = median(|| Some(measure(&path, false, load, cache))).unwrap();
            print!(
                "{how} {:<32} | {raw:5.0} | {ours:5.0} | {:8.2} |",
                load.name,
                ours / raw
            );
            match median(|| measure_qemu(&path, load, cache)) {
                Some(qemu) => println!(" {qemu:5.0} | {:9.2}", ours / qemu),
                None => println!("     - |         -"),
            }
        }
    }
}
