//! `snapvm demo`: the whole story in one process.
//!
//! A guest writes its memory as fast as it can; it is snapshotted while it goes on, and once more while it is held;
//! every page of both files is recomputed; a second guest continues from the first file. Without KVM the guest is
//! memory of this process with writer threads, captured by the same engine.

mod guest;
mod live;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;

use snapshot::{CheckReport, SaveMode, SaveOptions, SaveReport};

use crate::cli::DemoArgs;
use crate::outcome::Outcome;
use crate::output::{human_bytes, human_us, print, print_json};
use guest::{Guest, MachineGuest, PlainGuest};
use live::Live;

/// How long the guest is watched before and after a snapshot.
const WATCH: Duration = Duration::from_secs(1);
/// Pages that a restored guest has to write, and so to find as they were, to count as going on.
const GOING_ON_STEPS: u64 = 20_000;
/// How long it may take for that.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one snapshot cost the guest and the host.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    mode: SaveMode,
    /// Pages that the guest wrote per second.
    rate_before: u64,
    rate_during: u64,
    rate_after: u64,
    /// Longest time without progress of a vCPU, from the command until the file was complete.
    longest_gap_us: u64,
    report: SaveReport,
    pages_checked: u64,
    mismatch_count: u64,
}

/// The story in figures.
#[derive(Debug, Serialize)]
struct Story {
    guest: &'static str,
    memory_bytes: u64,
    cpus: u32,
    snapshots: Vec<Measured>,
    restored_guest_steps: u64,
}

/// `snapvm demo`.
pub fn run(args: &DemoArgs) -> anyhow::Result<Outcome> {
    if args.no_kvm || !Path::new("/dev/kvm").exists() {
        let reason = if args.no_kvm {
            "as asked"
        } else {
            "there is no /dev/kvm"
        };
        eprintln!("snapvm: without KVM ({reason}): the guest is memory of this process with writer threads");
        tell(args, PlainGuest::start)
    } else {
        tell(args, MachineGuest::start)
    }
}

fn tell<G: Guest>(args: &DemoArgs, start: fn(u64, u32) -> anyhow::Result<G>) -> anyhow::Result<Outcome> {
    let (directory, _removed_at_the_end) = directory(args)?;
    let say = |text: String| {
        if args.json {
            Ok(())
        } else {
            print(&format!("{text}\n"))
        }
    };
    let guest = start(args.memory, args.cpus)?;
    let live = Live::new(!args.json);
    say(format!(
        "{}: {} and {} vCPU, writing without rest",
        G::WHAT,
        human_bytes(args.memory),
        args.cpus
    ))?;
    wait_for_steps(&guest, 1)?;
    let mut snapshots = Vec::new();
    for (mode, name) in [(SaveMode::Async, "async.vmsnap"), (SaveMode::Stop, "stop.vmsnap")] {
        let measured = measure(&guest, mode, &directory.join(name), &live)?;
        say(format!(
            "{name}: as of {} after the command; {} pages recomputed from the saved registers, {} differ",
            human_us(measured.report.statistics.command_to_capture_point_us),
            measured.pages_checked,
            measured.mismatch_count,
        ))?;
        snapshots.push(measured);
    }
    drop(guest);
    let restored = G::restore(&directory.join("async.vmsnap"))?;
    wait_for_steps(&restored, GOING_ON_STEPS)?;
    ensure!(
        !restored.found_damage(),
        "the restored guest found pages that it had not written so"
    );
    say(format!(
        "restored from async.vmsnap: the guest went on and wrote {GOING_ON_STEPS} pages more"
    ))?;
    let differ = snapshots.iter().any(|measured| measured.mismatch_count > 0);
    if args.json {
        let story = Story {
            guest: G::WHAT,
            memory_bytes: args.memory,
            cpus: args.cpus,
            snapshots,
            restored_guest_steps: restored.steps(),
        };
        print_json(&story)?;
    } else {
        print(&table(&snapshots))?;
    }
    Ok(if differ { Outcome::No } else { Outcome::Good })
}

/// Where the files go; a temporary directory is removed when its guard is dropped.
fn directory(args: &DemoArgs) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    match &args.dir {
        Some(directory) => {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
            Ok((directory.clone(), None))
        }
        None => {
            let temporary = tempfile::tempdir().context("cannot create a temporary directory")?;
            Ok((temporary.path().to_owned(), Some(temporary)))
        }
    }
}

/// Takes one snapshot, with the guest watched before, during and after it.
fn measure<G: Guest>(guest: &G, mode: SaveMode, path: &Path, live: &Live) -> anyhow::Result<Measured> {
    let rate_before = live.watch(guest, "before", WATCH);
    guest.begin_gap();
    let options = SaveOptions {
        mode,
        ..SaveOptions::default()
    };
    let (rate_during, report) = live.follow(guest, |control| guest.save(path, &options, control));
    let longest_gap_us = guest.longest_gap_us();
    let report = report?;
    let rate_after = live.watch(guest, "after", WATCH);
    let CheckReport {
        pages_checked,
        mismatch_count,
        ..
    } = G::check(path)?;
    Ok(Measured {
        mode,
        rate_before,
        rate_during,
        rate_after,
        longest_gap_us,
        report,
        pages_checked,
        mismatch_count,
    })
}

fn wait_for_steps(guest: &impl Guest, more: u64) -> anyhow::Result<()> {
    let (began, target) = (Instant::now(), guest.steps() + more);
    while guest.steps() < target {
        ensure!(began.elapsed() < PATIENCE, "the guest makes no progress");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The figures of all snapshots side by side.
fn table(snapshots: &[Measured]) -> String {
    type Column = fn(&Measured) -> String;
    let rows: [(&str, Column); 10] = [
        ("mode", |m| format!("{:?}", m.mode).to_lowercase()),
        ("command to T", |m| {
            human_us(m.report.statistics.command_to_capture_point_us)
        }),
        ("guest held", |m| human_us(m.report.statistics.downtime_us)),
        ("guest's longest gap", |m| human_us(m.longest_gap_us)),
        ("pages/s before", |m| m.rate_before.to_string()),
        ("pages/s during", |m| m.rate_during.to_string()),
        ("pages/s after", |m| m.rate_after.to_string()),
        ("total", |m| human_us(m.report.total_us)),
        ("file", |m| human_bytes(m.report.file_bytes)),
        ("pages that differ", |m| m.mismatch_count.to_string()),
    ];
    let line = |(name, column): &(&str, Column)| {
        let cells: String = snapshots
            .iter()
            .map(|measured| format!("{:>14}", column(measured)))
            .collect();
        format!("{name:<20}{cells}\n")
    };
    rows.iter().map(line).collect()
}
