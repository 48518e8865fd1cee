//! Whatever is done to a file, verifying it says so, and nothing panics.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of these guests are small"
)]

mod common;

use common::{Guest, fixed_options};
use snapfile::verify::{Depth, VerifyOptions, VerifyReport, verify, verify_stream};
use snapfile::{Codec, Encoding, Section, SectionKind, Writer};

/// A file with every kind of frame and chunk, as small as it can be.
fn small_file() -> Vec<u8> {
    let mut memory = vec![0; 16 * 4096];
    noise(&mut memory[4096..2 * 4096], 1);
    for (number, byte) in memory[2 * 4096..4 * 4096].iter_mut().enumerate() {
        *byte = u8::try_from(number / 37 % 200).unwrap();
    }
    memory[4 * 4096..5 * 4096].fill(0xee);
    memory.copy_within(4096..2 * 4096, 6 * 4096);
    let guest = Guest::new(vec![(0, memory), (0x10_0000, vec![0; 3 * 4096])]);
    let options = fixed_options(4096, Codec::Zstd { level: 1 });
    let writer = Writer::new(Vec::new(), &guest.map, options).unwrap();
    let mut encoder = writer.encoder();
    for chunk in (0..writer.layout().chunk_count()).map(snapfile::ChunkNumber) {
        encoder
            .put_chunk(chunk, guest.chunk(writer.layout(), chunk))
            .unwrap();
    }
    for (kind, name) in [(SectionKind::VmState, "vcpu/0"), (SectionKind::Provenance, "")] {
        let payload = b"\xa1\x61a\x01".to_vec();
        let section = Section {
            kind,
            name: name.to_owned(),
            version: 1,
            encoding: Encoding::Cbor,
            payload,
        };
        writer.put_section(&section).unwrap();
    }
    writer.finish().unwrap().0
}

/// Fills `bytes` with what no codec can compress.
fn noise(bytes: &mut [u8], seed: u64) {
    let mut random = Random(seed);
    bytes
        .iter_mut()
        .for_each(|byte| *byte = u8::try_from(random.below(256)).unwrap());
}

/// A small generator (SplitMix64), so that every run tests the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}

fn check(file: &Vec<u8>, depth: Depth) -> VerifyReport {
    let options = VerifyOptions {
        depth,
        threads: 1.try_into().unwrap(),
        ..VerifyOptions::default()
    };
    verify(file, &options).unwrap()
}

#[test]
fn sound_files_are_sound_at_every_depth() {
    let file = small_file();
    for depth in [Depth::Quick, Depth::Checksums, Depth::Deep] {
        let report = check(&file, depth);
        assert_eq!(report.damage, [], "{depth:?}");
        assert_eq!(report.file_bytes, file.len() as u64);
        if depth != Depth::Quick {
            assert_eq!(report.checked_bytes, report.file_bytes, "every byte is covered");
        }
    }
}

#[test]
fn every_flipped_bit_is_reported() {
    let mut file = small_file();
    for bit in 0..file.len() * 8 {
        let mask = 1 << (bit % 8);
        file[bit / 8] ^= mask;
        let report = check(&file, Depth::Checksums);
        assert!(
            !report.is_sound(),
            "bit {bit} of byte {:#x} is not guarded",
            bit / 8
        );
        file[bit / 8] ^= mask;
    }
}

#[test]
fn every_truncation_is_reported_as_incomplete() {
    let file = small_file();
    for len in 0..file.len() {
        let report = check(&file[..len].to_vec(), Depth::Checksums);
        assert!(!report.is_sound(), "{len} bytes of {}", file.len());
        // A frame that happens to begin 256 bytes before the end looks like a broken footer.
        let looks_whole = len >= 4352 && &file[len - 256..len - 252] == b"VMFR";
        let incomplete = report
            .damage
            .iter()
            .any(|damage| damage.problem.name() == "Incomplete");
        assert!(
            incomplete || looks_whole,
            "{len} bytes of {}: {:?}",
            file.len(),
            report.damage
        );
    }
}

#[test]
fn appended_bytes_are_reported() {
    for extra in [1, 7, 8, 64, 256, 5000] {
        let mut file = small_file();
        file.resize(file.len() + extra, 0);
        assert!(!check(&file, Depth::Checksums).is_sound(), "{extra} bytes");
    }
    let twice = [small_file(), small_file()].concat();
    assert!(!check(&twice, Depth::Checksums).is_sound());
}

#[test]
fn splices_are_reported_and_never_panic() {
    let original = small_file();
    let mut random = Random(7);
    let mut tried = 0;
    while tried < 4000 {
        let mut file = original.clone();
        for _ in 0..=random.below(3) {
            splice(&mut file, &mut random);
        }
        if file == original {
            continue;
        }
        tried += 1;
        let options = VerifyOptions {
            depth: Depth::Deep,
            ..VerifyOptions::default()
        };
        match verify(&file, &options) {
            Ok(report) => assert!(!report.is_sound(), "splice {tried} is not noticed"),
            Err(snapfile::Error::Unsupported(_)) => {}
            Err(error) => panic!("splice {tried}: {error}"),
        }
        if let Ok(report) = verify_stream(file.as_slice(), &options) {
            assert!(!report.is_sound(), "splice {tried} is not noticed front to back");
        }
    }
}

/// Copies, moves, removes or overwrites a piece of the file, mostly at the borders of frames.
fn splice(file: &mut Vec<u8>, random: &mut Random) {
    let step = if random.below(2) == 0 { 8 } else { 1 };
    let mut place = |limit: usize| random.below(limit / step + 1) * step;
    let (from, to) = (place(file.len()), place(file.len()));
    let len = place((file.len() - from.max(to)).min(4096));
    let piece = file[from..from + len].to_vec();
    match random.below(4) {
        0 => drop(file.splice(to..to, piece)),
        1 => drop(file.splice(to..to + len, piece)),
        2 => drop(file.drain(from..from + len)),
        _ => file[from..from + len].fill(0),
    }
}

#[test]
fn front_to_back_every_flipped_bit_is_reported_too() {
    let mut file = small_file();
    let options = VerifyOptions::default();
    assert!(verify_stream(file.as_slice(), &options).unwrap().is_sound());
    for bit in 0..file.len() * 8 {
        let mask = 1 << (bit % 8);
        file[bit / 8] ^= mask;
        let report = verify_stream(file.as_slice(), &options).unwrap();
        assert!(
            !report.is_sound(),
            "bit {bit} of byte {:#x} is not guarded",
            bit / 8
        );
        file[bit / 8] ^= mask;
    }
}
