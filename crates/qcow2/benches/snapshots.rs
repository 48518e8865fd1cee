//! Internal snapshots of a disk of 1 TiB whose clusters are all mapped, beside `qemu-img snapshot` on the same file.
//!
//! The image is sparse: it takes less than 1 GiB of the directory for temporary files. Each row is the median of three
//! rounds, in which both tools take turns; caches are warm for both.
//!
//! ```text
//! cargo bench -p qcow2 --bench snapshots
//! ```

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use qcow2::{Access, Cache, FileStorage, Metadata, snapshots};

type Failure = Box<dyn std::error::Error>;

/// Size of the disk.
const DISK_BYTES: u64 = 1 << 40;
/// Bytes that one L2 table maps, in clusters of 64 KiB.
const TABLE_BYTES: u64 = 512 << 20;
const ROUNDS: usize = 3;

/// The steps of a round: what is measured, and how `qemu-img snapshot` is told to do it.
const STEPS: [(&str, &str); 4] = [
    ("create", "-c"),
    ("apply, nothing written since", "-a"),
    ("apply, every L2 table written to since", "-a"),
    ("delete", "-d"),
];

fn main() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("disk.qcow2");
    let size = DISK_BYTES.to_string();
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"])
        .arg(&image)
        .arg(size)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: snapshots: qemu-img made no image");
        return Ok(());
    }
    let mut times = vec![[Vec::new(), Vec::new()]; STEPS.len()];
    for _ in 0..ROUNDS {
        for (tool, run) in [ours, qemus].into_iter().enumerate() {
            for (step, times) in times.iter_mut().enumerate() {
                if step == 2 {
                    write_to_every_table(&image)?;
                }
                let start = Instant::now();
                run(&image, step)?;
                times[tool].push(start.elapsed());
            }
        }
    }
    check(&image)?;
    println!(
        "{:<40} {:>10} {:>10} {:>8}",
        "1 TiB, clusters of 64 KiB", "ours", "qemu-img", "ratio"
    );
    for ((what, _), [ours, qemus]) in STEPS.iter().zip(&mut times) {
        let (ours, qemus) = (median(ours), median(qemus));
        let ratio = qemus.as_secs_f64() / ours.as_secs_f64();
        println!(
            "{what:<40} {:>8.3} s {:>8.3} s {ratio:>7.1}x",
            ours.as_secs_f64(),
            qemus.as_secs_f64()
        );
    }
    Ok(())
}

/// One step with this crate, from opening the file on.
fn ours(image: &Path, step: usize) -> Result<(), Failure> {
    let storage = Arc::new(FileStorage::open(image, Access::ReadWrite, Cache::Writeback)?);
    let mut metadata = Metadata::open(storage)?;
    match step {
        0 => snapshots::create(&mut metadata, "bench", SystemTime::now())?,
        1 | 2 => snapshots::apply(&mut metadata, "bench")?,
        _ => snapshots::delete(&mut metadata, "bench")?,
    };
    Ok(())
}

/// One step with `qemu-img`.
fn qemus(image: &Path, step: usize) -> Result<(), Failure> {
    let status = Command::new("qemu-img")
        .args(["snapshot", STEPS[step].1, "bench"])
        .arg(image)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err("qemu-img snapshot failed".into())
    }
}

/// Writes 4 KiB where each L2 table maps, so that each is copied.
fn write_to_every_table(image: &Path) -> Result<(), Failure> {
    let mut io = Command::new("qemu-io")
        .args(["-f", "qcow2"])
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let mut commands = io.stdin.take().ok_or("no pipe to qemu-io")?;
    for offset in (0..DISK_BYTES).step_by(usize::try_from(TABLE_BYTES)?) {
        writeln!(commands, "write -q {offset} 4k")?;
    }
    drop(commands);
    if io.wait()?.success() {
        Ok(())
    } else {
        Err("qemu-io failed".into())
    }
}

/// The rounds must leave an image without a fault.
fn check(image: &Path) -> Result<(), Failure> {
    let status = Command::new("qemu-img")
        .args(["check", "-q"])
        .arg(image)
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err("qemu-img check finds faults".into())
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
