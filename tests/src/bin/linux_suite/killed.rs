//! A `snapvm` that is killed in the midst of snapshots, and started again on the same disk names.
//!
//! Whatever the moment: the disks are what the guest last saw, nothing that was flushed is lost, nothing worse than
//! leaked clusters is wrong with any image, and the snapshot file is either not there or can be restored.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use linux_guest::status::Status;

use crate::clock::Policy;
use crate::disks::{ANY_STEPS, Id};
use crate::guest::{Guest, has_compared};
use crate::images::Expected;
use crate::machine::{Machine, now_ms};
use crate::report::{Report, Seen};
use crate::snapshot;

/// Steps per second that a counter cannot exceed: it waits 80 ms after each.
const STEPS_PER_SECOND: u64 = 13;

/// Time in which the guest's last line may have been on its way, in seconds.
const LINE_SECONDS: u64 = 4;

/// How long an uninterrupted snapshot took, as the one who commands it sees it.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// From the command to the capture point.
    to_point: Duration,
    /// From the command to the end.
    total: Duration,
}

/// Kills the guest's machine in `kills` snapshots.
pub fn run(guest: &Guest<'_>, kills: u32, report: &mut Report) -> Result<()> {
    report.scenario(&format!("killed: {}", guest.name()));
    guest.disks.create()?;
    let mut pace = None;
    for number in 1..=kills {
        let name = format!("life{number}");
        let _sender = guest.sender(&name)?;
        let mut machine = guest.boot(&name)?;
        let outcome = live(guest, &mut machine, pace, number, kills, report);
        let (moment, now_known) = match outcome {
            Ok(lived) => lived,
            Err(error) => {
                machine.send_logs(report)?;
                return Err(error);
            }
        };
        pace = Some(now_known);
        let file = file(guest, number);
        report.step(
            &format!("killed {} ms into snapshot {number}", moment.as_millis()),
            |seen| kill(guest, machine, &file, moment, seen),
        )?;
        if file.exists() {
            let copy = format!("copy{number}");
            report.step(&format!("restore to {copy}"), |_seen| {
                restore(guest, &file, &copy)
            })?;
        }
    }
    let _sender = guest.sender("last")?;
    let mut machine = guest.boot("last")?;
    let booted = report.step("the last life", |seen| guest.wait_for_loads(&mut machine, seen));
    if let Err(error) = booted {
        machine.send_logs(report)?;
        return Err(error);
    }
    let last = machine.wait_for_news()?.status;
    report.step("power-off", |_seen| machine.power_off())?;
    report.step("the disks in the end", |_seen| {
        guest.disks.check_left(&last, ANY_STEPS, Expected::Clean)
    })
}

/// Waits until the guest is well; returns when it is to be killed, and the pace of snapshots.
fn live(
    guest: &Guest<'_>,
    machine: &mut Machine,
    pace: Option<Pace>,
    number: u32,
    kills: u32,
    report: &mut Report,
) -> Result<(Duration, Pace)> {
    report.step(&format!("life {number}"), |seen| {
        guest.wait_for_loads(machine, seen).map(|_said| ())
    })?;
    let pace = match pace {
        Some(pace) => pace,
        None => report.step("a snapshot that is not disturbed", |seen| {
            undisturbed(guest, machine, seen)
        })?,
    };
    Ok((pace.moment(number, kills), pace))
}

/// Takes a snapshot to learn how long it takes.
fn undisturbed(guest: &Guest<'_>, machine: &Machine, seen: &mut Seen) -> Result<Pace> {
    let began = Instant::now();
    snapshot::take(
        machine,
        &guest.path("whole.vmsnap"),
        &guest.disks.snapshot_arguments(),
        seen,
    )?;
    let total = began.elapsed();
    let millis = |name: &str| {
        let figure = seen.figure(name).with_context(|| format!("no {name}"))?;
        Ok::<_, anyhow::Error>(Duration::from_secs_f64(figure / 1e3))
    };
    // The command needs time to reach the machine.
    let on_the_way = total.saturating_sub(millis("total_ms")?) / 2;
    Ok(Pace {
        to_point: on_the_way + millis("command_to_capture_point_ms")?,
        total,
    })
}

impl Pace {
    /// When a snapshot is cut short: first around the capture point, later while memory is written, last near its end.
    fn moment(self, number: u32, kills: u32) -> Duration {
        let before = [0.5, 0.9, 1.0, 1.1];
        let place = number as usize - 1;
        if let Some(part) = before.get(place) {
            return self.to_point.mul_f64(*part);
        }
        let later = f64::from(number) - before.len() as f64;
        let parts = f64::from(kills) - before.len() as f64;
        let writing = self.total.saturating_sub(self.to_point);
        self.to_point + writing.mul_f64(later / parts)
    }
}

/// Begins a snapshot, kills the machine, and looks at what is left.
fn kill(
    guest: &Guest<'_>,
    mut machine: Machine,
    file: &Path,
    moment: Duration,
    seen: &mut Seen,
) -> Result<()> {
    machine.wait_for_news()?;
    let mut command = snapshot::begin(&machine, file, &guest.disks.snapshot_arguments())?;
    thread::sleep(moment);
    let last = machine.kill()?.context("the guest has said nothing")?;
    // It fails, unless the snapshot was complete.
    let _ended = command.wait()?;
    let silent_seconds = now_ms().saturating_sub(last.heard_ms) / 1000 + LINE_SECONDS;
    let counter = guest.disks.has_kept(file, Id::Counter)?;
    let files = guest.disks.has_kept(file, Id::Files)?;
    let after = match (file.exists(), counter, files) {
        (true, _, _) => "its end",
        (false, true, true) => "the capture point",
        (false, false, false) => "nothing that can be seen",
        (false, _, _) => "one disk was kept",
    };
    seen.fact("killed_after", after);
    seen.number("disk_flushed", last.status.disk_flushed as f64);
    guest
        .disks
        .check_left(&last.status, silent_seconds * STEPS_PER_SECOND, Expected::Leaks)
}

/// Restores a snapshot that is there although its machine was killed.
fn restore(guest: &Guest<'_>, file: &Path, name: &str) -> Result<()> {
    let _sender = guest.sender(name)?;
    let mut copy = guest.restore(file, Policy::Continue, name, &[])?;
    let first: Status = copy.wait_for("the restored guest", |_status| true)?.status;
    copy.wait_for("disks and memory to be compared", |status| {
        has_compared(&first, status)
    })?;
    Ok(())
}

fn file(guest: &Guest<'_>, number: u32) -> PathBuf {
    guest.path(&format!("killed{number}.vmsnap"))
}
