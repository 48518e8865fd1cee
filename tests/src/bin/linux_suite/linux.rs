//! A Linux guest under every load at once, snapshotted and restored again and again.
//!
//! The source must never notice. Every restored copy must find its memory and its disks as of one instant; every
//! fifth one is given the time to find all of its memory, files and clocks so as well. A copy must notice that it is
//! one where its kernel can.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use linux_guest::status::{Entropy, Status};

use crate::clock::{self, Moments, Policy};
use crate::disks::{ANY_STEPS, Id};
use crate::guest::{Guest, PASSES, has_compared};
use crate::images::{self, Expected};
use crate::machine::{Machine, Said, now_ms};
use crate::report::{Report, Seen};
use crate::snapshot;

/// Of so many snapshots one is looked at thoroughly, beside the last.
const PER_THOROUGH: u32 = 5;

/// One scenario.
#[derive(Debug)]
pub struct Scenario<'a> {
    guest: &'a Guest<'a>,
}

/// A snapshot, and what was seen around it.
#[derive(Debug)]
struct Taken {
    number: u32,
    thorough: bool,
    file: PathBuf,
    commanded_ms: u64,
    before: Said,
    after: Said,
}

impl Taken {
    fn policy(&self) -> Policy {
        if self.number.is_multiple_of(2) {
            Policy::Advance
        } else {
            Policy::Continue
        }
    }
}

impl<'a> Scenario<'a> {
    /// Prepares a scenario.
    pub fn new(guest: &'a Guest<'a>) -> Self {
        Self { guest }
    }

    /// Runs it to its end.
    pub fn run(&self, snapshots: u32, report: &mut Report) -> Result<()> {
        report.scenario(&self.guest.name());
        self.guest.disks.create()?;
        let _sender = self.guest.sender("source")?;
        let mut source = self.guest.boot("source")?;
        let first = match self.with_source(&mut source, snapshots, report) {
            Ok(first) => first,
            Err(error) => {
                source.send_logs(report)?;
                return Err(error);
            }
        };
        let last = source.wait_for_news()?.status;
        report.step("power-off", |_seen| source.power_off())?;
        report.step("the disks in the end", |_seen| {
            self.guest.disks.check_left(&last, ANY_STEPS, Expected::Clean)
        })?;
        report.step("verify the first snapshot", |_seen| {
            snapshot::verify(self.guest.plan, &first.file)
        })?;
        let checked = ["--check-disks".to_owned()];
        self.compare(&first, &checked, "late", report)?;
        if self.guest.disks.are_internal() {
            let in_place = ["--disks", "in-place"].map(str::to_owned);
            self.restore(&first, &in_place, "in-place", report)?;
            report.step("the disks after that", |_seen| {
                Id::ALL.iter().try_for_each(|id| {
                    images::check(self.guest.plan, &self.guest.disks.live(*id), Expected::Clean)
                })
            })?;
        }
        Ok(())
    }

    /// Takes, checks and restores all snapshots; returns the first.
    fn with_source(&self, source: &mut Machine, snapshots: u32, report: &mut Report) -> Result<Taken> {
        report.step("boot", |seen| {
            self.guest.wait_for_loads(source, seen).map(|_said| ())
        })?;
        let mut first = None;
        for number in 1..=snapshots {
            let thorough = number % PER_THOROUGH == 1 || number == snapshots;
            let taken = report.step(&format!("snapshot {number}"), |seen| {
                self.take(source, number, thorough, seen)
            })?;
            if self.guest.plan.one_at_a_time {
                source.control("pause", &[])?;
            }
            report.step(&format!("disks {number}"), |seen| {
                let (before, after) = (&taken.before.status, &taken.after.status);
                self.guest
                    .disks
                    .check_as_of(&taken.file, before, after, thorough, seen)
            })?;
            self.look_at_copies(&taken, number == snapshots, report)?;
            if self.guest.plan.one_at_a_time {
                source.control("resume", &[])?;
            }
            if first.is_none() {
                first = Some(taken);
            } else {
                self.clear(&taken)?;
            }
        }
        if self.guest.disks.are_overlaid() {
            report.step("flatten", |seen| self.flatten(source, snapshots, seen))?;
        }
        report.step("the source has noticed nothing", |seen| {
            let now = source.wait_for_news()?.status;
            let end = source.wait_for("two passes over memory", |status| {
                status.passes >= now.passes + PASSES && has_compared(&now, status)
            })?;
            ensure!(end.status.forks == 0, "the source believes to be a copy");
            ensure!(
                end.status.stream_connections <= 1,
                "the source's stream was cut: {} connections",
                end.status.stream_connections
            );
            count(seen, &end.status);
            Ok(())
        })?;
        first.context("no snapshot was wanted")
    }

    /// Takes a snapshot while the guest is under load.
    fn take(&self, source: &mut Machine, number: u32, thorough: bool, seen: &mut Seen) -> Result<Taken> {
        // The first line may have been on its way since before a pause.
        source.wait_for_news()?;
        let before = source.wait_for_news()?;
        let file = self.guest.path(&format!("guest{number}.vmsnap"));
        let commanded_ms = now_ms();
        let how = self.guest.disks.snapshot_arguments();
        snapshot::take(source, &file, &how, seen)?;
        let after = source.wait_for_news()?;
        Ok(Taken {
            number,
            thorough,
            file,
            commanded_ms,
            before,
            after,
        })
    }

    /// Restores a snapshot as often as it is worth.
    fn look_at_copies(&self, taken: &Taken, last: bool, report: &mut Report) -> Result<()> {
        let name = format!("copy{}", taken.number);
        if !taken.thorough {
            return self.compare(taken, &[], &name, report);
        }
        let overlay = self.guest.path(&format!("{name}.qcow2"));
        if self.guest.disks.are_overlaid() {
            let named = ["--disk".to_owned(), format!("counter={}", overlay.display())];
            self.restore(taken, &named, &name, report)?;
            report.step(&format!("overlay of {name}"), |_seen| {
                images::check(self.guest.plan, &overlay, Expected::Clean)
            })?;
            fs::remove_file(&overlay).context("cannot remove an overlay")?;
        } else {
            self.restore(taken, &[], &name, report)?;
        }
        if last {
            report.step("core", |seen| {
                snapshot::check_core(self.guest.plan, &taken.file, seen)
            })?;
            self.twins(taken, report)?;
        }
        Ok(())
    }

    /// Restores a snapshot until the copy has held both disks against its memory; then it is killed.
    fn compare(&self, taken: &Taken, more: &[String], name: &str, report: &mut Report) -> Result<()> {
        let _sender = self.guest.sender_of_copy(name)?;
        let mut copy = self.guest.restore(&taken.file, taken.policy(), name, more)?;
        let outcome = report.step(&format!("restore to {name}"), |seen| {
            let first = copy.wait_for("the restored guest", |_status| true)?.status;
            seen.time("restore", copy.started.elapsed());
            check_counters(&taken.before.status, &first)?;
            copy.wait_for("disks and memory to be compared", |status| {
                has_compared(&first, status)
            })?;
            Ok(())
        });
        if outcome.is_err() {
            copy.send_logs(report)?;
        }
        outcome
    }

    /// Restores a snapshot; the copy must find everything right.
    fn restore(&self, taken: &Taken, more: &[String], name: &str, report: &mut Report) -> Result<()> {
        let _sender = self.guest.sender_of_copy(name)?;
        let restore_ms = now_ms();
        let mut copy = self.guest.restore(&taken.file, taken.policy(), name, more)?;
        let outcome = report.step(&format!("restore to {name}, thoroughly"), |seen| {
            let halfway = copy.wait_for("the restored guest", |_status| true)?.status;
            seen.time("restore", copy.started.elapsed());
            // The first line may have been on its way to the console at the capture point.
            let first = copy.wait_for("a new line", |status| status.sequence > halfway.sequence)?;
            seen.fact("clock", format!("{:?}", taken.policy()));
            let moments = Moments {
                snapshot_ms: taken.commanded_ms,
                restore_ms,
            };
            clock::check(taken.policy(), moments, &taken.before, &first)?;
            check_counters(&taken.before.status, &first.status)?;
            let end = copy.wait_for("all checks of the restored guest", |status| {
                self.guest.has_worked(&first.status, status)
            })?;
            count(seen, &end.status);
            Ok(())
        });
        if outcome.is_err() {
            copy.send_logs(report)?;
            return outcome;
        }
        report.step(&format!("power-off of {name}"), |_seen| copy.power_off())
    }

    /// Restores one snapshot twice: the two copies must not be the same.
    fn twins(&self, taken: &Taken, report: &mut Report) -> Result<()> {
        if !self.guest.has_twins() {
            return Ok(());
        }
        report.step("two copies of one snapshot", |_seen| {
            let (one, other) = (self.twin(taken, "twin1")?, self.twin(taken, "twin2")?);
            ensure!(one.urandom != other.urandom, "both copies draw {}", one.urandom);
            ensure!(
                one.hwrng != other.hwrng,
                "the host gives {} to both copies",
                one.hwrng
            );
            Ok(())
        })
    }

    /// Restores a snapshot, and returns what the copy draws when it has noticed to be one.
    fn twin(&self, taken: &Taken, name: &str) -> Result<Entropy> {
        let mut twin = self.guest.restore(&taken.file, Policy::Continue, name, &[])?;
        let drawn = twin.wait_for_fork()?;
        twin.power_off()?;
        Ok(drawn)
    }

    /// Lets the source's disks consist of one file each again, while it runs.
    fn flatten(&self, source: &mut Machine, snapshots: u32, seen: &mut Seen) -> Result<()> {
        let depth = |answer: &serde_json::Value, disk: usize| {
            answer["disks"][disk]["layers"].as_array().map(Vec::len)
        };
        let before = source.control("disk list", &[])?;
        source.control("disk flatten", &[])?;
        let after = source.control("disk list", &[])?;
        for disk in 0..Id::ALL.len() {
            let layers = depth(&before, disk).with_context(|| format!("no layers in {before}"))?;
            ensure!(
                layers == snapshots as usize + 1,
                "disk {disk} consists of {layers} files after {snapshots} snapshots"
            );
            ensure!(depth(&after, disk) == Some(1), "not flat: {after}");
        }
        seen.number("layers_before", f64::from(snapshots + 1));
        Ok(())
    }

    /// Removes what belongs to a snapshot and to nothing else.
    fn clear(&self, taken: &Taken) -> Result<()> {
        self.guest.disks.clear(&taken.file)?;
        fs::remove_file(&taken.file).context("cannot remove a snapshot")
    }
}

/// A restored guest cannot have done less than its source had before the snapshot.
fn check_counters(before: &Status, restored: &Status) -> Result<()> {
    for (name, then, now) in [
        ("pages written", before.page_writes, restored.page_writes),
        ("disk steps", before.disk_completed, restored.disk_completed),
        (
            "steps behind files",
            before.tail_completed,
            restored.tail_completed,
        ),
        ("file cycles", before.file_cycles, restored.file_cycles),
        ("lines", before.sequence, restored.sequence),
    ] {
        ensure!(
            now >= then,
            "{name}: {now} after the restore, {then} before the snapshot"
        );
    }
    Ok(())
}

/// Writes down what a guest has done.
fn count(seen: &mut Seen, status: &Status) {
    seen.number("page_writes", status.page_writes as f64);
    seen.number("passes", status.passes as f64);
    seen.number("disk_steps", status.disk_completed as f64);
    seen.number("tail_steps", status.tail_completed as f64);
    seen.number("stream_bytes", status.stream_bytes as f64);
    seen.number("latest_timer_ms", status.timer_late_us as f64 / 1e3);
}
