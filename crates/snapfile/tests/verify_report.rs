//! What a report says: the structure, the clause, the guest memory that is lost, and all of it.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of these guests are small"
)]

mod common;

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Guest, fixed_options, open};
use snapfile::verify::{Damage, Depth, VerifyOptions, VerifyReport, verify, verify_stream};
use snapfile::{ChunkNumber, Codec, Error, Parent, ParentError, ReadAt, Snapshot, WriterOptions};

const CHUNK: u32 = 16384;

/// A guest whose chunks are all different and do not compress, but for chunk 9, which equals chunk 3.
fn guest() -> Guest {
    let mut memory: Vec<u8> = Vec::new();
    let mut state = 1u64;
    memory.resize_with(128 * CHUNK as usize, || {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) as u8
    });
    memory.copy_within(3 * CHUNK as usize..4 * CHUNK as usize, 9 * CHUNK as usize);
    Guest::new(vec![(0x10_0000, memory)])
}

fn file() -> Vec<u8> {
    guest().write(fixed_options(CHUNK, Codec::Zstd { level: 1 })).0
}

fn check(file: &Vec<u8>, depth: Depth) -> VerifyReport {
    verify(
        file,
        &VerifyOptions {
            depth,
            ..VerifyOptions::default()
        },
    )
    .unwrap()
}

/// Where the data frame of a chunk begins.
fn frame_of(file: &[u8], chunk: u64) -> usize {
    open(file)
        .unwrap()
        .chunk_entry(ChunkNumber(chunk))
        .unwrap()
        .location as usize
}

fn clauses(report: &VerifyReport) -> Vec<&'static str> {
    report
        .damage
        .iter()
        .map(|damage| damage.problem.clause())
        .collect()
}

fn address(chunk: u64) -> std::ops::Range<u64> {
    let start = 0x10_0000 + chunk * u64::from(CHUNK);
    start..start + u64::from(CHUNK)
}

#[test]
fn a_damaged_chunk_names_its_offset_its_guest_memory_and_that_of_its_duplicates() {
    let mut file = file();
    let offset = frame_of(&file, 3);
    file[offset + 100] ^= 4;
    let report = check(&file, Depth::Checksums);
    let [Damage { problem, guest, .. }] = &report.damage[..] else {
        panic!("{:?}", report.damage)
    };
    assert_eq!((problem.clause(), problem.offset()), ("8.6", Some(offset as u64)));
    assert!(
        problem
            .to_string()
            .starts_with(&format!("chunk 3 at offset {offset:#x}: checksum mismatch"))
    );
    assert_eq!(guest.0, [address(3), address(9)]);
}

#[test]
fn damage_behind_a_broken_frame_header_is_found_as_well() {
    let mut file = file();
    let (first, second, third) = (frame_of(&file, 5), frame_of(&file, 6), frame_of(&file, 20));
    file[first + 16] ^= 1; // the stored length
    file[second] ^= 1; // the frame magic
    file[third + 200] ^= 1;
    let report = check(&file, Depth::Checksums);
    let found: Vec<_> = report
        .damage
        .iter()
        .map(|damage| (damage.problem.clause(), damage.guest.0.clone()))
        .collect();
    assert_eq!(
        found,
        [
            ("5.4", vec![address(5)]),
            ("5.3", vec![address(6)]),
            ("8.6", vec![address(20)])
        ]
    );
}

#[test]
fn a_damaged_leaf_names_the_guest_memory_that_it_describes() {
    let mut file = file();
    let at = file
        .windows(6)
        .rposition(|window| window == b"VMFR\x05\x02")
        .unwrap();
    file[at + 64 + 48 * 3] ^= 1;
    for depth in [Depth::Quick, Depth::Checksums] {
        let report = check(&file, depth);
        assert_eq!(clauses(&report), ["9.3"], "{depth:?}");
        let leaf = address(64).start..address(128).start;
        assert_eq!(report.damage[0].guest.0, vec![leaf]);
    }
}

#[test]
fn without_footer_and_index_the_chunks_are_still_checked() {
    let mut file = file();
    let offset = frame_of(&file, 50);
    let len = file.len();
    file[offset + 90] ^= 1;
    file[len - 100] ^= 1;
    let report = check(&file, Depth::Checksums);
    let found: Vec<_> = report
        .damage
        .iter()
        .map(|damage| (damage.problem.clause(), damage.guest.0.clone()))
        .collect();
    assert_eq!(found, [("8.6", vec![address(50)]), ("5.7", vec![])]);
    file.truncate(len - 300);
    assert_eq!(clauses(&check(&file, Depth::Checksums)), ["8.6", "10.2"]);
}

#[test]
fn a_damaged_header_leaves_the_frames_checkable() {
    let mut file = file();
    let offset = frame_of(&file, 50);
    file[80] ^= 1;
    file[offset + 90] ^= 1;
    assert_eq!(clauses(&check(&file, Depth::Checksums)), ["6.2", "8.6"]);
}

#[test]
fn findings_are_bounded_and_the_rest_is_counted() {
    let mut file = file();
    let offsets: Vec<usize> = (0..100)
        .filter(|chunk| *chunk != 9)
        .map(|chunk| frame_of(&file, chunk))
        .collect();
    offsets.iter().for_each(|offset| file[offset + 70] ^= 1);
    let options = VerifyOptions {
        max_findings: 10,
        ..VerifyOptions::default()
    };
    let report = verify(&file, &options).unwrap();
    assert_eq!((report.damage.len(), report.omitted), (10, 89));
}

/// Replaces a chunk's content and makes all its checksums fit again.
fn forge(file: &mut [u8], offset: usize) {
    let stored_len = u32::from_le_bytes(file[offset + 16..offset + 20].try_into().unwrap()) as usize;
    file[offset + 64 + 5] ^= 1;
    let payload = crc32fast::hash(&file[offset + 64..offset + 64 + stored_len.next_multiple_of(8)]);
    file[offset + 56..offset + 60].copy_from_slice(&payload.to_le_bytes());
    let header = crc32fast::hash(&file[offset..offset + 60]);
    file[offset + 60..offset + 64].copy_from_slice(&header.to_le_bytes());
}

#[test]
fn content_forged_together_with_its_checksums_is_found_by_digest() {
    let mut file = file();
    let offset = frame_of(&file, 7);
    forge(&mut file, offset);
    assert!(check(&file, Depth::Checksums).is_sound(), "checksums cannot tell");
    let report = check(&file, Depth::Deep);
    assert_eq!(
        (clauses(&report), &report.damage[0].guest.0[..]),
        (vec!["8.14"], &[address(7)][..])
    );
}

#[test]
fn exchanged_frames_of_the_same_length_are_found_although_every_checksum_fits() {
    let mut file = file();
    let (one, other) = (frame_of(&file, 7), frame_of(&file, 8));
    let len = 64 + CHUNK as usize;
    let content = file[one..one + len].to_vec();
    file.copy_within(other..other + len, one);
    file[other..other + len].copy_from_slice(&content);
    let report = check(&file, Depth::Checksums);
    assert_eq!(clauses(&report), ["9.7", "9.7"]);
}

#[test]
fn a_frame_that_the_index_does_not_know_is_found() {
    let file = file();
    let one = frame_of(&file, 7);
    let len = 64 + CHUNK as usize;
    let mut doubled = file.clone();
    doubled.splice(one..one, file[one..one + len].to_vec());
    assert!(!check(&doubled, Depth::Checksums).is_sound());
}

/// Counts what is read.
struct Counted(Vec<u8>, AtomicU64);

impl ReadAt for Counted {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.0.read_exact_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        ReadAt::len(&self.0)
    }
}

#[test]
fn quick_reads_structures_only() {
    let mut file = file();
    let offset = frame_of(&file, 3);
    file[offset + 100] ^= 4;
    let storage = Counted(file, AtomicU64::new(0));
    let options = VerifyOptions {
        depth: Depth::Quick,
        ..VerifyOptions::default()
    };
    assert!(
        verify(&storage, &options).unwrap().is_sound(),
        "chunks are not looked at"
    );
    assert!(storage.1.into_inner() < 20_000);
}

#[test]
fn the_callback_can_stop_it() {
    let stop = |_, _| ControlFlow::Break(());
    let options = VerifyOptions {
        progress: Some(&stop),
        ..VerifyOptions::default()
    };
    assert!(matches!(verify(&file(), &options), Err(Error::Cancelled)));
    assert!(matches!(
        verify_stream(file().as_slice(), &options),
        Err(Error::Cancelled)
    ));
}

/// A snapshot that keeps all chunks but one in its parent, and the parent.
fn incremental() -> (Vec<u8>, Vec<u8>) {
    let base = file();
    let mut later = guest();
    later.regions[0][50 * CHUNK as usize] ^= 1;
    let parent = Parent {
        snapshot: Arc::new(open(&base).unwrap()),
        hint: "base.vmsnap".to_owned(),
    };
    let options = WriterOptions {
        parent: Some(parent),
        fixed_identity: None,
        ..fixed_options(CHUNK, Codec::Raw)
    };
    (later.write(options).0, base)
}

fn with_parent(file: &Vec<u8>, parent: Option<Snapshot>) -> Result<VerifyReport, Error> {
    let options = VerifyOptions {
        depth: Depth::Deep,
        parent: parent.map(Arc::new),
        ..VerifyOptions::default()
    };
    verify(file, &options)
}

#[test]
fn deep_follows_the_parent_and_finds_damage_in_it() {
    let (file, mut base) = incremental();
    assert!(
        check(&file, Depth::Checksums).is_sound(),
        "checksums need no parent"
    );
    assert!(matches!(
        with_parent(&file, None),
        Err(Error::Parent(ParentError::Missing { .. }))
    ));
    let mut changed = guest();
    changed.regions[0][0] ^= 1;
    let changed = changed.write(fixed_options(CHUNK, Codec::Raw)).0;
    assert!(
        with_parent(&file, Some(open(&changed).unwrap())).is_err(),
        "the wrong parent"
    );
    let report = with_parent(&file, Some(open(&base).unwrap())).unwrap();
    assert!(report.is_sound() && report.decoded_chunks == 128, "{report:?}");
    let offset = frame_of(&base, 30);
    forge(&mut base, offset);
    let report = with_parent(&file, Some(open(&base).unwrap())).unwrap();
    assert_eq!(
        (clauses(&report), &report.damage[0].guest.0[..]),
        (vec!["8.14"], &[address(30)][..])
    );
}
