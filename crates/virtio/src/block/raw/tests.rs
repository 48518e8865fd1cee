use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::*;

fn image(len: u64) -> (tempfile::NamedTempFile, RawFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(len).unwrap();
    let raw = RawFile::open(file.path(), Access::ReadWrite, Cache::Writeback).unwrap();
    (file, raw)
}

/// More buffers than one system call takes, of lengths that do not fit its end.
#[test]
fn any_number_of_buffers_is_moved_whole() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let data: Vec<u8> = (0..1u32 << 20).map(|i| (i % 241).to_le_bytes()[0]).collect();
    memory.write_slice(&data, GuestAddress(0)).unwrap();
    let (mut at, mut slices) = (0, Vec::new());
    for len in (0..7).cycle().take(4000) {
        slices.push(memory.get_slice(GuestAddress(at as u64), len).unwrap());
        at += len;
    }
    let (file, raw) = image(1 << 20);
    raw.write_at(&slices, 512).unwrap();
    let mut written = vec![0; at];
    file.as_file().read_exact_at(&mut written, 512).unwrap();
    assert_eq!(written, data[..at]);
    memory.write_slice(&vec![0; 1 << 20], GuestAddress(0)).unwrap();
    raw.read_at(&slices, 512).unwrap();
    let mut read = vec![0; at];
    memory.read_slice(&mut read, GuestAddress(0)).unwrap();
    assert_eq!(read, written);
}

#[test]
fn a_file_that_became_shorter_is_an_error_and_not_an_endless_loop() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
    let (file, raw) = image(4096);
    file.as_file().set_len(600).unwrap();
    let slice = memory.get_slice(GuestAddress(0), 1024).unwrap();
    let error = raw.read_at(&[slice], 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn zeros_are_written_where_the_file_system_cannot_make_them() {
    let (file, raw) = image(1 << 20);
    file.as_file().write_all_at(&[1; 1 << 20], 0).unwrap();
    raw.write_zero_bytes(512, 200_000).unwrap();
    let mut content = vec![0; 1 << 20];
    file.as_file().read_exact_at(&mut content, 0).unwrap();
    assert!(content[..512].iter().all(|&byte| byte == 1));
    assert!(content[512..200_512].iter().all(|&byte| byte == 0));
    assert!(content[200_512..].iter().all(|&byte| byte == 1));
}
