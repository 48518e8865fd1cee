//! Every crash and every failure of the medium during create, apply and delete.
//!
//! Whatever happens, no reference is uncounted, and everything that the image holds is as before or as after.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use super::image::{State, TestImage, options};
use crate::replay::{Crash, FailingStorage, Fault, Recorder};
use crate::snapshots::work::LOADED_BYTES;
use crate::snapshots::{apply, create, delete};
use crate::{CreateOptions, Error, MemoryStorage, Metadata, Result, SnapshotEntry, Storage};

/// Name of the image among the recorded files.
const IMAGE: &str = "image";

type Operation = fn(&mut Metadata) -> Result<SnapshotEntry>;

/// The operations, each with its name.
const OPERATIONS: [(&str, Operation); 5] = [
    ("create", |metadata| create(metadata, "new", UNIX_EPOCH)),
    ("apply another", |metadata| apply(metadata, "1")),
    ("apply the last", |metadata| apply(metadata, "2")),
    ("delete the first", |metadata| delete(metadata, "1")),
    ("delete the last", |metadata| delete(metadata, "2")),
];

/// An image with two snapshots and an active disk that share some tables and clusters, and not others.
fn base(options: &CreateOptions) -> Vec<u8> {
    let mut image = TestImage::new(options);
    image.write_all(0..90, 1);
    image.write_zeroes(5, true);
    image.write_zeroes(6, false);
    if options.refcount_bits > 2 {
        image.write_compressed(10, 9);
    }
    create(&mut image.metadata, "first", UNIX_EPOCH).expect("created");
    image.write_all(60..70, 2);
    image.write_zeroes(7, true);
    if options.refcount_bits > 2 {
        create(&mut image.metadata, "second", UNIX_EPOCH).expect("created");
    } else {
        // Two bits count three references: the tables of the first are left to it alone.
        image.write_all(0..160, 3);
        create(&mut image.metadata, "second", UNIX_EPOCH).expect("created");
    }
    image.write_all(0..4, 4);
    image.write(150, 5);
    image.bytes()
}

/// The state after an operation on an image that nothing happens to.
fn after(bytes: &[u8], operation: Operation) -> State {
    let mut image = TestImage::open(Arc::new(MemoryStorage::from_bytes(bytes.to_vec())));
    operation(&mut image.metadata).expect("nothing fails");
    image.state()
}

/// Judges what a crash left.
fn judge(crash: &Crash, what: &str, before: &State, after: &State) -> TestImage {
    let what = format!("{what}, {}", crash.description());
    let image = TestImage::open(Arc::new(crash.storage(IMAGE).expect("the image")));
    let verdict = image.check();
    assert_eq!(verdict.corruptions, Vec::<String>::new(), "{what}");
    let state = image.state();
    if crash.marks().is_empty() {
        assert!(
            state == *before || state == *after,
            "{what}: neither before nor after: {state:?}"
        );
    } else {
        assert_eq!(state, *after, "{what}: done is done");
        assert_eq!(
            (verdict.leaks, verdict.copied),
            (0, 0),
            "{what}: done leaves nothing behind"
        );
    }
    image
}

/// Records an operation and judges every kill and a sample of power losses.
fn crash_everywhere(operations: &[(&str, Operation)], options: &CreateOptions, bytes: &[u8], losses: usize) {
    for (name, operation) in operations {
        let what = format!(
            "{name}, {} bits, {} bits",
            options.cluster_bits, options.refcount_bits
        );
        let recorder = Recorder::new();
        let file = recorder.existing(IMAGE, bytes.to_vec());
        let mut image = TestImage::open(file);
        let before = image.state();
        let after = after(bytes, *operation);
        match operation(&mut image.metadata) {
            Ok(_) => recorder.mark("done"),
            Err(Error::Limit(_)) => continue,
            Err(error) => panic!("{what}: {error}"),
        }
        let (mut kept, mut changed) = (0, 0);
        for crash in recorder.kills().chain(recorder.power_losses(0x5eed, losses)) {
            let image = judge(&crash, &what, &before, &after);
            if image.state() == before {
                kept += 1
            } else {
                changed += 1
            }
            write_after(image, &what);
        }
        assert!(
            kept > 0 && changed > 0,
            "{what}: crashes on both sides of the commit ({kept}, {changed})"
        );
    }
}

/// Writes to what a crash left, without a repair: snapshots stay as they are and no reference becomes uncounted.
fn write_after(mut image: TestImage, what: &str) {
    let snapshots = image.state().snapshots;
    image.write_all(58..64, 0xee);
    image.write(0, 0xee);
    assert_eq!(
        image.state().snapshots,
        snapshots,
        "{what}: a snapshot is not written to"
    );
    assert_eq!(
        image.check().corruptions,
        Vec::<String>::new(),
        "{what}: after more writes"
    );
}

#[test]
fn crashes_leave_leaks_at_worst() {
    for (cluster_bits, refcount_bits, version) in [(9, 16, 2), (9, 4, 3), (12, 16, 3)] {
        let options = options(cluster_bits, refcount_bits, version);
        crash_everywhere(&OPERATIONS, &options, &base(&options), 10);
    }
}

#[test]
fn crashes_leave_leaks_at_worst_where_refcounts_do_not_fit_into_memory() {
    let options = options(9, 64, 3);
    let bytes = base(&options);
    LOADED_BYTES.set(1024);
    crash_everywhere(&OPERATIONS, &options, &bytes, 10);
}

#[test]
fn crashes_while_the_refcount_table_grows_leave_leaks_at_worst() {
    // One cluster of table has 64 entries for blocks of 64 refcounts: it ends at 2 MiB of file.
    let mut options = options(9, 64, 3);
    options.virtual_size_bytes = 4 << 20;
    let mut image = TestImage::new(&options);
    image.write_all(0..90, 1);
    create(&mut image.metadata, "first", UNIX_EPOCH).expect("created");
    image.write_all(0..60, 2);
    create(&mut image.metadata, "second", UNIX_EPOCH).expect("created");
    let mut next = 100;
    while image.storage().len().expect("length") < (2 << 20) - 512 * 90 {
        image.write_all(next..next + 32, 3);
        next += 32;
    }
    let table = image.metadata.header.refcount_table_offset;
    let mut filled = image.bytes();
    while image.metadata.header.refcount_table_offset == table {
        filled = image.bytes();
        image.write(next, 3);
        next += 1;
    }
    let mut moved = TestImage::open(Arc::new(MemoryStorage::from_bytes(filled.clone())));
    create(&mut moved.metadata, "new", UNIX_EPOCH).expect("created");
    assert_ne!(
        moved.metadata.header.refcount_table_offset, table,
        "the table grows during the operation"
    );
    crash_everywhere(&OPERATIONS[..2], &options, &filled, 1);
}

#[test]
fn failures_of_the_medium_are_reported_and_the_next_try_succeeds() {
    let options = options(9, 16, 3);
    let bytes = base(&options);
    for (name, operation) in OPERATIONS {
        let after = after(&bytes, operation);
        let (writes, syncs) = count_calls(&bytes, operation);
        assert!(
            writes >= 4 && syncs >= 3,
            "{name}: {writes} writes, {syncs} syncs"
        );
        let faults = (0..writes).map(Fault::Write).chain((0..syncs).map(Fault::Sync));
        faults.for_each(|fault| fail(name, operation, fault, &bytes, &after));
    }
}

/// How often an operation writes and syncs.
fn count_calls(bytes: &[u8], operation: Operation) -> (u64, u64) {
    let memory = Arc::new(MemoryStorage::from_bytes(bytes.to_vec()));
    let storage = Arc::new(FailingStorage::new(memory, Fault::None, io::ErrorKind::Other));
    operation(&mut TestImage::open(storage.clone()).metadata).expect("nothing fails");
    (storage.writes(), storage.syncs())
}

/// Lets one call fail, judges what is left, and tries again on the same open image.
fn fail(name: &str, operation: Operation, fault: Fault, bytes: &[u8], after: &State) {
    let what = format!("{name}, {fault:?}");
    let memory = Arc::new(MemoryStorage::from_bytes(bytes.to_vec()));
    let storage = Arc::new(FailingStorage::new(
        memory.clone(),
        fault,
        io::ErrorKind::StorageFull,
    ));
    let mut image = TestImage::open(storage);
    let before = image.state();
    let error = operation(&mut image.metadata).expect_err(&what);
    let full = match &error {
        Error::Leaked { source, .. } => source.is_full(),
        other => other.is_full(),
    };
    assert!(full, "{what}: the cause is told: {error:?}");
    assert_eq!(image.check().corruptions, Vec::<String>::new(), "{what}");
    let state = image.state();
    assert_eq!(
        state,
        TestImage::open(memory).state(),
        "{what}: memory and file agree"
    );
    if matches!(error, Error::Leaked { .. }) {
        assert_eq!(state, *after, "{what}: done, but for the clean-up");
    } else {
        assert!(
            state == before || state == *after,
            "{what}: neither before nor after"
        );
    }
    if state == before {
        operation(&mut image.metadata).expect(&what);
        assert_eq!(image.state(), *after, "{what}: the second try");
        assert_eq!(
            image.check().corruptions,
            Vec::<String>::new(),
            "{what}: the second try"
        );
    }
}

/// A medium that answers nothing any more after so many syncs.
#[derive(Debug)]
struct Dying {
    inner: MemoryStorage,
    syncs_left: AtomicU64,
}

impl Dying {
    fn alive(&self) -> io::Result<&MemoryStorage> {
        match self.syncs_left.load(Ordering::Relaxed) {
            0 => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Ok(&self.inner),
        }
    }
}

impl Storage for Dying {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.alive()?.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.alive()?.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.alive()?.sync()?;
        self.syncs_left.fetch_sub(1, Ordering::Relaxed);
        self.alive().map(drop)
    }

    fn len(&self) -> io::Result<u64> {
        self.alive()?.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.alive()?.set_len(len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.alive()?.punch_hole(offset, len)
    }
}

#[test]
fn where_nobody_knows_what_reached_the_file_nothing_is_written_in_place() {
    let bytes = base(&options(9, 16, 3));
    for (name, operation) in OPERATIONS {
        for syncs in 1..4 {
            let inner = MemoryStorage::from_bytes(bytes.clone());
            let storage = Arc::new(Dying {
                inner,
                syncs_left: AtomicU64::new(syncs),
            });
            let mut image = TestImage::open(storage);
            assert!(image.metadata.l1.iter().any(|entry| entry.is_copied()));
            operation(&mut image.metadata).expect_err("the medium is dead");
            let copied = image.metadata.l1.iter().any(|entry| entry.is_copied());
            assert!(!copied && !image.metadata.l1.is_empty(), "{name}, {syncs} syncs");
        }
    }
}
