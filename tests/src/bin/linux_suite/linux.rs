//! A Linux guest under every load at once, snapshotted and restored again and again.
//!
//! The source must never notice. Every restored copy must find all of its memory, disks, files and clocks as of one
//! instant, and must notice that it is a copy where its kernel can.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::plan::{Plan, PlannedKernel};
use linux_guest::disk::DISK_BYTES;
use linux_guest::status::{Entropy, Status};

use crate::clock::{self, Moments, Policy};
use crate::machine::{Machine, Said, now_ms};
use crate::report::{Report, Seen};
use crate::sender::Sender;
use crate::{copy, snapshot};

/// Passes of the checker after which every page was looked at once from beginning to end.
const PASSES: u64 = 2;

/// Addresses of the source, and of a copy that is restored beside it.
const SOURCE_CID: u32 = 3;
const COPY_CID: u32 = 4;

/// One scenario.
#[derive(Debug)]
pub struct Scenario<'a> {
    plan: &'a Plan,
    kernel: &'a PlannedKernel,
    cpus: u32,
    vhost: bool,
    seed: u64,
}

/// A snapshot, and what was seen around it.
#[derive(Debug)]
struct Taken {
    file: PathBuf,
    commanded_ms: u64,
    before: Said,
    after: Said,
}

impl<'a> Scenario<'a> {
    /// Prepares a scenario.
    pub fn new(plan: &'a Plan, kernel: &'a PlannedKernel, cpus: u32, vhost: bool) -> Self {
        Self {
            plan,
            kernel,
            cpus,
            vhost,
            seed: u64::from(cpus) + 10,
        }
    }

    /// Runs it to its end.
    pub fn run(&self, snapshots: u32, report: &mut Report) -> Result<()> {
        let how = if self.vhost { ", vhost" } else { "" };
        report.scenario(&format!("{}, {} vCPU{how}", self.kernel.name, self.cpus));
        let _sender = if self.vhost {
            Sender::on_vsock(self.seed)?
        } else {
            Sender::on_socket(&self.path("source.vsock"), self.seed)?
        };
        let mut source = Machine::start(
            &self.plan.programs,
            &self.plan.work,
            "source",
            &self.boot_arguments()?,
        )?;
        let outcome = self.with_source(&mut source, snapshots, report);
        if outcome.is_err() {
            source.send_logs(report)?;
            return outcome;
        }
        report.step("power-off", |_seen| source.power_off())
    }

    fn with_source(&self, source: &mut Machine, snapshots: u32, report: &mut Report) -> Result<()> {
        report.step("boot", |seen| self.boot(source, seen))?;
        for number in 1..=snapshots {
            let taken = report.step(&format!("snapshot {number}"), |seen| self.take(source, seen))?;
            let policy = if number % 2 == 0 {
                Policy::Advance
            } else {
                Policy::Continue
            };
            report.step(&format!("disks {number}"), |seen| self.check_disks(&taken, seen))?;
            if self.plan.one_at_a_time {
                source.control("pause", &[])?;
            }
            self.restore(&taken, policy, &format!("copy{number}"), report)?;
            if number == snapshots {
                report.step("core", |seen| snapshot::check_core(self.plan, &taken.file, seen))?;
                self.twins(&taken, report)?;
            }
            self.clear(&taken)?;
            if self.plan.one_at_a_time {
                source.control("resume", &[])?;
            }
        }
        report.step("the source has noticed nothing", |seen| {
            let now = source.wait_for_news()?.status;
            let end = source.wait_for("two passes over memory", |status| {
                status.passes >= now.passes + PASSES
            })?;
            ensure!(end.status.forks == 0, "the source believes to be a copy");
            ensure!(
                end.status.stream_connections <= 1,
                "the source's stream was cut: {} connections",
                end.status.stream_connections
            );
            count(seen, &end.status);
            Ok(())
        })
    }

    /// Waits for user space, and until every load is on its way.
    fn boot(&self, source: &mut Machine, seen: &mut Seen) -> Result<()> {
        let first = source.wait_for("user space", |_status| true)?;
        seen.time("boot", source.started.elapsed());
        seen.number("kernel_to_user_space_ms", first.status.user_space_ms as f64);
        let cpus = first.status.cpus;
        ensure!(cpus == self.cpus as usize, "the guest has {cpus} processors");
        let ready = source.wait_for("every load", |status| {
            let counters = [
                status.passes,
                status.page_writes,
                status.disk_flushed,
                status.file_cycles,
                status.timer_ticks,
                status.exchanges,
                status.stream_bytes,
            ];
            counters.iter().all(|counter| *counter > 0)
        })?;
        ensure!(!ready.status.entropy.urandom.is_empty(), "no random bytes");
        ensure!(
            !ready.status.entropy.hwrng.is_empty(),
            "no random bytes of the host"
        );
        Ok(())
    }

    /// Takes a snapshot while the guest is under load.
    fn take(&self, source: &mut Machine, seen: &mut Seen) -> Result<Taken> {
        // The first line may have been on its way since before a pause.
        source.wait_for_news()?;
        let before = source.wait_for_news()?;
        let file = self.path("guest.vmsnap");
        let commanded_ms = now_ms();
        snapshot::take(source, &file, seen)?;
        let after = source.wait_for_news()?;
        Ok(Taken {
            file,
            commanded_ms,
            before,
            after,
        })
    }

    /// Checks the copied disks against what the source said before and after.
    fn check_disks(&self, taken: &Taken, seen: &mut Seen) -> Result<()> {
        let step = copy::check_counter(&copy::of(&taken.file, "counter")?, self.seed)?;
        let (least, most) = (
            taken.before.status.disk_completed,
            taken.after.status.disk_completed,
        );
        ensure!(
            (least..=most + 1).contains(&step),
            "the copied disk is at step {step}, memory was at {least} before and at {most} after"
        );
        seen.number("disk_step", step as f64);
        copy::check_files(self.plan, &copy::of(&taken.file, "files")?)
    }

    /// Restores a snapshot beside the running source; the copy must find everything right.
    fn restore(&self, taken: &Taken, policy: Policy, name: &str, report: &mut Report) -> Result<()> {
        let uds = self.path(&format!("{name}.vsock"));
        let _sender = (!self.vhost)
            .then(|| Sender::on_socket(&uds, self.seed))
            .transpose()?;
        let restore_ms = now_ms();
        let mut copy = self.start_copy(taken, policy, name)?;
        let outcome = report.step(&format!("restore to {name}"), |seen| {
            let halfway = copy.wait_for("the restored guest", |_status| true)?.status;
            seen.time("restore", copy.started.elapsed());
            // The first line may have been on its way to the console at the capture point.
            let first = copy.wait_for("a new line", |status| status.sequence > halfway.sequence)?;
            seen.fact("clock", format!("{policy:?}"));
            let moments = Moments {
                snapshot_ms: taken.commanded_ms,
                restore_ms,
            };
            clock::check(policy, moments, &taken.before, &first)?;
            check_counters(&taken.before.status, &first.status)?;
            let end = copy.wait_for("all checks of the restored guest", |status| {
                has_worked(&first.status, status)
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
        if !self.kernel.knows_generation_id || self.vhost {
            return Ok(());
        }
        report.step("two copies of one snapshot", |_seen| {
            let (one, other) = (self.twin(taken, "twin1")?, self.twin(taken, "twin2")?);
            ensure!(one.urandom != other.urandom, "both copies draw {}", one.urandom);
            // What both draw from /dev/hwrng first is the same: the driver had fetched it before the capture point.
            Ok(())
        })
    }

    /// Restores a snapshot, and returns what the copy draws when it has noticed to be one.
    fn twin(&self, taken: &Taken, name: &str) -> Result<Entropy> {
        let mut twin = self.start_copy(taken, Policy::Continue, name)?;
        let drawn = twin.wait_for_fork()?;
        twin.power_off()?;
        Ok(drawn)
    }

    fn start_copy(&self, taken: &Taken, policy: Policy, name: &str) -> Result<Machine> {
        let mut arguments = vec!["restore".to_owned(), text(&taken.file)?];
        if self.vhost {
            // The kernel gives each address to one machine only, and the source has its own still.
            arguments.extend(["--vsock-cid".to_owned(), COPY_CID.to_string()]);
        } else {
            arguments.extend([
                "--vsock-uds".to_owned(),
                text(&self.path(&format!("{name}.vsock")))?,
            ]);
        }
        if policy == Policy::Advance {
            arguments.push("--advance-clock".to_owned());
        }
        Machine::start(&self.plan.programs, &self.plan.work, name, &arguments)
    }

    /// Removes the files of a snapshot.
    fn clear(&self, taken: &Taken) -> Result<()> {
        for id in ["counter", "files"] {
            fs::remove_file(copy::of(&taken.file, id)?).context("cannot remove a copy of a disk")?;
        }
        fs::remove_file(&taken.file).context("cannot remove a snapshot")
    }

    /// Makes the disks, and says how the guest is booted.
    fn boot_arguments(&self) -> Result<Vec<String>> {
        let (counter, files) = (self.path("counter.raw"), self.path("files.raw"));
        fs::File::create(&counter)
            .and_then(|file| file.set_len(DISK_BYTES))
            .context("cannot make the counter disk")?;
        fs::copy(&self.plan.files_image, &files).context("cannot make the disk for files")?;
        let vsock = if self.vhost {
            format!("cid={SOURCE_CID},vhost")
        } else {
            format!("cid={SOURCE_CID},uds={}", text(&self.path("source.vsock"))?)
        };
        let cmdline = format!(
            "console=ttyS0 quiet panic=-1 vmsnap.memory_mib=16 vmsnap.pages_per_second=200 vmsnap.seed={} vmsnap.vsock=1",
            self.seed
        );
        let (cpus, kernel) = (self.cpus.to_string(), self.kernel);
        Ok([
            ["run", "--kernel", &text(&kernel.image)?]
                .map(str::to_owned)
                .to_vec(),
            ["--initrd", &text(&kernel.initrd)?].map(str::to_owned).to_vec(),
            ["--cmdline", &cmdline, "--memory", "128M", "--cpus", &cpus]
                .map(str::to_owned)
                .to_vec(),
            vec![
                "--disk".to_owned(),
                format!("file={},format=raw,id=counter", text(&counter)?),
            ],
            vec![
                "--disk".to_owned(),
                format!("file={},format=raw,id=files", text(&files)?),
            ],
            vec!["--vsock".to_owned(), vsock],
        ]
        .concat())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.plan.work.join(name)
    }
}

/// Whether a restored guest has looked at everything that it was restored with, and every load goes on.
fn has_worked(first: &Status, now: &Status) -> bool {
    now.passes >= first.passes + PASSES
        && now.page_writes > first.page_writes
        && now.disk_flushed > first.disk_flushed
        && now.file_cycles > first.file_cycles + 16
        && now.timer_ticks > first.timer_ticks
        && now.exchanges > first.exchanges
        && now.stream_bytes > first.stream_bytes
        && now.stream_connections > 1
}

/// A restored guest cannot have done less than its source had before the snapshot.
fn check_counters(before: &Status, restored: &Status) -> Result<()> {
    for (name, then, now) in [
        ("pages written", before.page_writes, restored.page_writes),
        ("disk steps", before.disk_completed, restored.disk_completed),
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
    seen.number("stream_bytes", status.stream_bytes as f64);
    seen.number("latest_timer_ms", status.timer_late_us as f64 / 1e3);
}

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .context("paths of the suite are UTF-8")
}
