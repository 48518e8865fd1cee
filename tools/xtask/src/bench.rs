//! Measures what a snapshot costs, async beside stop, the writer beside zstd, and disks beside QEMU's tools, all in one
//! run on one machine.
//!
//! Figures are medians of several runs, each figure's own. The guests run from memory in pages of 4 KiB, the
//! dearest case for write protection, and once more from huge pages. Nothing is compared with figures from
//! elsewhere.

mod compare;
mod disks;
mod guest;

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::json;

use crate::machine::Workshop;
use crate::setup::{self, Need};
use crate::shell;
use guest::{Guest, Measured, Writer};

/// Options of `cargo xtask bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Populated guest memory in MiB, several separated by commas.
    #[arg(
        long,
        value_name = "MIB",
        value_delimiter = ',',
        default_value = "256,1024,4096"
    )]
    sizes: Vec<u64>,
    /// Snapshots of each kind, of which the median is shown.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Pages per second that the paced guest writes.
    #[arg(long, value_name = "PAGES", default_value_t = 10_000)]
    pace: u32,
    /// What is measured, several separated by commas.
    #[arg(
        long,
        value_enum,
        value_name = "PART",
        value_delimiter = ',',
        default_values_t = [Part::Guests, Part::Writer, Part::Disks, Part::Images]
    )]
    parts: Vec<Part>,
    /// Directory for the snapshot files, on the storage that is to be measured.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Also write everything that was measured into this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A part of what is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Pause and speed of the guest.
    Guests,
    /// The writer beside zstd.
    Writer,
    /// What disks add to the pause.
    Disks,
    /// qcow2 images beside QEMU's tools.
    Images,
}

/// Programs that measure qcow2 images, and print their own tables.
const IMAGES: &[&str] = &["snapshots", "io"];

/// Measures everything and prints the tables.
pub fn run(options: &Options) -> Result<()> {
    setup::run(Need::Bench)?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("no machine can be run here: /dev/kvm")?;
    let workshop = Workshop::open(options.directory.as_deref())?;
    let wants = |part| options.parts.contains(&part);
    let (mut measured, mut compared, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    if wants(Part::Guests) {
        measured = guests(options, &workshop)?;
    }
    if wants(Part::Writer) {
        compared = compare::with_zstd(&workshop, options.runs)?;
    }
    if wants(Part::Disks) {
        kept = disks::measure(&workshop, options.runs)?;
    }
    println!("\n{}\n", conditions(options)?);
    if !measured.is_empty() {
        print_guests(&measured);
    }
    if !compared.is_empty() {
        println!(
            "The writer beside zstd, on the same bytes:\n\n{}",
            compare::table(&compared)
        );
    }
    if !kept.is_empty() {
        println!("What disks add to the pause:\n\n{}", disks::table(&kept));
    }
    if wants(Part::Images) {
        for bench in IMAGES {
            shell::run(
                shell::cargo().args(["bench", "--quiet", "--locked", "-p", "qcow2", "--bench", bench]),
            )?;
        }
    }
    if let Some(file) = &options.json {
        let all = json!({
            "guests": measured.iter().map(Measured::to_json).collect::<Vec<_>>(),
            "compared": compared.iter().map(compare::Compared::to_json).collect::<Vec<_>>(),
            "disks": kept.iter().map(disks::Kept::to_json).collect::<Vec<_>>(),
        });
        std::fs::write(file, format!("{all:#}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Measures guests of every size.
fn guests(options: &Options, workshop: &Workshop) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    for &mebibytes in &options.sizes {
        for (writer, huge_pages) in [
            (Writer::FlatOut, false),
            (Writer::Paced(options.pace), false),
            (Writer::FlatOut, true),
        ] {
            let guest = Guest {
                mebibytes,
                writer,
                huge_pages,
            };
            measured.push(guest.measure(workshop, options.runs)?);
        }
    }
    Ok(measured)
}

fn print_guests(measured: &[Measured]) {
    println!("Pause and speed of the guest:\n\n{}", guest::cost_table(measured));
    println!(
        "The same guest again and again, async:\n\n{}",
        guest::repetition_table(measured)
    );
    println!(
        "What writes of the guest waited for, async:\n\n{}",
        guest::stall_table(measured)
    );
}

/// One line that says where and how it was measured.
fn conditions(options: &Options) -> Result<String> {
    let kernel = shell::capture(shell::command("uname").arg("-sr"))?;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let runs = options.runs;
    Ok(format!(
        "{}, {cores} cores, medians of {runs} snapshots each",
        kernel.trim()
    ))
}

/// The middle of some times.
fn median_time(times: impl Iterator<Item = Duration>) -> Duration {
    Duration::from_secs_f64(median(times.map(|time| time.as_secs_f64())))
}

/// The middle of some figures, the mean of the two middle ones where their number is even; 0 for none.
fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match (
        sorted.len() % 2,
        sorted.get(half),
        half.checked_sub(1).and_then(|below| sorted.get(below)),
    ) {
        (1, Some(middle), _) => *middle,
        (_, Some(above), Some(below)) => f64::midpoint(*above, *below),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([9.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 9.0].into_iter()), 3.0);
    }
}
