//! What was captured into a snapshot file comes back from it.

use memsnap::{CaptureOptions, Error, RestoreProgress, memory_map, restore_eager, stop_and_copy};
use snapfile::{ChunkSize, Snapshot, SnapshotFile, Writer, WriterOptions};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::guest::{
    Backing, HIGH, MIB, Writers, arm_and_freeze, can_capture, contents, populate, two_regions,
};
use crate::sink::assert_same;

/// A writer of chunks of 16 KiB into a new file.
fn writer(memory: &GuestMemoryMmap<()>, path: &std::path::Path) -> Writer<SnapshotFile> {
    let options = WriterOptions {
        chunk_size: ChunkSize::new(16 << 10).unwrap(),
        ..WriterOptions::default()
    };
    Writer::new(
        SnapshotFile::create(path).unwrap(),
        &memory_map(memory).unwrap(),
        options,
    )
    .unwrap()
}

/// A file with the content of `memory`, which nobody writes.
fn snapshot(memory: &GuestMemoryMmap<()>) -> Snapshot {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory.vmsnap");
    let writer = writer(memory, &path);
    stop_and_copy(
        memory,
        writer.layout().clone(),
        CaptureOptions::default(),
        &writer,
    )
    .unwrap();
    writer.finish().unwrap().0.commit().unwrap();
    Snapshot::open(&path).unwrap()
}

#[test]
fn memory_captured_under_load_comes_back() {
    if !can_capture() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory.vmsnap");
    let memory = two_regions(16 * MIB, Backing::Anonymous);
    populate(&memory);
    let writer = writer(&memory, &path);
    let writers = Writers::start(&memory, 2);
    let (capture, expected) = arm_and_freeze(&memory, &writers, 16 << 10, CaptureOptions::default());
    capture.drain(&writer).unwrap();
    writers.end();
    writer.finish().unwrap().0.commit().unwrap();

    for threads in [0, 1, 3] {
        let restored = two_regions(16 * MIB, Backing::Memfd);
        restore_eager(&restored, &Snapshot::open(&path).unwrap(), threads, &|_| {}).unwrap();
        assert_same(&contents(&restored), &expected);
    }
}

#[test]
fn zero_chunks_of_fresh_memory_are_left_alone() {
    let memory = two_regions(4 * MIB, Backing::Anonymous);
    memory.write_obj(1u8, GuestAddress(HIGH)).unwrap();
    let fresh = two_regions(4 * MIB, Backing::Anonymous);
    let report = restore_eager(&fresh, &snapshot(&memory), 2, &|_| {}).unwrap();
    assert_eq!(
        (report.chunks_written, report.chunks_skipped),
        (1, report.chunks - 1)
    );
    assert_same(&contents(&fresh), &contents(&memory));
}

#[test]
fn zero_chunks_overwrite_what_was_there() {
    let memory = two_regions(4 * MIB, Backing::Anonymous);
    let used = two_regions(4 * MIB, Backing::Anonymous);
    populate(&used);
    restore_eager(&used, &snapshot(&memory), 2, &|_| {}).unwrap();
    assert!(contents(&used).iter().all(|byte| *byte == 0));
}

#[test]
fn progress_ends_with_every_chunk() {
    let memory = two_regions(4 * MIB, Backing::Anonymous);
    let snapshot = snapshot(&memory);
    let last = std::sync::Mutex::new(0);
    let watch = |progress: RestoreProgress| {
        let mut last = last.lock().unwrap();
        *last = progress.chunks_done.max(*last);
    };
    let report = restore_eager(&memory, &snapshot, 2, &watch).unwrap();
    assert_eq!(*last.lock().unwrap(), report.chunks);
}

#[test]
fn memory_of_another_shape_is_refused() {
    let snapshot = snapshot(&two_regions(4 * MIB, Backing::Anonymous));
    let other = two_regions(8 * MIB, Backing::Anonymous);
    assert!(matches!(
        restore_eager(&other, &snapshot, 1, &|_| {}),
        Err(Error::MemoryMap { .. })
    ));
}
