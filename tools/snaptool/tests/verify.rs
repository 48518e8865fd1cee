//! `snaptool verify` answers by exit code, and says what is lost.

mod common;

use std::fs;

use common::{child, complaint, flip, json, run, sample, snaptool, text};
use snapfile::{ChunkNumber, Snapshot};

/// Where the payload of a chunk is.
fn payload_of(file: &std::path::Path, chunk: u64) -> u64 {
    Snapshot::open(file)
        .unwrap()
        .chunk_entry(ChunkNumber(chunk))
        .unwrap()
        .location
        + 64
}

#[test]
fn a_sound_file_is_good_at_every_depth() {
    let (_directory, file) = sample();
    for depth in [&[][..], &["--quick"], &["--deep"]] {
        let seen = run([&["verify", text(&file)], depth].concat(), 0);
        assert!(
            seen.starts_with(&format!("{}: sound: ", file.display())),
            "{seen}"
        );
    }
    let report = json(["verify", "--json", "--deep", text(&file)], 0);
    assert_eq!(
        (&report["sound"], &report["depth"]),
        (&true.into(), &"deep".into())
    );
    assert_eq!(report["checked_bytes"], fs::metadata(&file).unwrap().len());
    assert_eq!(report["damage"], serde_json::json!([]));
}

#[test]
fn damage_is_named_with_structure_offset_clause_and_guest_pages() {
    let (_directory, file) = sample();
    let payload = payload_of(&file, 17);
    flip(&file, payload + 9);
    let seen = run(["verify", text(&file)], 1);
    let expected = format!(
        "{}: damaged: chunk 17 at offset {:#x}: checksum mismatch",
        file.display(),
        payload - 64
    );
    assert!(seen.starts_with(&expected), "{seen}");
    assert!(
        seen.trim_end().ends_with("(spec 8.6); pages 272-287 are lost"),
        "{seen}"
    );
    let report = json(["verify", "--json", text(&file)], 1);
    let damage = &report["damage"][0];
    assert_eq!(
        (&damage["rule"], &damage["clause"]),
        (&"ChunkChecksum".into(), &"8.6".into())
    );
    assert_eq!(damage["offset"], payload - 64);
    assert_eq!(
        damage["guest"],
        serde_json::json!([{ "guest_address": 0x11_0000, "len_bytes": 0x1_0000 }])
    );
    run(["verify", "--quick", text(&file)], 0);
}

#[test]
fn all_damage_is_reported_up_to_a_limit() {
    let (_directory, file) = sample();
    for chunk in [16, 17, 18, 19] {
        let payload = payload_of(&file, chunk);
        flip(&file, payload);
    }
    assert_eq!(run(["verify", text(&file)], 1).lines().count(), 4);
    let seen = run(["verify", "--max-findings", "1", text(&file)], 1);
    assert_eq!(seen.lines().count(), 2);
    assert!(seen.contains("and 3 more findings"), "{seen}");
}

#[test]
fn a_file_cut_short_is_incomplete() {
    let (_directory, file) = sample();
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 500]).unwrap();
    let seen = run(["verify", text(&file)], 1);
    assert!(
        seen.contains("damaged: incomplete: no footer") && seen.contains("(spec 10.2)"),
        "{seen}"
    );
    fs::write(&file, b"").unwrap();
    run(["verify", text(&file)], 1);
}

#[test]
fn a_pipe_is_verified_front_to_back() {
    let (_directory, file) = sample();
    let bytes = fs::read(&file).unwrap();
    snaptool(["verify", "-"])
        .write_stdin(bytes.clone())
        .assert()
        .code(0);
    let mut damaged = bytes.clone();
    let payload = usize::try_from(payload_of(&file, 17)).unwrap();
    damaged[payload] ^= 1;
    let assert = snaptool(["verify", "-"]).write_stdin(damaged).assert().code(1);
    let seen = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    assert!(seen.starts_with("-: damaged: chunk 17"), "{seen}");
    snaptool(["verify", "-"])
        .write_stdin(&bytes[..bytes.len() / 2])
        .assert()
        .code(1);
    snaptool(["verify", "--quick", "-"])
        .write_stdin(bytes)
        .assert()
        .code(2);
}

#[test]
fn deep_finds_the_parent_beside_the_file_or_where_it_is_told() {
    let (directory, file) = sample();
    let later = directory.path().join("later.vmsnap");
    child(&file, &later);
    run(["verify", "--deep", text(&later)], 0);
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("moved.vmsnap");
    fs::rename(&file, &moved).unwrap();
    run(["verify", text(&later)], 0);
    let complaint = complaint(["verify", "--deep", text(&later)], 2);
    assert!(complaint.contains("--parent"), "{complaint}");
    run(["verify", "--deep", "--parent", text(&moved), text(&later)], 0);
    fs::rename(&moved, elsewhere.path().join("vm.vmsnap")).unwrap();
    run(
        [
            "verify",
            "--deep",
            "--parent-dir",
            text(elsewhere.path()),
            text(&later),
        ],
        0,
    );
}

#[test]
fn what_cannot_be_read_or_is_newer_is_no_answer() {
    let (_directory, file) = sample();
    complaint(["verify", "/nonexistent"], 2);
    let mut bytes = fs::read(&file).unwrap();
    bytes[8] = 2;
    let header_crc = crc32(&bytes[..4092]);
    bytes[4092..4096].copy_from_slice(&header_crc.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    let complaint = complaint(["verify", text(&file)], 2);
    assert!(complaint.contains("format version 2.0"), "{complaint}");
}

/// The checksum of the format, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| {
        if crc & 1 == 1 {
            (crc >> 1) ^ 0xedb8_8320
        } else {
            crc >> 1
        }
    };
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc))
    })
}
