//! `snaptool restore` makes plain files that other programs read.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use common::{CODE, HIGH, MIB, Machine, child, complaint, flip, gdb, json, run, sample, text};
use snapfile::{ChunkNumber, Snapshot};

#[test]
fn raw_memory_has_each_page_at_its_guest_address_and_holes_elsewhere() {
    let (directory, file) = sample();
    let raw = directory.path().join("mem.raw");
    let seen = run(["restore", text(&file), "--memory", text(&raw)], 0);
    assert!(seen.starts_with("memory: "), "{seen}");
    assert!(
        fs::read(&raw).unwrap() == Machine::new().raw_memory(),
        "the memory differs"
    );
    let metadata = fs::metadata(&raw).unwrap();
    assert_eq!(metadata.len(), HIGH + MIB as u64);
    let populated = Machine::new()
        .raw_memory()
        .chunks(4096)
        .filter(|page| page.iter().any(|byte| *byte != 0))
        .count();
    assert!(
        metadata.blocks() * 512 < populated as u64 * 4096 + 65536,
        "zero pages take room"
    );
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[test]
fn vmstate_is_json_of_all_parts() {
    let (directory, file) = sample();
    let state = directory.path().join("vmstate.json");
    let report = json(["restore", "--json", text(&file), "--vmstate", text(&state)], 0);
    assert_eq!(report["written"][0]["what"], "vmstate");
    let state: serde_json::Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    assert_eq!(state["parts"]["vcpu/1"]["state"]["regs"]["rip"], 0x2000);
    assert_eq!(state["parts"]["device/never-heard-of"]["version"], 1);
    let printed = json(["restore", text(&file), "--vmstate", "-"], 0);
    assert_eq!(printed, state);
}

#[test]
fn gdb_shows_registers_memory_and_code_of_the_core() {
    let (directory, file) = sample();
    let core = directory.path().join("mem.core");
    run(["restore", text(&file), "--elf-core", text(&core)], 0);
    let commands = [
        "info threads",
        "info registers rax rip cs fs_base",
        "x/2i $rip",
        "x/2bx 0x480000",
        "thread 2",
        "p $pc",
    ];
    let Some(seen) = gdb(&core, &commands) else { return };
    for expected in [
        "0x123456789abcdef0",
        "0x1000",
        "0xffff888000000000",
        "$0x1",
        "jmp",
        "0xa5\t0xa5",
        "0x2000",
    ] {
        assert!(seen.contains(expected), "no {expected:?} in\n{seen}");
    }
    assert!(!seen.contains("Cannot access"), "{seen}");
    assert_eq!(CODE, 0x1000);
}

#[test]
fn a_core_is_an_elf_file_whose_segments_are_the_regions() {
    let (directory, file) = sample();
    let core = directory.path().join("mem.core");
    run(["restore", text(&file), "--elf-core", text(&core)], 0);
    let bytes = fs::read(&core).unwrap();
    let word = |at: usize, len: usize| {
        bytes[at..at + len]
            .iter()
            .rev()
            .fold(0u64, |word, byte| word << 8 | u64::from(*byte))
    };
    assert_eq!(
        (&bytes[..4], word(16, 2), word(18, 2), word(56, 2)),
        (&b"\x7fELF"[..], 4, 62, 3)
    );
    let header = |number: usize| 64 + 56 * number;
    let machine = Machine::new();
    for (number, address, memory) in [(1, 0, &machine.low), (2, HIGH, &machine.high)] {
        let at = header(number);
        let (offset, virtual_address, physical_address) =
            (word(at + 8, 8), word(at + 16, 8), word(at + 24, 8));
        assert_eq!(
            (word(at, 4), virtual_address, physical_address),
            (1, address, address)
        );
        assert_eq!(word(at + 32, 8), memory.len() as u64);
        let offset = usize::try_from(offset).unwrap();
        assert!(
            bytes[offset..offset + memory.len()] == memory[..],
            "segment {number} differs"
        );
    }
}

#[test]
fn chunks_of_the_parent_come_from_the_parent() {
    let (directory, file) = sample();
    let later = directory.path().join("later.vmsnap");
    let machine = child(&file, &later);
    let raw = directory.path().join("mem.raw");
    run(["restore", text(&later), "--memory", text(&raw)], 0);
    assert!(
        fs::read(&raw).unwrap() == machine.raw_memory(),
        "the memory differs"
    );
    fs::remove_file(&raw).unwrap();
    fs::remove_file(&file).unwrap();
    let complaint = complaint(["restore", text(&later), "--memory", text(&raw)], 2);
    assert!(complaint.contains("name it with --parent"), "{complaint}");
    assert!(!raw.exists());
}

/// The names of all files in the directory.
fn names(directory: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_damaged_snapshot_leaves_old_outputs_and_no_new_files() {
    let (directory, file) = sample();
    let payload = Snapshot::open(&file)
        .unwrap()
        .chunk_entry(ChunkNumber(17))
        .unwrap()
        .location
        + 64;
    flip(&file, payload);
    let raw = directory.path().join("mem.raw");
    fs::write(&raw, "old").unwrap();
    let core = directory.path().join("mem.core");
    let complaint = complaint(
        [
            "restore",
            text(&file),
            "--memory",
            text(&raw),
            "--elf-core",
            text(&core),
        ],
        2,
    );
    assert!(
        complaint.contains("chunk 17") && complaint.contains("(spec 8.6)"),
        "{complaint}"
    );
    assert_eq!(fs::read(&raw).unwrap(), b"old");
    assert_eq!(names(directory.path()), ["mem.raw", "vm.vmsnap"]);
}

#[test]
fn an_output_cannot_replace_the_snapshot() {
    let (_directory, file) = sample();
    let before = fs::read(&file).unwrap();
    let complaint = complaint(["restore", text(&file), "--memory", text(&file)], 2);
    assert!(complaint.contains("is the snapshot itself"), "{complaint}");
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn something_must_be_asked_for_and_it_must_be_possible() {
    let (directory, file) = sample();
    complaint(["restore", text(&file)], 2);
    complaint(["restore", text(&file), "--memory", "/nonexistent/mem.raw"], 2);
    complaint(["restore", text(&file), "--memory", text(directory.path())], 2);
    complaint(["restore", "/nonexistent", "--vmstate", "-"], 2);
    assert_eq!(names(directory.path()), ["vm.vmsnap"]);
}

/// Whenever the interrupt comes, there is the whole file or none, and nothing temporary.
#[test]
fn an_interrupt_leaves_nothing_half_done() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm.vmsnap");
    let mut machine = Machine::new();
    machine.low = machine.low[MIB..MIB + MIB / 4].repeat(16);
    machine.low.truncate(usize::try_from(HIGH).unwrap());
    machine.write(&file);
    for _ in 0..20 {
        let raw = directory.path().join("mem.raw");
        let mut child = Command::new(assert_cmd::cargo::cargo_bin("snaptool"))
            .args(["restore", text(&file), "--memory", text(&raw)])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while names(directory.path()).len() < 2 && child.try_wait().unwrap().is_none() {}
        let pid = i32::try_from(child.id()).unwrap();
        let _ = Command::new("kill").args(["-INT", &pid.to_string()]).status();
        let code = child.wait().unwrap().code();
        match code {
            Some(0) => assert_eq!(names(directory.path()), ["mem.raw", "vm.vmsnap"]),
            other => {
                assert_eq!(other, Some(2));
                assert_eq!(names(directory.path()), ["vm.vmsnap"]);
            }
        }
        let _ = fs::remove_file(raw);
    }
}
