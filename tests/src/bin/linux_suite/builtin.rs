//! The built-in guest: every page of every snapshot is recomputed.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::plan::Plan;

use crate::machine::Machine;
use crate::report::Report;
use crate::snapshot;

/// Boots the built-in guest, takes snapshots under load, checks them all, and goes on from the last.
pub fn run(plan: &Plan, cpus: u32, snapshots: u32, report: &mut Report) -> Result<()> {
    report.scenario(&format!("built-in guest, {cpus} vCPU"));
    let arguments = format!("run --builtin --memory 64M --cpus {cpus} --write-rate 20000");
    let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
    let mut machine = Machine::start(&plan.programs, &plan.work, "builtin", &arguments)?;
    let outcome = rounds(plan, snapshots, &mut machine, report);
    if outcome.is_err() {
        machine.send_logs(report)?;
    }
    outcome
}

fn rounds(plan: &Plan, snapshots: u32, machine: &mut Machine, report: &mut Report) -> Result<()> {
    report.step("boot", |_seen| machine.wait_for_socket())?;
    let file = plan.work.join("builtin.vmsnap");
    for number in 1..=snapshots {
        report.step(&format!("snapshot {number}"), |seen| {
            snapshot::take(machine, &file, &[], seen)?;
            check(plan, &file)
        })?;
    }
    if plan.one_at_a_time {
        machine.control("pause", &[])?;
    }
    let arguments = ["restore".to_owned(), file.display().to_string()];
    let mut restored = Machine::start(&plan.programs, &plan.work, "restored", &arguments)?;
    let again = plan.work.join("again.vmsnap");
    let outcome = report
        .step("restore", |_seen| restored.wait_for_socket())
        .and_then(|()| {
            report.step("snapshot of the restored guest", |seen| {
                snapshot::take(&restored, &again, &[], seen)?;
                check(plan, &again)
            })
        });
    if outcome.is_err() {
        restored.send_logs(report)?;
    }
    outcome
}

fn check(plan: &Plan, file: &std::path::Path) -> Result<()> {
    let output = Command::new(plan.programs.join("snapvm"))
        .arg("check")
        .arg(file)
        .output()
        .context("cannot run snapvm check")?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success(),
        "snapvm check: {}",
        String::from_utf8_lossy(&said)
    );
    Ok(())
}
