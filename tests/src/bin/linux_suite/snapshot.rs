//! Taking a snapshot, and what is checked of every one.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::plan::Plan;
use serde_json::Value;

use crate::machine::Machine;
use crate::report::Seen;

/// How long a write of the guest may wait. The default gives a snapshot up after a time that passes unnoticed on
/// hardware, but in which an emulated machine on a busy host may not get to run at all.
const MAX_STALL: &str = "60s";

/// Takes an asynchronous snapshot and writes down its figures.
pub fn take(machine: &Machine, file: &Path, more: &[&str], seen: &mut Seen) -> Result<()> {
    let answer = machine.control("snapshot", &arguments(file, more)?)?;
    let report = &answer["report"];
    let micros = |value: &Value| value.as_u64().map(Duration::from_micros);
    let statistics = &report["statistics"];
    for (name, value) in [
        ("drain", &statistics["drain_us"]),
        ("pause", &statistics["downtime_us"]),
        (
            "command_to_capture_point",
            &statistics["command_to_capture_point_us"],
        ),
        ("total", &report["total_us"]),
    ] {
        let time = micros(value).with_context(|| format!("no {name} in {report}"))?;
        seen.time(name, time);
    }
    seen.number(
        "file_bytes",
        report["file_bytes"].as_f64().context("no file size")?,
    );
    let path = statistics["capture"]["kernel_path"].as_str();
    let path = path.with_context(|| format!("no kernel path in {statistics}"))?;
    seen.fact("kernel_path", path);
    let expected = expected_path()?;
    ensure!(path == expected, "the kernel path is {path}, not {expected}");
    Ok(())
}

/// Begins a snapshot, which is to be cut short.
pub fn begin(machine: &Machine, file: &Path, more: &[&str]) -> Result<Child> {
    machine.begin("snapshot", &arguments(file, more)?)
}

fn arguments<'a>(file: &'a Path, more: &[&'a str]) -> Result<Vec<&'a str>> {
    let path = file.to_str().context("paths of the suite are UTF-8")?;
    Ok([more, &["--codec", "lz4", "--max-stall", MAX_STALL, path]].concat())
}

/// Checks that `snaptool` finds the kernel in a snapshot: a core file with its addresses, its release, its processors.
pub fn check_core(plan: &Plan, file: &Path, seen: &mut Seen) -> Result<()> {
    let core = plan.work.join("guest.core");
    let output = Command::new(plan.programs.join("snaptool"))
        .args(["restore", "--json"])
        .arg(file)
        .arg("--elf-core")
        .arg(&core)
        .output()
        .context("cannot run snaptool")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "snaptool restore: {}: {said}",
        output.status
    );
    let answer: Value = serde_json::from_slice(&output.stdout).context("answer of snaptool")?;
    let found = &answer["written"][0]["core"];
    ensure!(
        found["addresses"] == "virtual" && found["page_tables_complete"] == true,
        "the core has not the kernel's addresses: {found}"
    );
    let release = found["linux"]["osrelease"].as_str();
    seen.fact(
        "release",
        release.with_context(|| format!("no release in {found}"))?,
    );
    fs::remove_file(&core).context("cannot remove a core")
}

/// Has `snaptool` check all of a snapshot, and the disks that belong to it.
pub fn verify(plan: &Plan, file: &Path) -> Result<()> {
    let output = Command::new(plan.programs.join("snaptool"))
        .args(["verify", "--deep"])
        .arg(file)
        .output()
        .context("cannot run snaptool")?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success(),
        "snaptool verify: {}: {}",
        output.status,
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

/// How memory that is not populated must be protected on this kernel: write-protection covers it since Linux 6.4.
fn expected_path() -> Result<&'static str> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        anyhow::bail!("kernel release {release}");
    };
    Ok(if (major, minor) >= (6, 4) {
        "wp-unpopulated"
    } else {
        "populate-first"
    })
}
