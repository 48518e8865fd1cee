//! Every storage does what a vector of bytes does.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;

use proptest::prelude::*;
use tempfile::TempDir;

use crate::{Access, Cache, FileStorage, MemoryStorage, Storage};

/// Returns a directory on a disk: a file system in memory may know no direct I/O.
fn directory() -> TempDir {
    let program = std::env::current_exe().unwrap();
    tempfile::tempdir_in(program.parent().unwrap()).unwrap()
}

fn new_file(directory: &TempDir, cache: Cache) -> crate::Result<FileStorage> {
    let path = directory.path().join("file");
    File::create(&path).unwrap();
    FileStorage::open(&path, Access::ReadWrite, cache)
}

/// Returns a file without the page cache, or says why the test is skipped.
fn direct_file(directory: &TempDir, test: &str) -> Option<FileStorage> {
    match new_file(directory, Cache::None) {
        Ok(file) => Some(file),
        Err(error) => {
            eprintln!("SKIPPED: {test}: no direct I/O here: {error:?}");
            None
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write { offset: usize, len: usize, value: u8 },
    Read { offset: usize, len: usize },
    SetLen(usize),
    Punch { offset: usize, len: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (offset, len) = (0usize..30_000, 0usize..9_000);
    prop_oneof![
        (offset.clone(), len.clone(), 1u8..).prop_map(|(offset, len, value)| Step::Write {
            offset,
            len,
            value
        }),
        (offset.clone(), len.clone()).prop_map(|(offset, len)| Step::Read { offset, len }),
        offset.clone().prop_map(Step::SetLen),
        (offset, len).prop_map(|(offset, len)| Step::Punch { offset, len }),
    ]
}

/// Does the steps to a storage and to a vector, and compares them.
fn run(storage: &dyn Storage, steps: &[Step]) {
    let mut model: Vec<u8> = Vec::new();
    for step in steps {
        match *step {
            Step::Write { offset, len, value } => {
                storage.write_at(&vec![value; len], offset as u64).unwrap();
                if len > 0 {
                    model.resize(model.len().max(offset + len), 0);
                    model[offset..offset + len].fill(value);
                }
            }
            Step::Read { offset, len } => {
                let mut found = vec![0xee; len];
                storage.read_at(&mut found, offset as u64).unwrap();
                let wanted: Vec<u8> = (offset..offset + len)
                    .map(|at| model.get(at).copied().unwrap_or(0))
                    .collect();
                assert!(found == wanted, "{step:?}");
            }
            Step::SetLen(len) => {
                storage.set_len(len as u64).unwrap();
                model.resize(len, 0);
            }
            Step::Punch { offset, len } => {
                storage.punch_hole(offset as u64, len as u64).unwrap();
                // Whether anything happened is the medium's business: make both the same.
                let end = (offset + len).min(model.len());
                if offset < end {
                    storage.read_at(&mut model[offset..end], offset as u64).unwrap();
                }
            }
        }
        assert_eq!(storage.len().unwrap(), model.len() as u64, "{step:?}");
    }
    let mut whole = vec![0; model.len()];
    storage.read_at(&mut whole, 0).unwrap();
    assert!(whole == model);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn memory_is_a_file(steps in proptest::collection::vec(step(), 1..40)) {
        run(&MemoryStorage::new(), &steps);
    }

    #[test]
    fn a_cached_file_is_a_file(steps in proptest::collection::vec(step(), 1..40)) {
        let directory = directory();
        run(&new_file(&directory, Cache::Writeback).unwrap(), &steps);
    }

    #[test]
    fn a_direct_file_takes_any_position_and_length(steps in proptest::collection::vec(step(), 1..20)) {
        let directory = directory();
        if let Some(file) = direct_file(&directory, "a_direct_file_takes_any_position_and_length") {
            run(&file, &steps);
        }
    }
}

#[test]
fn neighbouring_direct_writes_do_not_lose_each_other() {
    let directory = directory();
    let Some(file) = direct_file(&directory, "neighbouring_direct_writes_do_not_lose_each_other") else {
        return;
    };
    let file = Arc::new(file);
    // Ranges of 100 bytes share the units of the medium.
    let writers: Vec<_> = (0u8..4)
        .map(|writer| {
            let file = Arc::clone(&file);
            thread::spawn(move || {
                for round in 0..50u64 {
                    let offset = (round * 4 + u64::from(writer)) * 100;
                    file.write_at(&[writer + 1; 100], offset).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    let mut found = vec![0; 20_000];
    file.read_at(&mut found, 0).unwrap();
    for (at, byte) in found.iter().enumerate() {
        assert_eq!(usize::from(*byte), at / 100 % 4 + 1, "{at}");
    }
    assert_eq!(file.len().unwrap(), 20_000);
}

#[test]
fn a_large_direct_transfer_is_split() {
    let directory = directory();
    let Some(file) = direct_file(&directory, "a_large_direct_transfer_is_split") else {
        return;
    };
    let bytes: Vec<u8> = (0..3_000_001u32).map(|at| (at % 251) as u8).collect();
    file.write_at(&bytes, 777).unwrap();
    let mut found = vec![0; bytes.len()];
    file.read_at(&mut found, 777).unwrap();
    assert!(found == bytes);
}

#[test]
fn a_file_open_for_reading_or_downgraded_is_not_written() {
    let directory = directory();
    let file = new_file(&directory, Cache::Writeback).unwrap();
    file.write_at(b"abc", 0).unwrap();
    file.downgrade().unwrap();
    assert_eq!(file.access(), Access::ReadOnly);
    let reader = FileStorage::open(file.path().unwrap(), Access::ReadOnly, Cache::Writeback).unwrap();
    for storage in [&file, &reader] {
        assert!(storage.write_at(b"x", 0).is_err());
        assert!(storage.set_len(0).is_err());
        assert!(storage.punch_hole(0, 1).is_err());
    }
    let mut found = [0; 3];
    reader.read_at(&mut found, 0).unwrap();
    assert_eq!(&found, b"abc");
}

#[test]
fn a_lock_ends_with_the_storage_and_not_with_copies_of_its_descriptor() {
    let directory = directory();
    let file = new_file(&directory, Cache::Writeback).unwrap();
    let _copy = file.file().try_clone().unwrap();
    let path = file.path().unwrap().to_owned();
    drop(file);
    FileStorage::open(&path, Access::ReadWrite, Cache::Writeback).unwrap();
}

#[test]
fn holes_of_a_file_are_found() {
    let directory = directory();
    let file = new_file(&directory, Cache::Writeback).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_at(&[1; 65_536], 4 << 20).unwrap();
    file.sync().unwrap();
    let data = file.next_data(0).unwrap();
    assert!(data == Some(4 << 20) || data == Some(0), "{data:?}");
    assert!(file.next_hole(4 << 20).unwrap() >= (4 << 20) + 65_536);
    assert_eq!(file.next_data(8 << 20).unwrap(), None);
    let memory = MemoryStorage::from_bytes(vec![0; 10]);
    assert_eq!(
        (memory.next_data(3).unwrap(), memory.next_hole(3).unwrap()),
        (Some(3), 10)
    );
    assert_eq!(memory.next_data(10).unwrap(), None);
}

#[test]
fn memory_has_an_end() {
    let storage = MemoryStorage::new();
    for result in [
        storage.write_at(&[1], u64::MAX),
        storage.write_at(&[1], 1 << 40),
        storage.set_len(1 << 40),
    ] {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
    assert_eq!(storage.len().unwrap(), 0);
}
