//! Drives `snapvm` over its command line and API against real guests, and writes down what it sees.
//!
//! Static, so that it runs in an initramfs as well as on a usual host. It is told by a plan what to do; every step
//! that it takes becomes an entry of its report at once, so that nothing is lost if the machine below it dies. A round
//! that fails is ended with its logs, and the next one begins.
#![forbid(unsafe_code)]

mod builtin;
mod clock;
mod disks;
mod guest;
mod images;
mod killed;
mod linux;
mod machine;
mod report;
mod sender;
mod snapshot;

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use e2e::plan::{Extra, Plan, Round};

use guest::Guest;
use report::Report;

/// Where the plan is when no argument names it.
const PLAN: &str = "/suite/plan.json";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("linux_suite: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| PLAN.to_owned());
    let text = std::fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    let plan: Plan = serde_json::from_slice(&text).context("the plan")?;
    let mut report = Report::open(&plan.report)?;
    for round in &plan.rounds {
        // What went wrong is in the report.
        let _ = run_round(&plan, round, &mut report);
    }
    report.finish()
}

fn run_round(plan: &Plan, round: &Round, report: &mut Report) -> Result<()> {
    if plan.work.is_dir() {
        std::fs::remove_dir_all(&plan.work).context("cannot clear the work directory")?;
    }
    std::fs::create_dir_all(&plan.work).context("cannot make the work directory")?;
    match round {
        Round::Builtin { cpus, snapshots } => builtin::run(plan, *cpus, *snapshots, report),
        Round::Linux {
            kernel,
            cpus,
            snapshots,
            disks,
            extra,
        } => {
            let guest = Guest::new(plan, kernel, *cpus, *disks, *extra);
            linux::Scenario::new(&guest).run(*snapshots, report)
        }
        Round::Killed { kernel, disks, kills } => {
            let guest = Guest::new(plan, kernel, 1, *disks, Extra::Nothing);
            killed::run(&guest, *kills, report)
        }
        Round::Program { name, command } => {
            report.scenario(name);
            report.step("run", |_seen| run_program(command))
        }
    }
}

fn run_program(command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no program")?;
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&said)
    );
    Ok(())
}
