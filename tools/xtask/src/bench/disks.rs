//! What keeping disks adds to the pause of a snapshot: none, one and several idle disks, in each way of keeping them.
//!
//! The disks are qcow2 images whose clusters are all mapped, so that an internal snapshot has work to do; an overlay has
//! the same whatever is in them. Each machine is a new one on new images.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::median_time;
use crate::machine::{Machine, Workshop, number};
use crate::shell;
use crate::table::Table;
use crate::taken::{Taken, millis, take};

/// Numbers of disks, and the ways of keeping them that are measured with each.
const CASES: &[(usize, &[&str])] = &[
    (0, &["none"]),
    (1, &["none", "overlay", "internal"]),
    (4, &["none", "overlay", "internal"]),
];

/// Size of each disk.
const DISK_SIZE: &str = "1G";

/// The guest beside the disks: small, and paced so that its memory adds little to the pause.
const GUEST: &str = "snapvm run --builtin --cpus 1 --memory 320M --working-set 256M --write-rate 10000";

/// One way of keeping so many disks, measured several times.
#[derive(Debug)]
pub struct Kept {
    disks: usize,
    mode: &'static str,
    taken: Vec<Taken>,
}

/// Measures all cases; nothing where the images cannot be made.
pub fn measure(workshop: &Workshop, runs: usize) -> Result<Vec<Kept>> {
    if shell::find("qemu-img").is_none() {
        eprintln!("SKIPPED: disks: no qemu-img");
        return Ok(Vec::new());
    }
    let mut measured = Vec::new();
    for &(disks, modes) in CASES {
        for &mode in modes {
            measured.push(Kept {
                disks,
                mode,
                taken: snapshots(workshop, disks, mode, runs)?,
            });
        }
    }
    Ok(measured)
}

/// Boots a machine with so many disks and takes `runs` snapshots of it.
fn snapshots(workshop: &Workshop, disks: usize, mode: &str, runs: usize) -> Result<Vec<Taken>> {
    let place = workshop.path("disks");
    std::fs::create_dir(&place)?;
    let mut typed = GUEST.to_owned();
    for disk in 0..disks {
        let create = "qemu-img create -q -f qcow2 -o preallocation=metadata";
        shell::run(&mut workshop.command(&format!("{create} disks/{disk}.qcow2 {DISK_SIZE}")))?;
        typed.push_str(&format!(" --disk file=disks/{disk}.qcow2"));
    }
    let mut machine = Machine::start(workshop, "vm", &typed)?;
    machine.wait_for_steps()?;
    let typed = format!("snapvm snapshot --api-sock vm.sock bench.vmsnap --disks {mode}");
    let taken = (0..runs)
        .map(|_| {
            let taken = take(workshop, &machine, &typed, Duration::MAX, |_| Ok(()))?;
            std::fs::remove_file(workshop.path("bench.vmsnap"))?;
            Ok(taken)
        })
        .collect();
    machine.shut_down()?;
    std::fs::remove_dir_all(&place)?;
    taken
}

impl Kept {
    /// All of it, with the reports as they came.
    pub fn to_json(&self) -> Value {
        json!({
            "disks": self.disks,
            "mode": self.mode,
            "reports": self.taken.iter().map(|taken| &taken.report).collect::<Vec<_>>(),
        })
    }

    fn pause(&self) -> Duration {
        median_time(self.taken.iter().map(|taken| taken.pause))
    }

    /// The middle of a figure of the report.
    fn figure(&self, name: &str) -> Duration {
        let path = format!("statistics.disks.{name}");
        let figures = self
            .taken
            .iter()
            .filter_map(|taken| number(&taken.report, &path).ok());
        median_time(figures.map(Duration::from_micros))
    }
}

/// The pause of each case, how much of it is the disks', and what is done for them before and after it.
pub fn table(all: &[Kept]) -> Table {
    let mut table = Table::new([
        "disks",
        "kept as",
        "pause",
        "against none",
        "disks, in the pause",
        "before it",
        "durable after",
        "fingerprints after",
    ]);
    for kept in all {
        let base = all
            .iter()
            .find(|other| (other.disks, other.mode) == (kept.disks, "none"))
            .map_or(Duration::ZERO, Kept::pause);
        let more = kept.pause().as_secs_f64() - base.as_secs_f64();
        table.row([
            kept.disks.to_string(),
            kept.mode.to_owned(),
            millis(kept.pause()),
            format!("{:+.2} ms", more * 1e3),
            millis(kept.figure("switch_us") + kept.figure("internal_us")),
            millis(kept.figure("prepare_us")),
            millis(kept.figure("settle_us")),
            millis(kept.figure("fingerprint_us")),
        ]);
    }
    table
}
