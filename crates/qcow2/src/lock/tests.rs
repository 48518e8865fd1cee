//! Who excludes whom among ourselves; QEMU's share of it is in the integration tests.

use std::fs::{File, OpenOptions};

use tempfile::NamedTempFile;

use crate::lock::{Lock, LockError};
use crate::storage::Access::{self, ReadOnly, ReadWrite};

fn open(file: &NamedTempFile) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(file.path())
        .unwrap()
}

fn locked(file: &NamedTempFile, access: Access) -> Result<File, LockError> {
    let opened = open(file);
    Lock::acquire(&opened, access).map(|()| opened)
}

#[test]
fn many_read_or_one_writes() {
    let file = NamedTempFile::new().unwrap();
    let readers = [locked(&file, ReadOnly).unwrap(), locked(&file, ReadOnly).unwrap()];
    assert!(matches!(locked(&file, ReadWrite), Err(LockError::InUse)));
    drop(readers);
    let writer = locked(&file, ReadWrite).unwrap();
    assert!(matches!(locked(&file, ReadWrite), Err(LockError::InUse)));
    assert!(matches!(locked(&file, ReadOnly), Err(LockError::InUse)));
    drop(writer);
    locked(&file, ReadWrite).unwrap();
}

#[test]
fn a_refused_file_holds_no_locks() {
    let file = NamedTempFile::new().unwrap();
    let writer = locked(&file, ReadWrite).unwrap();
    let refused = open(&file);
    assert!(Lock::acquire(&refused, ReadOnly).is_err());
    drop(writer);
    // It would be in the way of a writer if it had kept what it took.
    locked(&file, ReadWrite).unwrap();
}

#[test]
fn a_downgraded_writer_lets_readers_in_and_keeps_writers_out() {
    let file = NamedTempFile::new().unwrap();
    let writer = locked(&file, ReadWrite).unwrap();
    Lock::downgrade(&writer).unwrap();
    let _reader = locked(&file, ReadOnly).unwrap();
    assert!(matches!(locked(&file, ReadWrite), Err(LockError::InUse)));
}

#[test]
fn a_released_file_excludes_nobody() {
    let file = NamedTempFile::new().unwrap();
    let writer = locked(&file, ReadWrite).unwrap();
    Lock::release(&writer).unwrap();
    locked(&file, ReadWrite).unwrap();
}

#[test]
fn a_copy_of_the_descriptor_keeps_the_lock() {
    let file = NamedTempFile::new().unwrap();
    let writer = locked(&file, ReadWrite).unwrap();
    let copy = writer.try_clone().unwrap();
    drop(writer);
    assert!(matches!(locked(&file, ReadOnly), Err(LockError::InUse)));
    drop(copy);
    locked(&file, ReadOnly).unwrap();
}
