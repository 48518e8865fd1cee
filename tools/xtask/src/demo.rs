//! A snapshot of a running machine from beginning to end, with the real binaries, as a user would type it.
//!
//! Every command is printed before it runs and can be typed again. Where there is no KVM the same capture engine
//! is shown on the memory of a process. Whatever happens, the machines are ended and the directory is removed.

use std::fs::OpenOptions;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::machine::{Look, Machine, Workshop, number};
use crate::setup::Need;
use crate::shell::SaidNo;
use crate::table::Table;
use crate::taken::{Taken, mebibytes, millis, pages_per_second, take, throughput};
use crate::{setup, shell};

/// How often the live view looks.
const GLANCE: Duration = Duration::from_millis(100);

/// Options of `cargo xtask demo`.
#[derive(Debug, Args)]
pub struct Options {
    /// Memory of the guest, as `snapvm run` takes it.
    #[arg(long, default_value = "512M")]
    memory: String,
    /// Number of virtual processors.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
}

/// What the table at the end compares.
struct Story {
    rate_before: f64,
    rate_after: f64,
    first: Taken,
    second: Taken,
    stop: Taken,
}

/// Shows the whole story.
pub fn run(options: &Options) -> Result<()> {
    setup::run(Need::Build)?;
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        println!("No machine can be run here: /dev/kvm: {error}.");
        println!("The same capture engine, on the memory of a process whose threads write to it:");
        let what = [
            "run",
            "--quiet",
            "--release",
            "--locked",
            "-p",
            "memsnap",
            "--example",
            "process_memory",
        ];
        return shell::run(shell::cargo().args(what));
    }
    let workshop = Workshop::open(None)?;
    println!(
        "\nA machine of {} whose guest writes pages as fast as it can:",
        options.memory
    );
    let typed = format!(
        "snapvm run --builtin --memory {} --cpus {}",
        options.memory, options.cpus
    );
    let mut machine = Machine::start(&workshop, "vm", &typed)?;
    machine.wait_for_steps()?;
    let story = snapshots(&workshop, &machine)?;
    println!("\nThe first machine ends. A new one begins where the first snapshot was taken:");
    machine.shut_down()?;
    restore(&workshop)?;
    print(&story);
    Ok(())
}

/// Takes the snapshots and looks at them from every side, while the guest runs.
fn snapshots(workshop: &Workshop, machine: &Machine) -> Result<Story> {
    let rate_before = machine.rate_over(Duration::from_millis(1500))?;
    println!(
        "the guest writes {} pages\n\nA snapshot while it goes on:",
        pages_per_second(rate_before)
    );
    let first = take_with_view(
        workshop,
        machine,
        "snapvm snapshot --api-sock vm.sock first.vmsnap",
    )?;
    let rate_after = machine.rate_over(Duration::from_millis(1500))?;
    println!("\nWhat is in the file, is it whole, is every page as it was at that instant:");
    for typed in [
        "snaptool inspect first.vmsnap",
        "snaptool verify first.vmsnap",
        "snapvm check first.vmsnap",
    ] {
        show(workshop, typed)?;
    }
    println!("\nA second snapshot, and what changed in between:");
    let second = take_with_view(
        workshop,
        machine,
        "snapvm snapshot --api-sock vm.sock second.vmsnap",
    )?;
    differ(workshop, "snaptool diff --limit 4 first.vmsnap second.vmsnap")?;
    println!("\nFor comparison, the guest stopped while all is written:");
    let stop = take_with_view(
        workshop,
        machine,
        "snapvm snapshot --api-sock vm.sock stop.vmsnap --mode stop",
    )?;
    show(workshop, "snapvm check stop.vmsnap")?;
    Ok(Story {
        rate_before,
        rate_after,
        first,
        second,
        stop,
    })
}

/// Restores the first snapshot into a new machine and sees the guest go on.
fn restore(workshop: &Workshop) -> Result<()> {
    let typed = Instant::now();
    let mut machine = Machine::start(workshop, "vm2", "snapvm restore first.vmsnap")?;
    println!("its control socket answers after {}", millis(typed.elapsed()));
    machine.wait_for_steps()?;
    let rate = machine.rate_over(Duration::from_millis(1500))?;
    println!("the guest writes {} pages", pages_per_second(rate));
    println!("\nThe restored machine can be snapshotted like any other, and its guest made no mistake:");
    show(workshop, "snapvm snapshot --api-sock vm2.sock third.vmsnap")?;
    show(workshop, "snapvm check third.vmsnap")?;
    machine.shut_down()
}

/// Takes a snapshot with a line for each look at it.
fn take_with_view(workshop: &Workshop, machine: &Machine, typed: &str) -> Result<Taken> {
    let mut last = machine.look()?;
    let taken = take(workshop, machine, typed, GLANCE, |machine| {
        glance(machine, &mut last)
    })?;
    println!(
        "done: guest held for {}, longest gap it felt {}, {} in {}",
        millis(taken.pause),
        millis(taken.longest_gap),
        mebibytes(taken.file_bytes as f64),
        millis(taken.total),
    );
    Ok(taken)
}

/// One line of the live view.
fn glance(machine: &Machine, last: &mut Look) -> Result<()> {
    let now = machine.look()?;
    let status = machine.get("/v1/status")?;
    let progress = &status["snapshot"]["progress"];
    // Right after the command there may be no snapshot yet, or the one before it.
    if status["snapshot"]["state"] == "running" && !progress.is_null() {
        let (done, total) = (
            number(progress, "chunks_done")?,
            number(progress, "chunks_total")?.max(1),
        );
        let filled = usize::try_from(done * 20 / total)?.min(20);
        println!(
            "  {:<10} [{}{}] {:>3} %  file {:>8}  waits {:>6}  guest {:>9} pages",
            progress["phase"].as_str().unwrap_or_default(),
            "#".repeat(filled),
            ".".repeat(20 - filled),
            done * 100 / total,
            mebibytes(number(progress, "file_bytes")? as f64),
            number(progress, "faults")?,
            pages_per_second(last.rate_to(now)),
        );
    }
    *last = now;
    Ok(())
}

/// Runs a command and shows its output.
fn show(workshop: &Workshop, typed: &str) -> Result<()> {
    shell::run(&mut workshop.command(typed))
}

/// Runs a comparison, whose "no, they differ" is the answer hoped for.
fn differ(workshop: &Workshop, typed: &str) -> Result<()> {
    match show(workshop, typed) {
        Err(error) if error.is::<SaidNo>() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => Err(anyhow::anyhow!(SaidNo(
            "the two snapshots should differ".to_owned()
        )))
        .context(typed.to_owned()),
    }
}

fn print(story: &Story) {
    let mut table = Table::new(["measured", "async", "async again", "stop"]);
    let all = [&story.first, &story.second, &story.stop];
    let mut row = |name: &str, value: &dyn Fn(&Taken) -> String| {
        let [first, second, stop] = all.map(value);
        table.row([name.to_owned(), first, second, stop]);
    };
    row("guest held (pause)", &|taken| millis(taken.pause));
    row("longest gap the guest felt", &|taken| millis(taken.longest_gap));
    row("command to capture point", &|taken| {
        millis(taken.to_capture_point)
    });
    row("command to durable file", &|taken| millis(taken.total));
    row("guest writes before", &|_| pages_per_second(story.rate_before));
    row("guest writes during", &|taken| {
        pages_per_second(taken.rate_during)
    });
    row("guest writes after", &|_| pages_per_second(story.rate_after));
    row("file", &|taken| mebibytes(taken.file_bytes as f64));
    row("memory into the file", &|taken| {
        throughput(taken.memory_bytes, taken.total)
    });
    println!("\nMeasured just now, on this machine:\n\n{table}");
}
