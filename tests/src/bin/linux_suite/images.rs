//! Disk images looked at from outside: by our own reader, by `snaptool`, by QEMU's program and by `e2fsck`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use e2e::plan::Plan;
use qcow2::{
    Access, Cache, Chain, CreateOptions, FileStorage, Image, ImageFormat, ImageOptions, Layer, Metadata,
    Storage, open_layer,
};

/// Bytes copied at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Exit code of a check that has found clusters which nothing refers to, and nothing else.
const LEAKS: i32 = 3;

/// A disk as of one instant, or of now.
#[derive(Debug, Clone)]
pub enum Disk {
    /// A raw file.
    Raw(PathBuf),
    /// A qcow2 image with its chain.
    Qcow2(PathBuf),
    /// The latest internal snapshot of a qcow2 image, which may be in use.
    Internal(PathBuf),
}

/// What a check of an image may find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Clean,
    /// Leaked clusters, which are what a crash may leave.
    Leaks,
}

/// Makes a disk of `size` bytes at `path` that begins with the content of a file.
pub fn create(path: &Path, format: ImageFormat, size: u64, content: Option<&Path>) -> Result<()> {
    let made = || -> Result<()> {
        let content = content.map(fs::read).transpose()?.unwrap_or_default();
        if format == ImageFormat::Raw {
            let file = File::create(path)?;
            file.set_len(size)?;
            return Ok(file.write_all_at(&content, 0)?);
        }
        File::create(path)?;
        let storage = FileStorage::open(path, Access::ReadWrite, Cache::Writeback)?;
        qcow2::create(&storage, &CreateOptions::new(size))?;
        drop(storage);
        let image = Image::open_chain(path, &ImageOptions::default())?;
        for (offset, piece) in (0..).step_by(PIECE_BYTES).zip(content.chunks(PIECE_BYTES)) {
            if piece.iter().any(|byte| *byte != 0) {
                image.write_at(piece, offset)?;
            }
        }
        Ok(image.flush()?)
    };
    made().with_context(|| format!("making {}", path.display()))
}

impl Disk {
    /// Writes the disk's content to a raw file. Where QEMU's program is at hand and `thorough` says so, it must read
    /// the same.
    pub fn export(&self, plan: &Plan, to: &Path, thorough: bool) -> Result<()> {
        let (path, snapshot) = match self {
            Self::Raw(path) => {
                fs::copy(path, to).with_context(|| format!("copying {}", path.display()))?;
                return Ok(());
            }
            Self::Qcow2(path) => (path, None),
            Self::Internal(path) => (path, Some(latest_snapshot(path)?)),
        };
        let exported = match &snapshot {
            None => open_layer(path, ImageFormat::Qcow2, &ImageOptions::read_only()),
            Some(id) => Image::open_snapshot(unlocked(path)?, None, id, &ImageOptions::read_only())
                .map(|image| Arc::new(image) as Arc<dyn Layer>),
        };
        exported
            .map_err(anyhow::Error::from)
            .and_then(|layer| write_out(&*layer, to))
            .with_context(|| format!("reading {}", path.display()))?;
        match (&plan.qemu_img, snapshot) {
            (Some(qemu_img), None) if thorough => {
                let arguments = [
                    "compare",
                    "-U",
                    "-f",
                    "raw",
                    "-F",
                    "qcow2",
                    text(to)?,
                    text(path)?,
                ];
                expect_success(qemu_img, &arguments)
            }
            (Some(qemu_img), Some(id)) if thorough => read_alike(qemu_img, path, &id, to),
            _ => Ok(()),
        }
    }
}

/// Has QEMU's program read an internal snapshot, of which `ours` is what we have read.
fn read_alike(qemu_img: &[String], path: &Path, id: &str, ours: &Path) -> Result<()> {
    let (copied, theirs) = (ours.with_extension("copied"), ours.with_extension("theirs"));
    // The image itself is locked. What belongs to the snapshot does not change while it is copied.
    fs::copy(path, &copied).with_context(|| format!("copying {}", path.display()))?;
    let snapshot = format!("snapshot.id={id}");
    let arguments = [
        "convert",
        "-f",
        "qcow2",
        "-l",
        &snapshot,
        "-O",
        "raw",
        text(&copied)?,
        text(&theirs)?,
    ];
    expect_success(qemu_img, &arguments)?;
    let same = fs::read(ours)? == fs::read(&theirs)?;
    fs::remove_file(&copied)?;
    fs::remove_file(&theirs)?;
    ensure!(same, "QEMU reads snapshot {id} of {} differently", path.display());
    Ok(())
}

/// Has every checker look at a qcow2 image that nobody writes.
pub fn check(plan: &Plan, path: &Path, expected: Expected) -> Result<()> {
    let snaptool = [plan.programs.join("snaptool").display().to_string()];
    let ours = run(&snaptool, &["disk", "check", text(path)?])?;
    let theirs = match &plan.qemu_img {
        Some(qemu_img) => Some(run(qemu_img, &["check", "-U", "-f", "qcow2", text(path)?])?),
        None => None,
    };
    for (who, (code, said)) in [("snaptool", Some(ours)), ("qemu-img", theirs)]
        .into_iter()
        .filter_map(|(who, result)| Some((who, result?)))
    {
        let good = code == 0 || (expected == Expected::Leaks && code == LEAKS);
        ensure!(good, "{who} check {}: exit code {code}: {said}", path.display());
    }
    Ok(())
}

/// Has every checker look at the images that are below another one. What a crash has leaked stays in them: they belong
/// to snapshots, which know them byte for byte.
pub fn check_below(plan: &Plan, path: &Path) -> Result<()> {
    let chain = Chain::open_shared(path, ImageFormat::Qcow2);
    let chain = chain.with_context(|| format!("opening the chain of {}", path.display()))?;
    let below = chain.layers.iter().skip(1);
    below
        .filter(|layer| layer.format == ImageFormat::Qcow2)
        .try_for_each(|layer| check(plan, &layer.path, Expected::Leaks))
}

/// Frees what a crash has leaked; afterwards nothing may be wrong.
pub fn repair_leaks(plan: &Plan, path: &Path) -> Result<()> {
    let snaptool = [plan.programs.join("snaptool").display().to_string()];
    let (code, said) = run(&snaptool, &["disk", "check", "--repair", "leaks", text(path)?])?;
    ensure!(
        code == 0,
        "repair of {}: exit code {code}: {said}",
        path.display()
    );
    check(plan, path, Expected::Clean)
}

/// Checks a raw file that holds a file system: after a replay of its journal nothing must be wrong with it.
pub fn check_files(plan: &Plan, file: &Path) -> Result<()> {
    let Some(e2fsck) = &plan.e2fsck else {
        return Ok(());
    };
    let e2fsck = [e2fsck.display().to_string()];
    for arguments in [&["-y", "-E", "journal_only"][..], &["-f", "-n"]] {
        expect_success(&e2fsck, &[arguments, &[text(file)?]].concat())?;
    }
    Ok(())
}

/// Whether an image has an internal snapshot of this name.
pub fn has_snapshot(path: &Path, name: &str) -> Result<bool> {
    let metadata = Metadata::open(unlocked(path)?).with_context(|| format!("opening {}", path.display()))?;
    Ok(metadata.snapshots.iter().any(|snapshot| snapshot.name() == name))
}

/// The id of the snapshot that was added to an image last.
fn latest_snapshot(path: &Path) -> Result<String> {
    let metadata = Metadata::open(unlocked(path)?).with_context(|| format!("opening {}", path.display()))?;
    let latest = metadata.snapshots.last();
    let latest = latest.with_context(|| format!("no internal snapshot in {}", path.display()))?;
    Ok(latest.id().into_owned())
}

/// Opens an image whose lock a machine holds, to read what it does not change.
fn unlocked(path: &Path) -> Result<Arc<dyn Storage>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    Ok(Arc::new(FileStorage::from_file(file, Access::ReadOnly)))
}

/// Writes a disk to a raw file, with holes where it is zero.
fn write_out(disk: &dyn Layer, to: &Path) -> Result<()> {
    let file = File::create(to)?;
    file.set_len(disk.len_bytes())?;
    let mut piece = vec![0; PIECE_BYTES];
    for offset in (0..disk.len_bytes()).step_by(PIECE_BYTES) {
        let rest = usize::try_from(disk.len_bytes() - offset).unwrap_or(PIECE_BYTES);
        let piece = &mut piece[..rest.min(PIECE_BYTES)];
        disk.read_at(piece, offset)?;
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(piece, offset)?;
        }
    }
    Ok(())
}

/// Runs a program that must succeed.
fn expect_success(program: &[String], arguments: &[&str]) -> Result<()> {
    let (code, said) = run(program, arguments)?;
    ensure!(code == 0, "{arguments:?}: exit code {code}: {said}");
    Ok(())
}

/// Runs a program; returns its exit code and all that it said.
fn run(program: &[String], arguments: &[&str]) -> Result<(i32, String)> {
    let Some((first, others)) = program.split_first() else {
        bail!("no program");
    };
    let output = Command::new(first)
        .args(others)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {first}"))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    Ok((output.status.code().unwrap_or(-1), said))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("paths of the suite are UTF-8")
}
