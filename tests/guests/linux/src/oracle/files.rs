//! A file system under write: files are created, synced, renamed over others and removed; a log grows.
//!
//! What must be in each file is known in memory. Caches are dropped now and then, so that it is read from the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use linux_guest::content::{Content, mix};
use rustix::mount::{MountFlags, mount};

use super::health::Health;

const PLACE: &str = "/data";
const SLOTS: usize = 16;
/// Cycles after which everything is read again from the disk.
const CYCLES_PER_DROP: u64 = 16;
/// Cycles after which the log begins anew.
const CYCLES_PER_LOG: u64 = 64;
const RECORD_BYTES: usize = 32;
/// Place of the log's records in the rule of content; files have the number of their cycle there.
const LOG: u64 = u64::MAX;
const BREATH: Duration = Duration::from_millis(400);

/// Mounts the disk as ext4 and works on it without end.
pub fn write(disk: &Path, seed: u64, health: &Health) -> Result<()> {
    fs::create_dir_all(PLACE)?;
    // What is deleted is given back to the device.
    mount(disk, PLACE, "ext4", MountFlags::empty(), c"discard")
        .with_context(|| format!("cannot mount {}", disk.display()))?;
    remove_leftovers()?;
    let mut slots = [None; SLOTS];
    for cycle in 0.. {
        let slot = slot_of(cycle);
        put(seed, cycle, &slot_path(slot))?;
        slots[slot] = Some(cycle);
        append(seed, cycle)?;
        let old = slot_of(mix(cycle));
        check_slot(seed, old, slots[old])?;
        if cycle % CYCLES_PER_DROP == CYCLES_PER_DROP - 1 {
            fs::write("/proc/sys/vm/drop_caches", "1")?;
            for (slot, holds) in slots.iter().enumerate() {
                check_slot(seed, slot, *holds)?;
            }
            check_log(seed, cycle)?;
            let gone = slot_of(mix(!cycle));
            if slots[gone].take().is_some() {
                fs::remove_file(slot_path(gone))?;
            }
        }
        health.file_cycles.store(cycle + 1, Relaxed);
        thread::sleep(BREATH);
    }
    Ok(())
}

/// Removes the files of an earlier life of the disk.
fn remove_leftovers() -> Result<()> {
    for entry in fs::read_dir(PLACE)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn slot_of(number: u64) -> usize {
    usize::try_from(number % SLOTS as u64).unwrap_or(0)
}

fn slot_path(slot: usize) -> PathBuf {
    Path::new(PLACE).join(format!("slot{slot}"))
}

/// Content of the file of a cycle, 1 to 32 KiB of it.
fn content(seed: u64, cycle: u64) -> Vec<u8> {
    let bytes = 1024 + mix(seed ^ cycle) % (31 << 10);
    let mut content = vec![0; usize::try_from(bytes).unwrap_or(1024)];
    Content::new(seed, cycle, 0).fill(&mut content);
    content
}

/// Writes a file under another name and renames it to `path`; every second one is synced before.
fn put(seed: u64, cycle: u64, path: &Path) -> Result<()> {
    let new = Path::new(PLACE).join("new");
    let mut file = File::create(&new).context("creating a file")?;
    for piece in content(seed, cycle).chunks(3000) {
        file.write_all(piece)
            .with_context(|| format!("writing the file of cycle {cycle}"))?;
    }
    if cycle.is_multiple_of(2) {
        file.sync_all().context("syncing a file")?;
    }
    fs::rename(&new, path).context("renaming a file")
}

fn check_slot(seed: u64, slot: usize, holds: Option<u64>) -> Result<()> {
    let path = slot_path(slot);
    let Some(cycle) = holds else {
        ensure!(!path.exists(), "slot {slot} is there, and should not be");
        return Ok(());
    };
    let found = fs::read(&path).with_context(|| format!("reading slot {slot}"))?;
    ensure!(
        found == content(seed, cycle),
        "slot {slot} is not the file of cycle {cycle}"
    );
    Ok(())
}

/// Appends the record of a cycle to the log.
fn append(seed: u64, cycle: u64) -> Result<()> {
    let begins = cycle.is_multiple_of(CYCLES_PER_LOG);
    let mut log = OpenOptions::new()
        .create(true)
        .write(true)
        .append(!begins)
        .truncate(begins)
        .open(Path::new(PLACE).join("log"))
        .context("opening the log")?;
    let mut record = [0; RECORD_BYTES];
    Content::new(seed, LOG, cycle).fill(&mut record);
    log.write_all(&record).context("appending to the log")
}

/// Checks that the log has the record of every cycle since it began.
fn check_log(seed: u64, cycle: u64) -> Result<()> {
    let mut found = Vec::new();
    File::open(Path::new(PLACE).join("log"))?.read_to_end(&mut found)?;
    let first = cycle - cycle % CYCLES_PER_LOG;
    let records = found.chunks(RECORD_BYTES);
    ensure!(
        records.len() as u64 == cycle - first + 1,
        "the log has {} records in cycle {cycle}",
        records.len()
    );
    for (cycle, record) in (first..).zip(records) {
        ensure!(
            Content::new(seed, LOG, cycle).matches(record),
            "the log's record of cycle {cycle} is wrong"
        );
    }
    Ok(())
}
