//! No damage goes unnoticed, and no bytes make a reader panic.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the guests are small and their bytes made up"
)]

mod common;

use common::patch::File;
use common::{Content, Guest, fixed_options, open, read_at_random, read_stream};
use snapfile::{Codec, Encoding, Error, Section, SectionKind, Writer, WriterOptions};

/// A small pseudo-random generator with a seed in every test's name or message.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// A file with every kind of frame and of chunk but parent: zero, fill, raw, zstd or lz4, duplicate.
fn small_file(codec: Codec) -> (Guest, Vec<u8>) {
    let page = 4096;
    let mut random = Random(1);
    let noise: Vec<u8> = (0..page).map(|_| random.next() as u8).collect();
    let text: Vec<u8> = (0..page).map(|i| b'a' + (i % 13) as u8).collect();
    let low = [vec![0; page], noise.clone(), vec![0x55; page], text].concat();
    let guest = Guest::new(vec![(0, low), (1 << 20, [noise, vec![0; page]].concat())]);
    let options = WriterOptions {
        align_raw: true,
        ..fixed_options(4096, codec)
    };
    let writer = Writer::new(Vec::new(), &guest.map, options).unwrap();
    for (name, len) in [("vm", 5), ("vcpu/0", 1500)] {
        let payload = b"state".repeat(len);
        let kind = SectionKind::VmState;
        let section = Section {
            kind,
            name: name.to_owned(),
            version: 1,
            encoding: Encoding::Cbor,
            payload,
        };
        writer.put_section(&section).unwrap();
    }
    let mut encoder = writer.encoder();
    for chunk in (0..writer.layout().chunk_count()).map(snapfile::ChunkNumber) {
        encoder
            .put_chunk(chunk, guest.chunk(writer.layout(), chunk))
            .unwrap();
    }
    drop(encoder);
    (guest.clone(), writer.finish().unwrap().0)
}

fn read_all_at_random(file: &[u8]) -> Result<Content, Error> {
    read_at_random(&open(file)?)
}

/// Runs `check` for all numbers below `count` on two threads.
fn for_all(count: usize, check: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for parity in 0..2 {
            let check = &check;
            scope.spawn(move || (parity..count).step_by(2).for_each(check));
        }
    });
}

#[test]
fn every_flipped_bit_is_found() {
    let (_, file) = small_file(Codec::default());
    let whole = read_all_at_random(&file).unwrap();
    assert_eq!(read_stream(&file, None).unwrap(), whole);
    // All bits of the header have a test of their own, much faster; of long payloads, a sample.
    let sampled =
        |byte: usize| byte < 4096 || long_payloads(&file).iter().any(|payload| payload.contains(&byte));
    let chosen: Vec<usize> = (0..file.len())
        .filter(|byte| byte % 61 == 0 || !sampled(*byte))
        .collect();
    for_all(chosen.len() * 8, |bit| {
        let (byte, mask) = (chosen[bit / 8], 1 << (bit % 8));
        let mut damaged = file.clone();
        damaged[byte] ^= mask;
        assert!(
            read_stream(&damaged, None).is_err(),
            "front to back: byte {byte:#x} mask {mask:#x}"
        );
        match read_all_at_random(&damaged) {
            Ok(content) => assert!(content == whole, "at random: byte {byte:#x} mask {mask:#x}"),
            Err(error) => assert!(error.clause().is_some(), "byte {byte:#x} mask {mask:#x}: {error}"),
        }
    });
}

/// Returns where the payloads are whose bytes are all alike to a reader.
fn long_payloads(file: &[u8]) -> Vec<std::ops::Range<usize>> {
    let file = File(file.to_vec());
    let payload = |(at, _): (usize, u8)| at + 64 + 64..at + 64 + file.u32(at + 16) as usize;
    file.frames()
        .into_iter()
        .map(payload)
        .filter(|payload| payload.len() > 512)
        .collect()
}

#[test]
fn every_truncation_is_incomplete() {
    let (_, file) = small_file(Codec::Lz4);
    for_all(file.len(), |len| {
        if len % 8 > 1 && len % 61 > 0 {
            return;
        }
        for result in [read_all_at_random(&file[..len]), read_stream(&file[..len], None)] {
            assert!(
                matches!(result, Err(Error::Incomplete { .. })),
                "{len} bytes: {result:?}"
            );
        }
    });
}

#[test]
fn bytes_after_the_footer_are_found() {
    let (_, file) = small_file(Codec::default());
    for tail in [1, 7, 8, 256, 4096] {
        let longer = [file.as_slice(), &vec![0; tail]].concat();
        assert!(read_all_at_random(&longer).is_err(), "{tail}");
        assert!(read_stream(&longer, None).is_err(), "{tail}");
    }
}

/// Overwrites, moves or cuts some bytes.
fn mutate(file: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(file.len());
    let len = (1 + random.below(24)).min(file.len() - at);
    match random.below(6) {
        0 => file[at..at + len]
            .iter_mut()
            .for_each(|byte| *byte = random.next() as u8),
        1 => file[at..at + len].fill(if random.below(2) == 0 { 0 } else { 0xff }),
        2 => {
            let from = random.below(file.len() - len);
            file.copy_within(from..from + len, at);
        }
        3 => drop(file.splice(at..at + len, std::iter::empty())),
        4 => {
            let copy = file[at..at + len].to_vec();
            drop(file.splice(at..at, copy));
        }
        _ => {
            // A number at an aligned place: where lengths, counts and offsets are.
            let at = at / 8 * 8;
            let value = [0, 1, u64::MAX, 1 << 31, 1 << 40, random.next()][random.below(6)];
            if let Some(field) = file.get_mut(at..at + 8) {
                field.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

#[test]
fn mutated_files_never_panic_and_are_found() {
    let (_, file) = small_file(Codec::default());
    let whole = read_all_at_random(&file).unwrap();
    for_all(4000, |seed| {
        let mut random = Random(seed as u64 * 2 + 1);
        let mut damaged = file.clone();
        for _ in 0..1 + random.below(4) {
            mutate(&mut damaged, &mut random);
        }
        if damaged == file {
            return;
        }
        assert!(read_stream(&damaged, None).is_err(), "seed {seed}");
        if let Ok(content) = read_all_at_random(&damaged) {
            assert!(content == whole, "seed {seed}");
        }
    });
}

/// With checksums made right again, the mutations reach the rules behind them.
#[test]
fn mutated_files_with_right_checksums_never_panic() {
    for (name, codec) in [("zstd", Codec::default()), ("lz4", Codec::Lz4)] {
        let (_, file) = small_file(codec);
        for_all(12_000, |seed| {
            let mut random = Random(seed as u64 * 2 + 1);
            let mut sealed = File(file.clone());
            for _ in 0..1 + random.below(3) {
                // Structures rather than the contents of chunks.
                let frames = sealed.frames();
                let (at, _) = frames[random.below(frames.len())];
                let field = at + random.below(128) / 4 * 4;
                let value = [0u32, 1, 2, 5, u32::MAX, 1 << 20, random.next() as u32][random.below(7)];
                if field + 4 <= sealed.0.len() {
                    sealed.put(field, &value.to_le_bytes()[..1 + random.below(4)]);
                }
                if random.below(4) == 0 {
                    let header = random.below(128);
                    sealed.0[header] ^= 1 << random.below(8);
                }
                if sealed.frames().len() < 3 {
                    break;
                }
            }
            sealed.seal();
            let results = [
                read_all_at_random(&sealed.0),
                read_stream_without_parent(&sealed.0),
            ];
            for error in results.into_iter().filter_map(Result::err) {
                assert!(error.clause().is_some(), "{name} seed {seed}: {error}");
            }
        });
    }
}

/// As `read_stream`, for files that may say they have a parent.
fn read_stream_without_parent(file: &[u8]) -> Result<Content, Error> {
    let mut reader = snapfile::StreamReader::new(file)?;
    let mut items = 0u64;
    while reader.next_item()?.is_some() {
        items += 1;
    }
    assert!(items <= file.len() as u64, "every item has bytes of its own");
    read_all_at_random(file)
}
