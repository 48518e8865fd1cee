//! The two disks of a Linux guest: how they are made, named and snapshotted, and what must be on them.
//!
//! `counter` is all counter, and flushed; `files` is a file system, and behind it a counter that is not flushed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::plan::{Disks as Kind, Plan};
use linux_guest::disk::{COUNTER_BYTES, Counter, FILE_SYSTEM_BYTES};
use linux_guest::status::Status;
use qcow2::ImageFormat;

use crate::images::{self, Disk, Expected};
use crate::report::Seen;

/// Steps that a guest may have taken since its last line, where it had all the time it wanted.
pub const ANY_STEPS: u64 = 1 << 32;

/// The disks of one machine.
#[derive(Debug, Clone, Copy)]
pub struct Disks<'a> {
    plan: &'a Plan,
    kind: Kind,
    seed: u64,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Id {
    /// The one that is all counter.
    Counter,
    /// The one with the file system.
    Files,
}

impl Id {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Counter, Self::Files];

    /// The name that the machine knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Files => "files",
        }
    }

    fn counter(self, seed: u64) -> Counter {
        match self {
            Self::Counter => Counter::alone(seed),
            Self::Files => Counter::behind_files(seed),
        }
    }

    /// The step that a guest says to have completed.
    fn completed(self, status: &Status) -> u64 {
        match self {
            Self::Counter => status.disk_completed,
            Self::Files => status.tail_completed,
        }
    }

    /// The step that a guest says to have flushed.
    fn flushed(self, status: &Status) -> u64 {
        match self {
            Self::Counter => status.disk_flushed,
            Self::Files => 0,
        }
    }
}

impl<'a> Disks<'a> {
    /// Describes disks in the plan's directory.
    pub fn new(plan: &'a Plan, kind: Kind, seed: u64) -> Self {
        Self { plan, kind, seed }
    }

    /// What the scenario says of them.
    pub fn name(self) -> &'static str {
        match self.kind {
            Kind::RawCopied => "raw disks, copied",
            Kind::RawOverlaid => "raw disks, overlays",
            Kind::Qcow2Overlaid => "qcow2 disks, overlays",
            Kind::Qcow2Internal => "qcow2 disks, internal snapshots",
        }
    }

    /// Whether snapshots stay in the disks.
    pub fn are_internal(self) -> bool {
        self.kind == Kind::Qcow2Internal
    }

    /// Whether each snapshot puts an overlay on the disks.
    pub fn are_overlaid(self) -> bool {
        matches!(self.kind, Kind::RawOverlaid | Kind::Qcow2Overlaid)
    }

    /// Makes both.
    pub fn create(self) -> Result<()> {
        let format = match self.kind {
            Kind::RawCopied | Kind::RawOverlaid => ImageFormat::Raw,
            Kind::Qcow2Overlaid | Kind::Qcow2Internal => ImageFormat::Qcow2,
        };
        let files = Some(self.plan.files_image.as_path());
        images::create(&self.first(Id::Counter), format, COUNTER_BYTES, None)?;
        images::create(
            &self.first(Id::Files),
            format,
            FILE_SYSTEM_BYTES + COUNTER_BYTES,
            files,
        )
    }

    /// Arguments of `snapvm run`: the disks by the names that they have now.
    pub fn run_arguments(self) -> Vec<String> {
        let argument = |id: Id| {
            let live = self.live(id);
            format!("file={},id={}", live.display(), id.name())
        };
        Id::ALL
            .into_iter()
            .flat_map(|id| ["--disk".to_owned(), argument(id)])
            .collect()
    }

    /// Arguments of `snapvm snapshot`.
    pub fn snapshot_arguments(self) -> [&'static str; 2] {
        let mode = match self.kind {
            Kind::RawCopied => "copy",
            Kind::RawOverlaid | Kind::Qcow2Overlaid => "overlay",
            Kind::Qcow2Internal => "internal",
        };
        ["--disks", mode]
    }

    /// The name of the disk that the machine writes.
    pub fn live(self, id: Id) -> PathBuf {
        let first = self.first(id);
        let over_raw = self.plan.work.join(format!("{}.raw.qcow2", id.name()));
        if over_raw.exists() { over_raw } else { first }
    }

    /// The disk that the machine writes; it must have been shut down or killed.
    fn now(self, id: Id) -> Disk {
        let live = self.live(id);
        if live.extension().is_some_and(|extension| extension == "raw") {
            Disk::Raw(live)
        } else {
            Disk::Qcow2(live)
        }
    }

    /// The disk as of a snapshot.
    pub fn as_of(self, snapshot: &Path, id: Id) -> Disk {
        match self.kind {
            Kind::RawCopied => Disk::Raw(beside(snapshot, id, "raw")),
            Kind::Qcow2Internal => Disk::Internal(self.live(id)),
            Kind::RawOverlaid | Kind::Qcow2Overlaid => {
                let frozen = beside(snapshot, id, "qcow2");
                if frozen.exists() {
                    Disk::Qcow2(frozen)
                } else {
                    Disk::Raw(self.first(id))
                }
            }
        }
    }

    /// Whether a snapshot, complete or not, has frozen a disk or put a snapshot into it.
    pub fn has_kept(self, snapshot: &Path, id: Id) -> Result<bool> {
        if self.are_internal() {
            let name = snapshot.file_name().unwrap_or_default().to_string_lossy();
            images::has_snapshot(&self.live(id), &name)
        } else {
            Ok(beside(snapshot, id, "qcow2").exists())
        }
    }

    /// Checks the disks as of a snapshot against what the guest said before and after it.
    pub fn check_as_of(
        self,
        snapshot: &Path,
        before: &Status,
        after: &Status,
        thorough: bool,
        seen: &mut Seen,
    ) -> Result<()> {
        for id in Id::ALL {
            let disk = self.as_of(snapshot, id);
            if let Disk::Qcow2(path) = &disk {
                images::check(self.plan, path, Expected::Clean)?;
            }
            let exported = self.exported();
            disk.export(self.plan, &exported, thorough)?;
            let step = read(&exported, |read_at| id.counter(self.seed).check(read_at))
                .with_context(|| format!("disk {} as of the snapshot", id.name()))?;
            let (least, most) = (id.completed(before), id.completed(after));
            ensure!(
                (least..=most + 1).contains(&step),
                "disk {} is at step {step}, memory was at {least} before and at {most} after",
                id.name()
            );
            seen.number(&format!("{}_step", id.name()), step as f64);
            self.check_exported(id, &exported)?;
        }
        Ok(())
    }

    /// Checks the disks of a machine that was shut down or killed: what was flushed must be there, and nothing that
    /// was not begun; no image may have more wrong with it than `expected`.
    pub fn check_left(self, last: &Status, started: u64, expected: Expected) -> Result<()> {
        for id in Id::ALL {
            let disk = self.now(id);
            if let Disk::Qcow2(path) = &disk {
                images::check(self.plan, path, expected)?;
                images::check_below(self.plan, path)?;
                if expected == Expected::Leaks {
                    images::repair_leaks(self.plan, path)?;
                }
            }
            let exported = self.exported();
            disk.export(self.plan, &exported, true)?;
            let (flushed, started) = (id.flushed(last), id.completed(last) + started);
            read(&exported, |read_at| {
                id.counter(self.seed).check_after_kill(flushed, started, read_at)
            })
            .with_context(|| format!("disk {} as it was left", id.name()))?;
            self.check_exported(id, &exported)?;
        }
        Ok(())
    }

    /// Removes what a snapshot has beside it that nothing else needs.
    pub fn clear(self, snapshot: &Path) -> Result<()> {
        if self.kind == Kind::RawCopied {
            for id in Id::ALL {
                fs::remove_file(beside(snapshot, id, "raw")).context("cannot remove a copy of a disk")?;
            }
        }
        Ok(())
    }

    /// The file that the machine was begun with.
    fn first(self, id: Id) -> PathBuf {
        let extension = match self.kind {
            Kind::RawCopied | Kind::RawOverlaid => "raw",
            Kind::Qcow2Overlaid | Kind::Qcow2Internal => "qcow2",
        };
        self.plan.work.join(format!("{}.{extension}", id.name()))
    }

    fn exported(self) -> PathBuf {
        self.plan.work.join("exported.raw")
    }

    fn check_exported(self, id: Id, exported: &Path) -> Result<()> {
        if id == Id::Files {
            images::check_files(self.plan, exported)?;
        }
        fs::remove_file(exported).context("cannot remove a copy")
    }
}

/// The file that keeps a disk for a snapshot, by its predictable name.
fn beside(snapshot: &Path, id: Id, extension: &str) -> PathBuf {
    let mut name = snapshot.as_os_str().to_owned();
    name.push(format!(".{}.{extension}", id.name()));
    PathBuf::from(name)
}

/// Has a check read a raw file.
fn read<T>(
    file: &Path,
    check: impl FnOnce(&dyn Fn(&mut [u8], u64) -> std::io::Result<()>) -> std::io::Result<T>,
) -> Result<T> {
    let file = File::open(file).with_context(|| format!("opening {}", file.display()))?;
    Ok(check(&|bytes, offset| file.read_exact_at(bytes, offset))?)
}
