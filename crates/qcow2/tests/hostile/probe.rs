//! Everything that is done with an image, done to one that may be hostile.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use qcow2::check::CheckReport;
use qcow2::compare::Compare;
use qcow2::diff::DiffSide;
use qcow2::repair::Repair;
use qcow2::{
    Access, Cache, Chain, Header, Image, ImageFormat, ImageOptions, MemoryStorage, Metadata, Result, compare,
    diff, info, map, snapshots, walk,
};

use crate::images::DISK_BYTES;
use crate::meter::{Bounded, bounded};
use crate::peer;

/// Bytes that are read of a disk at once.
const STEP: usize = 96 << 10;

fn storage(bytes: &[u8]) -> Arc<Bounded> {
    Arc::new(Bounded::new(bytes.to_vec()))
}

/// Checks an image.
pub fn check(bytes: &[u8]) -> Result<CheckReport> {
    bounded("check", || {
        let metadata = Metadata::open(storage(bytes))?;
        qcow2::check::check(&metadata, &mut |_, _| ControlFlow::Continue(()))
    })
}

/// Returns a report with its first findings.
pub fn summary(report: &CheckReport) -> String {
    let first: Vec<String> = report.findings.iter().take(3).map(ToString::to_string).collect();
    let (corruptions, leaks, errors) = (report.corruptions, report.leaks, report.check_errors);
    format!("{corruptions} corruptions, {leaks} leaks, {errors} errors: {first:?}")
}

/// Repairs an image; returns what came out if it could be.
pub fn repair(bytes: &[u8]) -> Option<Vec<u8>> {
    let storage = storage(bytes);
    let progress = &mut |_, _| ControlFlow::Continue(());
    let repaired = bounded("repair", || {
        qcow2::repair::repair(storage.clone(), Repair::All, progress)
    });
    let report = repaired.ok()?;
    // What cannot be repaired is told.
    report.after.is_clean().then(|| storage.inner.to_bytes())
}

/// Does everything with an image; only panics, endless work and too much memory are failures.
pub fn everything(bytes: &[u8]) {
    let _ = check(bytes);
    let _ = bounded("info and snapshots", || look(bytes));
    let _ = bounded("walk", || visit(bytes));
    let _ = bounded("reads", || read_disk(bytes, DISK_BYTES));
    let _ = bounded("snapshot reads", || read_snapshots(bytes));
    let _ = bounded("writes", || write_disk(storage(bytes)));
    let _ = bounded("snapshot changes", || change_snapshots(bytes));
    let _ = repair(bytes);
}

/// Does what is done with whole chains to the image at `path`.
pub fn chains(path: &Path) -> Result<()> {
    let open = || Chain::open(path, ImageFormat::Qcow2, Access::ReadOnly, Cache::Writeback);
    let (chain, again) = (open()?, open()?);
    let mut mapped = 0;
    let _ = bounded("map", || {
        map::map(&chain, &mut |extent| {
            assert_eq!(extent.start, mapped, "extents follow each other");
            mapped += extent.length;
            Ok(())
        })
    });
    let _ = bounded("compare", || {
        compare::compare(&chain, &again, Compare::default(), &mut |_, _| {
            ControlFlow::Continue(())
        })
    });
    for wanted in ["1", "2"] {
        let before = DiffSide::Snapshot(wanted.to_owned());
        let _ = bounded("diff", || {
            diff::diff(&chain, &before, &DiffSide::Active, &mut |_| Ok(()))
        });
    }
    Ok(())
}

/// Does to an image what a guest and its owner do; returns its bytes after each step.
pub fn use_image(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    type Step = fn(Arc<Bounded>) -> Result<()>;
    let steps: [(&str, Step); 5] = [
        ("writes", write_disk),
        ("snapshot created", |storage| {
            let made = snapshots::create(&mut Metadata::open(storage)?, "new", SystemTime::UNIX_EPOCH);
            made.map(drop)
        }),
        ("writes after a snapshot", write_disk),
        ("snapshot applied", |storage| {
            snapshots::apply(&mut Metadata::open(storage)?, "1").map(drop)
        }),
        ("snapshot deleted", |storage| {
            snapshots::delete(&mut Metadata::open(storage)?, "1").map(drop)
        }),
    ];
    let storage = storage(bytes);
    let mut after = Vec::new();
    for (name, step) in steps {
        // An error is no excuse: whatever is refused leaves the image as good as it was.
        let _ = bounded(name, || step(storage.clone()));
        after.push((name, storage.inner.to_bytes()));
    }
    after
}

fn look(bytes: &[u8]) -> Result<()> {
    let metadata = Metadata::open(storage(bytes))?;
    let _ = serde_json::to_string(&info(&metadata)?).unwrap();
    for entry in snapshots::list(&metadata) {
        let _ = snapshots::fingerprint(&metadata, &entry.id());
    }
    // Whatever was read can be written.
    let header = &metadata.header;
    let again = header
        .to_bytes()
        .and_then(|bytes| Header::parse(&bytes, u64::MAX >> 1));
    if let Ok(again) = again {
        assert_eq!(again, *header);
    }
    Ok(())
}

fn visit(bytes: &[u8]) -> Result<()> {
    let metadata = Metadata::open(storage(bytes))?;
    let size = metadata.cluster_size();
    let mut visited = 0u64;
    walk::walk(
        metadata.storage().as_ref(),
        size,
        &metadata.l1,
        u64::MAX,
        &mut |_| {
            visited += 1;
            Ok(())
        },
    )
}

/// Reads the first `len_bytes` of a disk, and its last ones.
fn read_disk(bytes: &[u8], len_bytes: u64) -> Result<Vec<u8>> {
    let image = Image::open(storage(bytes), None, &ImageOptions::read_only())?;
    let disk_bytes = image.len_bytes();
    let mut disk = vec![0; usize::try_from(disk_bytes.min(len_bytes)).unwrap()];
    let mut result = Ok(());
    for (index, piece) in disk.chunks_mut(STEP).enumerate() {
        // One bad cluster does not keep the others from being read.
        result = result.and(image.read_at(piece, (index * STEP) as u64));
    }
    let mut end = [0; 512];
    if disk_bytes > 512 {
        result = result.and(image.read_at(&mut end, disk_bytes - 512));
    }
    result.map(|()| disk)
}

fn read_snapshots(bytes: &[u8]) -> Result<()> {
    let metadata = Metadata::open(storage(bytes))?;
    for entry in snapshots::list(&metadata) {
        let opened = Image::open_snapshot(storage(bytes), None, &entry.id(), &ImageOptions::read_only());
        let Ok(image) = opened else { continue };
        let mut piece = vec![0; STEP];
        for offset in (0..image.len_bytes().min(DISK_BYTES)).step_by(STEP) {
            let rest = usize::try_from(image.len_bytes() - offset).unwrap_or(STEP);
            let _ = image.read_at(&mut piece[..rest.min(STEP)], offset);
        }
    }
    Ok(())
}

fn write_disk(storage: Arc<Bounded>) -> Result<()> {
    let image = Image::open(storage, None, &ImageOptions::default())?;
    for offset in [0, 4096, 10_000, 1 << 20, 2 << 20, (2 << 20) + 600_000, 3 << 20] {
        if offset + 9000 <= image.len_bytes() {
            let _ = image.write_at(&[0xa5; 9000], offset);
            let _ = image.write_zeroes(offset, 5000, true);
            let _ = image.discard(offset, 8192);
        }
    }
    image.flush()?;
    image.close()
}

fn change_snapshots(bytes: &[u8]) -> Result<()> {
    type Change = fn(&mut Metadata) -> Result<()>;
    let changes: [Change; 4] = [
        |metadata| snapshots::create(metadata, "new", SystemTime::UNIX_EPOCH).map(drop),
        |metadata| snapshots::apply(metadata, "1").map(drop),
        |metadata| snapshots::delete(metadata, "1").map(drop),
        |metadata| snapshots::delete(metadata, "second").map(drop),
    ];
    for change in changes {
        let mut metadata = Metadata::open(storage(bytes))?;
        let _ = change(&mut metadata);
    }
    Ok(())
}

/// Asserts that a disk that QEMU calls clean has the bytes that QEMU reads; returns whether QEMU reads them.
///
/// Compressed data that is damaged may be an error for us: QEMU reads some of it, whatever it unpacks to.
pub fn compare_with_qemu(image: &Path, bytes: &[u8], damaged: bool) -> bool {
    let header = Header::read(&MemoryStorage::from_bytes(bytes.to_vec())).unwrap();
    if header.backing_name.is_some() {
        // Names by chance lead nowhere.
        return false;
    }
    let raw = image.with_extension("raw");
    let (from, to) = (image.to_str().unwrap(), raw.to_str().unwrap());
    let _ = fs::remove_file(&raw);
    let output = if header.virtual_size_bytes <= 16 * DISK_BYTES {
        peer::run("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", from, to])
    } else {
        let (input, output) = (format!("if={from}"), format!("of={to}"));
        let arguments = [
            "dd", "-f", "qcow2", "-O", "raw", "bs=1M", "count=8", &input, &output,
        ];
        peer::run("qemu-img", arguments)
    };
    let ours = read_disk(bytes, 2 * DISK_BYTES);
    if !output.status.success() {
        // Compressed data is not unpacked by a check.
        return false;
    }
    match ours {
        Err(_) if damaged => return false,
        Err(error) => panic!("qemu-img reads it: {error}"),
        Ok(ours) => assert_same(&ours, &fs::read(&raw).unwrap()),
    }
    true
}

/// Asserts that the disk of a snapshot has the bytes that QEMU reads; returns whether QEMU reads them.
pub fn compare_snapshot_with_qemu(image: &Path, bytes: &[u8], id: &str) -> bool {
    let metadata = Metadata::open(storage(bytes)).unwrap();
    let disk_bytes = metadata.header.virtual_size_bytes;
    let l1_entries = metadata.cluster_size().l1_entries_for(disk_bytes);
    // QEMU shows a snapshot in the size that the disk has now, and zeros where its L1 table is too short.
    let is_whole = snapshots::find(&metadata, id).is_ok_and(|entry| {
        entry.virtual_size_bytes() == Some(disk_bytes) && u64::from(entry.l1_entries) >= l1_entries
    });
    if !is_whole {
        return false;
    }
    let raw = image.with_extension("raw");
    let (from, to) = (image.to_str().unwrap(), raw.to_str().unwrap());
    let _ = fs::remove_file(&raw);
    let wanted = format!("snapshot.id={id}");
    let arguments = ["convert", "-f", "qcow2", "-O", "raw", "-l", &wanted, from, to];
    if !peer::run("qemu-img", arguments).status.success() {
        return false;
    }
    let opened = Image::open_snapshot(storage(bytes), None, id, &ImageOptions::read_only());
    let view = opened.unwrap_or_else(|error| panic!("qemu-img reads snapshot {id}: {error}"));
    let mut ours = vec![0; usize::try_from(view.len_bytes().min(2 * DISK_BYTES)).unwrap()];
    let read = view.read_at(&mut ours, 0);
    read.unwrap_or_else(|error| panic!("qemu-img reads snapshot {id}: {error}"));
    assert_same(&ours, &fs::read(&raw).unwrap());
    true
}

/// Asserts that two readings of a disk are the same, as far as both go.
fn assert_same(ours: &[u8], theirs: &[u8]) {
    let common = ours.len().min(theirs.len());
    let differs = (0..common).find(|index| ours[*index] != theirs[*index]);
    assert!(differs.is_none(), "first difference at {differs:?}");
    // QEMU drops the last bytes of a disk that does not end with a sector.
    assert!(theirs.len() as u64 >= (ours.len() as u64 & !511).min(8 << 20));
}
