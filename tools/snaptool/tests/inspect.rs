//! `snaptool inspect` shows what is there, of machines it knows nothing about.

mod common;

use common::{HIGH, MIB, json, run, sample, snaptool, text};
use serde_json::{Value as Json, json as value};

#[test]
fn the_summary_has_one_fact_per_line() {
    let (_directory, file) = sample();
    let seen = run(["inspect", text(&file)], 0);
    for line in [
        "format: 1.0",
        "architecture: x86-64",
        "memory: 3.0 MiB in 2 regions",
        "chunks: 48 of 64.0 KiB",
        "fill chunks: 8 (16.7 %)",
        "parent: none",
        "vcpus: 2",
        "devices: never-heard-of",
        "provenance: vm_name: \"test\"",
    ] {
        assert!(
            seen.lines().any(|seen| seen == line),
            "no line {line:?} in\n{seen}"
        );
    }
    assert!(
        !seen.contains('\x1b'),
        "a pipe gets no colours, and a file cannot make some:\n{seen}"
    );
}

#[test]
fn json_has_exact_numbers_under_stable_names() {
    let (_directory, file) = sample();
    let report = json(["inspect", "--json", text(&file)], 0);
    assert_eq!(report["memory_bytes"], 3 * MIB);
    assert_eq!(report["file_bytes"], std::fs::metadata(&file).unwrap().len());
    assert_eq!(
        report["memory_map"][1],
        value!({ "guest_address": HIGH, "len_bytes": MIB })
    );
    assert_eq!(report["root_digest"].as_str().unwrap().len(), 64);
    assert_eq!(report["chunks"]["fill"], 8);
    assert_eq!(report["provenance"][""]["state"]["vm_name"], "test");
    let names: Vec<&str> = report["sections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|section| section["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["", "vcpu/0", "vcpu/1", "device/never-heard-of", ""]);
}

#[test]
fn vmstate_prints_every_field_of_any_device() {
    let (_directory, file) = sample();
    let seen = run(["inspect", "--vmstate", text(&file)], 0);
    for line in [
        "vcpu/0: regs.rip: 0x1000",
        "vcpu/0: regs.rax: 0x123456789abcdef0",
        "vcpu/1: regs.rip: 0x2000",
        "vcpu/0: msrs[0x174]: 0x10",
        "device/never-heard-of: divisor: 1",
    ] {
        assert!(
            seen.lines().any(|seen| seen == line),
            "no line {line:?} in\n{seen}"
        );
    }
    let one = run(["inspect", text(&file), "--vmstate=vcpu/1"], 0);
    assert!(one.lines().all(|line| line.starts_with("vcpu/1: ")), "{one}");
    let report = json(["inspect", "--json", text(&file), "--vmstate=vcpu/0"], 0);
    assert_eq!(
        report["vmstate"]["vcpu/0"]["state"]["regs"]["rax"],
        0x1234_5678_9abc_def0u64
    );
    assert_eq!(report["vmstate"]["vcpu/0"]["state"]["msrs"]["0xc0000080"], 0x500);
    assert!(report["vmstate"].get("vcpu/1").is_none());
}

#[test]
fn chunks_come_one_per_line() {
    let (_directory, file) = sample();
    let seen = run(["inspect", "--chunks", "--json", text(&file)], 0);
    let lines: Vec<Json> = seen
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 48);
    assert_eq!(
        lines[1],
        value!({ "chunk": 1, "guest_address": 65536, "len_bytes": 65536, "kind": "zero" })
    );
    assert_eq!(
        (&lines[47]["kind"], &lines[47]["pattern"]),
        (&value!("fill"), &value!("a5a5a5a5a5a5a5a5"))
    );
    assert_eq!(
        (&lines[16]["kind"], &lines[16]["codec"]),
        (&value!("data"), &value!("raw"))
    );
    assert_eq!(run(["inspect", "--chunks", text(&file)], 0).lines().count(), 49);
}

#[test]
fn map_and_picture_show_where_the_data_is() {
    let (_directory, file) = sample();
    let seen = run(["inspect", "--map", text(&file)], 0);
    assert!(seen.contains("region 0x400000-0x4fffff: 1.0 MiB"), "{seen}");
    assert!(seen.contains("8 zero, 8 fill"), "{seen}");
    let report = json(["inspect", "--map", "--json", text(&file)], 0);
    assert_eq!(report["map"][1]["chunks"]["fill"], 8);
    let seen = run(["inspect", "--picture", text(&file)], 0);
    let rows: Vec<&str> = seen.lines().filter(|line| line.starts_with("0x")).collect();
    assert_eq!(rows.len(), 2, "{seen}");
    assert!(rows[0].ends_with("-...............####....--------"), "{seen}");
    assert!(rows[1].ends_with("........::::::::"), "{seen}");
}

#[test]
fn colours_are_for_terminals_only_and_can_be_forced() {
    let (_directory, file) = sample();
    let forced = snaptool(["inspect", "--picture", text(&file)])
        .env("CLICOLOR_FORCE", "1")
        .output()
        .unwrap();
    assert!(forced.stdout.contains(&0x1b));
}

#[test]
fn what_is_no_snapshot_cannot_be_inspected() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("text");
    std::fs::write(&file, "not a snapshot\n".repeat(1000)).unwrap();
    let complaint = common::complaint(["inspect", text(&file)], 2);
    assert!(
        complaint.starts_with("snaptool: ") && complaint.contains("not a snapshot file"),
        "{complaint}"
    );
    assert_eq!(complaint.lines().count(), 1);
    common::complaint(["inspect", "/nonexistent"], 2);
}

#[test]
fn version_says_which_formats_are_read() {
    let seen = run(["--version"], 0);
    assert!(seen.contains("snapshot formats 1.x"), "{seen}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let (_directory, file) = sample();
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("snaptool"))
        .args(["inspect", "--chunks", "--json", text(&file)])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
