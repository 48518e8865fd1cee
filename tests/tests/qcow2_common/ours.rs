//! Our engine, opened as a machine opens its disks.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use qcow2::{
    Access, Backing, Cache, Chain, CreateOptions, FileStorage, Image, ImageFormat, ImageOptions, Layer, Lock,
    Metadata,
};

use super::pattern;
use super::random::{Operation, Shadow};

/// An open image with its chain.
pub struct Disk(Arc<Image>);

/// An error with its causes.
pub struct Refusal(qcow2::Error);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut next: Option<&dyn std::error::Error> = Some(&self.0);
        while let Some(error) = next {
            write!(f, "{error}; ")?;
            next = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an open disk")
    }
}

impl Disk {
    #[track_caller]
    pub fn open(path: &Path) -> Self {
        Self::try_open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn try_open(path: &Path) -> Result<Self, Refusal> {
        Image::open_chain(path, &ImageOptions::default())
            .map(Self)
            .map_err(Refusal)
    }

    #[track_caller]
    pub fn open_read_only(path: &Path) -> Self {
        let image = Image::open_chain(path, &ImageOptions::read_only()).map_err(Refusal);
        Self(image.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    /// Bytes of a cluster of an image.
    pub fn cluster_bytes(path: &Path) -> u64 {
        metadata(path, Access::ReadOnly).cluster_size().bytes()
    }

    /// Version of an image.
    pub fn version(path: &Path) -> u32 {
        metadata(path, Access::ReadOnly).header.version
    }

    #[track_caller]
    pub fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        self.try_read(offset, len).expect("a read")
    }

    pub fn try_read(&self, offset: u64, len: u64) -> Result<Vec<u8>, Refusal> {
        let mut bytes = vec![0xee; usize::try_from(len).expect("a small range")];
        self.0.read_at(&mut bytes, offset).map_err(Refusal)?;
        Ok(bytes)
    }

    #[track_caller]
    pub fn write(&self, bytes: &[u8], offset: u64) {
        self.0.write_at(bytes, offset).expect("a write");
    }

    /// Writes the pattern of a seed.
    #[track_caller]
    pub fn fill(&self, offset: u64, len: u64, seed: u64) {
        self.write(&pattern(seed, offset, len), offset);
    }

    #[track_caller]
    pub fn zero(&self, offset: u64, len: u64) {
        self.0.write_zeroes(offset, len, false).expect("zeros");
    }

    #[track_caller]
    pub fn zero_unmap(&self, offset: u64, len: u64) {
        self.0.write_zeroes(offset, len, true).expect("zeros");
    }

    #[track_caller]
    pub fn discard(&self, offset: u64, len: u64) {
        self.0.discard(offset, len).expect("a discard");
    }

    #[track_caller]
    pub fn flush(&self) {
        self.0.flush().expect("a flush");
    }

    #[track_caller]
    pub fn close(self) {
        let image = Arc::into_inner(self.0).expect("nobody else has it");
        image.close().expect("it closes");
    }

    /// Leaves the file as SIGKILL would: what is only in memory is lost, and so is the lock.
    pub fn die(self) {
        let file = self.0.file().expect("it has a file");
        Lock::release(file.file()).expect("the lock goes");
        std::mem::forget(self.0);
    }
}

/// Applies an operation to an image and to its shadow.
#[track_caller]
pub fn apply(disk: &Disk, shadow: &Shadow, cluster_bytes: u64, operation: Operation) {
    match operation {
        Operation::Write { offset, len, seed } => {
            disk.fill(offset, len, seed);
            shadow.fill(offset, len, seed);
        }
        Operation::Zero {
            offset,
            len,
            may_unmap,
        } => {
            disk.0.write_zeroes(offset, len, may_unmap).expect("zeros");
            shadow.zero(offset, len);
        }
        Operation::Discard { offset, len } => {
            let before = shadow.read(offset, len);
            disk.discard(offset, len);
            let after = disk.read(offset, len);
            // A hint: each cluster is as before or reads as zeros.
            let mut start = 0;
            while start < len {
                let end = (start + cluster_bytes - (offset + start) % cluster_bytes).min(len);
                let part = usize::try_from(start).expect("small")..usize::try_from(end).expect("small");
                let now = &after[part.clone()];
                let zeros = now.iter().all(|byte| *byte == 0);
                assert!(
                    zeros || *now == before[part],
                    "a discard at {:#x} made other bytes",
                    offset + start
                );
                start = end;
            }
            shadow.write(&after, offset);
        }
        Operation::Read { offset, len } => {
            let (found, expected) = (disk.read(offset, len), shadow.read(offset, len));
            assert!(found == expected, "other bytes at {offset:#x}, {len} long");
        }
        Operation::Flush => disk.flush(),
    }
}

/// Insists that our check finds neither corruptions nor leaks.
#[track_caller]
pub fn assert_clean(path: &Path) {
    let mut go_on = |_, _| std::ops::ControlFlow::Continue(());
    let report = qcow2::check::check(&metadata(path, Access::ReadOnly), &mut go_on).expect("a check");
    let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert!(report.is_clean(), "{}: {findings:#?}", path.display());
}

/// Creates an image.
pub fn create(path: &Path, virtual_size_bytes: u64, version: u32, cluster_bits: u32, refcount_bits: u32) {
    let options = CreateOptions {
        version,
        cluster_bits,
        refcount_bits,
        ..CreateOptions::new(virtual_size_bytes)
    };
    qcow2::create(&new_file(path), &options).expect("a new image");
}

/// Creates an overlay of the length of its backing file, which is named as seen from the overlay's directory.
pub fn create_overlay(path: &Path, backing: &Path, format: &str) {
    let format = ImageFormat::from_name(format).expect("a format");
    let below = path.parent().expect("a directory").join(backing);
    let chain = Chain::open(&below, format, Access::ReadOnly, Cache::Writeback).expect("the chain below");
    let len_bytes = match &chain.layers[0].header {
        Some(header) => header.virtual_size_bytes,
        None => std::fs::metadata(&below).expect("the base").len(),
    };
    let options = CreateOptions::overlay(len_bytes, Backing::new(backing, format));
    qcow2::create(&new_file(path), &options).expect("a new overlay");
}

fn new_file(path: &Path) -> FileStorage {
    FileStorage::from_file(
        std::fs::File::create_new(path).expect("a new file"),
        Access::ReadWrite,
    )
}

#[track_caller]
pub fn snapshot_create(path: &Path, name: &str) {
    qcow2::snapshots::create(&mut metadata(path, Access::ReadWrite), name, SystemTime::now())
        .expect("a snapshot");
}

#[track_caller]
pub fn snapshot_apply(path: &Path, wanted: &str) {
    qcow2::snapshots::apply(&mut metadata(path, Access::ReadWrite), wanted).expect("the snapshot applies");
}

#[track_caller]
pub fn snapshot_delete(path: &Path, wanted: &str) {
    qcow2::snapshots::delete(&mut metadata(path, Access::ReadWrite), wanted).expect("the snapshot goes");
}

#[track_caller]
fn metadata(path: &Path, access: Access) -> Metadata {
    let storage = FileStorage::open(path, access, Cache::Writeback).expect("the file");
    Metadata::open(Arc::new(storage)).expect("the metadata")
}

/// Copies everything out of the backing files.
#[track_caller]
pub fn flatten(path: &Path) {
    let disk = Disk::open(path);
    let mut go_on = |_| std::ops::ControlFlow::Continue(());
    qcow2::flatten::flatten(&disk.0, &qcow2::flatten::FlattenOptions::default(), &mut go_on)
        .expect("it flattens");
    disk.close();
}

/// Writes what an overlay holds into its backing file.
#[track_caller]
pub fn commit(path: &Path) {
    try_commit(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

pub fn try_commit(path: &Path) -> Result<(), Refusal> {
    let mut go_on = |_, _| std::ops::ControlFlow::Continue(());
    let report = qcow2::commit::commit(path, &qcow2::commit::CommitOptions::default(), &mut go_on);
    report.map(drop).map_err(Refusal)
}
