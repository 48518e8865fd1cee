//! The copies of the disks as of the capture point, looked at from outside.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::plan::Plan;
use linux_guest::disk;

/// Finds the copy of a disk beside a snapshot.
pub fn of(snapshot: &Path, id: &str) -> Result<PathBuf> {
    let stem = snapshot.file_stem().unwrap_or_default().to_string_lossy();
    let directory = snapshot.parent().context("a snapshot lies in a directory")?;
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&*stem) && name.ends_with(&format!(".{id}.raw")) {
            return Ok(directory.join(name));
        }
    }
    anyhow::bail!("no copy of disk {id} beside {}", snapshot.display())
}

/// Checks a copy of the counter disk and returns the step that it has reached.
pub fn check_counter(copy: &Path, seed: u64) -> Result<u64> {
    let file = File::open(copy).with_context(|| format!("cannot open {}", copy.display()))?;
    disk::check(seed, |block, offset| file.read_exact_at(block, offset)).context("the copied counter disk")
}

/// Checks a copy of the file system: after a replay of its journal nothing must be wrong with it.
pub fn check_files(plan: &Plan, copy: &Path) -> Result<()> {
    let Some(e2fsck) = &plan.e2fsck else {
        return Ok(());
    };
    let throwaway = plan.work.join("throwaway.ext4");
    fs::copy(copy, &throwaway).context("cannot copy a disk")?;
    for arguments in [&["-y", "-E", "journal_only"][..], &["-f", "-n"]] {
        let output = Command::new(e2fsck)
            .args(arguments)
            .arg(&throwaway)
            .output()
            .context("cannot run e2fsck")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.code() == Some(0),
            "e2fsck {arguments:?}: {}: {said}",
            output.status
        );
    }
    fs::remove_file(&throwaway).context("cannot remove a copy")
}
