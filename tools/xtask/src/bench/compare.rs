//! The snapshot writer beside `zstd -1 -T0`, on the same bytes.
//!
//! A guest is held, so that all processors are the writer's and each snapshot has the same content; then its memory
//! is extracted from the file and given to zstd. Both read from memory (zstd from the page cache).

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::guest::{Guest, Writer};
use super::{median, median_time};
use crate::machine::{Machine, Workshop, number};
use crate::shell;
use crate::table::Table;
use crate::taken::{mebibytes, millis, take, throughput};

/// Populated memory of the guest; small enough for one region, so that its image is its memory.
const POPULATED_MIB: u64 = 1024;

/// One way of writing the same memory, measured several times.
#[derive(Debug)]
pub struct Compared {
    name: &'static str,
    memory_bytes: u64,
    file_bytes: u64,
    /// Until the last byte was handed to the kernel.
    written: Vec<Duration>,
    /// Until the file was on the disk.
    durable: Vec<Duration>,
}

/// Measures the writer and zstd.
pub fn with_zstd(workshop: &Workshop, runs: usize) -> Result<Vec<Compared>> {
    let guest = Guest {
        mebibytes: POPULATED_MIB,
        writer: Writer::FlatOut,
        huge_pages: true,
    };
    let mut machine = Machine::start(workshop, "vm", &guest.typed())?;
    machine.wait_for_steps()?;
    let pause = "snapvm pause --api-sock vm.sock";
    shell::run(&mut workshop.command(pause))?;
    let ours = [
        ours(workshop, &machine, "vmsnap, zstd level 1", "", runs)?,
        ours(workshop, &machine, "vmsnap, lz4", " --codec lz4", runs)?,
    ];
    machine.shut_down()?;
    shell::run(&mut workshop.command("snaptool restore bench.vmsnap --memory memory.raw"))?;
    shell::run(&mut workshop.command("sync memory.raw"))?;
    let zstd = zstd(workshop, runs)?;
    Ok(ours.into_iter().chain([zstd]).collect())
}

fn ours(
    workshop: &Workshop,
    machine: &Machine,
    name: &'static str,
    extra: &str,
    runs: usize,
) -> Result<Compared> {
    let typed = format!("snapvm snapshot --api-sock vm.sock bench.vmsnap --mode stop{extra}");
    let mut compared = Compared {
        name,
        memory_bytes: 0,
        file_bytes: 0,
        written: Vec::new(),
        durable: Vec::new(),
    };
    for _ in 0..runs {
        let taken = take(workshop, machine, &typed, Duration::MAX, |_| Ok(()))?;
        let commit = Duration::from_micros(number(&taken.report, "commit_us")?);
        compared.memory_bytes = taken.memory_bytes;
        compared.file_bytes = taken.file_bytes;
        compared.written.push(taken.total.saturating_sub(commit));
        compared.durable.push(taken.total);
    }
    Ok(compared)
}

fn zstd(workshop: &Workshop, runs: usize) -> Result<Compared> {
    let (image, output) = (workshop.path("memory.raw"), workshop.path("memory.zst"));
    let memory_bytes = image.metadata()?.len();
    let name = "zstd -1 -T0";
    let mut compared = Compared {
        name,
        memory_bytes,
        file_bytes: 0,
        written: Vec::new(),
        durable: Vec::new(),
    };
    for _ in 0..runs {
        let begin = Instant::now();
        shell::run(&mut workshop.command("zstd -1 -T0 --quiet --force memory.raw -o memory.zst"))?;
        compared.written.push(begin.elapsed());
        shell::run(&mut workshop.command("sync memory.zst"))?;
        compared.durable.push(begin.elapsed());
        compared.file_bytes = output.metadata()?.len();
        std::fs::remove_file(&output)?;
    }
    Ok(compared)
}

impl Compared {
    /// All of it.
    pub fn to_json(&self) -> Value {
        let seconds = |times: &[Duration]| times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>();
        json!({
            "name": self.name,
            "memory_bytes": self.memory_bytes,
            "file_bytes": self.file_bytes,
            "written_seconds": seconds(&self.written),
            "durable_seconds": seconds(&self.durable),
        })
    }
}

/// Time, throughput and size of each way.
pub fn table(all: &[Compared]) -> Table {
    let mut table = Table::new([
        "writer",
        "written",
        "durable",
        "throughput",
        "against zstd",
        "file",
    ]);
    let written = |compared: &Compared| median_time(compared.written.iter().copied());
    let speed = |compared: &Compared| compared.memory_bytes as f64 / written(compared).as_secs_f64();
    let peer = median(all.last().map(speed).into_iter());
    for compared in all {
        table.row([
            compared.name.to_owned(),
            millis(written(compared)),
            millis(median_time(compared.durable.iter().copied())),
            throughput(compared.memory_bytes, written(compared)),
            format!("{:.0} %", 100.0 * speed(compared) / peer),
            mebibytes(compared.file_bytes as f64),
        ]);
    }
    table
}
