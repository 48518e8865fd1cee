//! One guest, snapshotted several times in each mode, and the tables of what that cost.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::{median, median_time};
use crate::machine::{Machine, Workshop, number};
use crate::table::Table;
use crate::taken::{Taken, mebibytes, millis, pages_per_second, take, throughput};

/// Memory beside the working set: the guest's program and room to spare.
const BESIDE_MIB: u64 = 64;

/// How the guest writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// As fast as it can.
    FlatOut,
    /// This many pages per second.
    Paced(u32),
}

/// A guest to be measured.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// Populated memory.
    pub mebibytes: u64,
    /// How it writes.
    pub writer: Writer,
    /// Whether its memory may be in huge pages.
    pub huge_pages: bool,
}

/// What was measured on one guest.
#[derive(Debug)]
pub struct Measured {
    guest: Guest,
    rate_before: f64,
    asynchronous: Vec<Taken>,
    stop: Vec<Taken>,
}

impl Guest {
    /// Boots the guest and takes `runs` snapshots of it in each mode.
    pub fn measure(self, workshop: &Workshop, runs: usize) -> Result<Measured> {
        let mut machine = Machine::start(workshop, "vm", &self.typed())?;
        machine.wait_for_steps()?;
        let rate_before = machine.rate_over(Duration::from_secs(2))?;
        let asynchronous = several(workshop, &machine, "async", runs)?;
        let stop = several(workshop, &machine, "stop", runs)?;
        machine.shut_down()?;
        Ok(Measured {
            guest: self,
            rate_before,
            asynchronous,
            stop,
        })
    }

    /// The command that boots it.
    pub fn typed(self) -> String {
        let Self {
            mebibytes,
            writer,
            huge_pages,
        } = self;
        let memory = mebibytes + BESIDE_MIB;
        let mut typed =
            format!("snapvm run --builtin --cpus 1 --memory {memory}M --working-set {mebibytes}M");
        if let Writer::Paced(pages) = writer {
            typed.push_str(&format!(" --write-rate {pages}"));
        }
        if !huge_pages {
            typed.push_str(" --no-thp");
        }
        typed
    }

    fn name(self) -> String {
        let size = match self.mebibytes {
            mebibytes if mebibytes % 1024 == 0 => format!("{} GiB", mebibytes / 1024),
            mebibytes => format!("{mebibytes} MiB"),
        };
        let writer = if self.writer == Writer::FlatOut {
            "flat out"
        } else {
            "paced"
        };
        format!(
            "{size}, {writer}{}",
            if self.huge_pages { ", huge pages" } else { "" }
        )
    }
}

/// Takes several snapshots in one mode; the files are not kept.
fn several(workshop: &Workshop, machine: &Machine, mode: &str, runs: usize) -> Result<Vec<Taken>> {
    let typed = format!("snapvm snapshot --api-sock vm.sock bench.vmsnap --mode {mode}");
    (0..runs)
        .map(|_| {
            let taken = take(workshop, machine, &typed, Duration::MAX, |_| Ok(()))?;
            std::fs::remove_file(workshop.path("bench.vmsnap"))?;
            Ok(taken)
        })
        .collect()
}

impl Measured {
    /// All of it, with the reports as they came.
    pub fn to_json(&self) -> Value {
        let one = |taken: &Taken| {
            json!({
                "longest_gap_seconds": taken.longest_gap.as_secs_f64(),
                "pages_per_second_during": taken.rate_during,
                "report": taken.report,
            })
        };
        json!({
            "guest": self.guest.name(),
            "command": self.guest.typed(),
            "pages_per_second_before": self.rate_before,
            "async": self.asynchronous.iter().map(one).collect::<Vec<_>>(),
            "stop": self.stop.iter().map(one).collect::<Vec<_>>(),
        })
    }
}

/// Pause, guest speed, time, size and throughput, async beside stop.
pub fn cost_table(all: &[Measured]) -> Table {
    let mut table = Table::new([
        "guest",
        "mode",
        "pause",
        "longest gap",
        "to capture point",
        "writes before",
        "during",
        "total",
        "file",
        "memory into file",
    ]);
    for measured in all {
        for (mode, taken) in [("async", &measured.asynchronous), ("stop", &measured.stop)] {
            let time = |of: fn(&Taken) -> Duration| median_time(taken.iter().map(of));
            let (total, rate) = (
                time(|taken| taken.total),
                median(taken.iter().map(|taken| taken.rate_during)),
            );
            let file_bytes = median(taken.iter().map(|taken| taken.file_bytes as f64));
            let memory_bytes = taken.first().map_or(0, |taken| taken.memory_bytes);
            table.row([
                measured.guest.name(),
                mode.to_owned(),
                millis(time(|taken| taken.pause)),
                millis(time(|taken| taken.longest_gap)),
                millis(time(|taken| taken.to_capture_point)),
                pages_per_second(measured.rate_before),
                format!("{:.0} %", 100.0 * rate / measured.rate_before),
                millis(total),
                mebibytes(file_bytes),
                throughput(memory_bytes, total),
            ]);
        }
    }
    table
}

/// The first snapshots of a guest beside the later ones.
pub fn repetition_table(all: &[Measured]) -> Table {
    let mut table = Table::new(["guest", "figure", "first", "second", "third", "last"]);
    for measured in all {
        let taken = &measured.asynchronous;
        let mut row = |figure: &str, of: fn(&Taken) -> Duration| {
            let show = |taken: Option<&Taken>| taken.map_or_else(String::new, |taken| millis(of(taken)));
            let [first, second, third] = [0, 1, 2].map(|number| show(taken.get(number)));
            table.row([
                measured.guest.name(),
                figure.to_owned(),
                first,
                second,
                third,
                show(taken.last()),
            ]);
        };
        row("pause", |taken| taken.pause);
        row("longest gap", |taken| taken.longest_gap);
        row("total", |taken| taken.total);
    }
    table
}

/// What the guest's writes waited for while memory was captured.
pub fn stall_table(all: &[Measured]) -> Table {
    let mut table = Table::new([
        "guest",
        "waits",
        "p50",
        "p99",
        "longest",
        "copied aside",
        "most buffers",
    ]);
    for measured in all {
        let figure = |path: &str| {
            let figures = measured
                .asynchronous
                .iter()
                .filter_map(|taken| number(&taken.report, path).ok());
            median(figures.map(|figure| figure as f64))
        };
        let capture = |path: &str| figure(&format!("statistics.capture.{path}"));
        let wait = |path: &str| format!("{:.0} us", capture(&format!("stall_draining.{path}")));
        table.row([
            measured.guest.name(),
            format!("{:.0}", capture("faults_draining")),
            wait("p50_us"),
            wait("p99_us"),
            wait("max_us"),
            mebibytes(capture("copied_bytes")),
            mebibytes(capture("buffer_high_water_bytes")),
        ]);
    }
    table
}
