//! `snaptool diff` answers whether two snapshots hold the same guest, and in what they differ.

mod common;

use common::{HIGH, MIB, Machine, child, complaint, json, run, sample, text};
use serde_json::json as value;

#[test]
fn a_snapshot_equals_itself_and_another_file_of_the_same_guest() {
    let (directory, file) = sample();
    let other = directory.path().join("other.vmsnap");
    Machine {
        chunk_bytes: 4096,
        note: "another day",
        ..Machine::new()
    }
    .write(&other);
    let seen = run(["diff", text(&file), text(&file)], 0);
    assert_eq!(
        seen,
        "guest state: the same\ndiffering memory: 0 B of 3.0 MiB (0.0 %) in 0 ranges\n"
    );
    let seen = run(["diff", text(&file), text(&other)], 0);
    assert!(
        seen.contains("provenance: vm_name \"test\" -> \"another day\""),
        "{seen}"
    );
}

#[test]
fn memory_and_registers_that_differ_are_named() {
    let (directory, file) = sample();
    let other = directory.path().join("other.vmsnap");
    let mut machine = Machine {
        chunk_bytes: 16384,
        rip: 0x1005,
        ..Machine::new()
    };
    machine.low[0x3000] = 1;
    machine.low[0x4fff] = 1;
    machine.high[MIB - 1] = 0;
    machine.write(&other);
    let seen = run(["diff", text(&file), text(&other)], 1);
    for line in [
        "guest state: differs",
        "memory: 0x3000-0x4fff (8.0 KiB) differs",
        "memory: 0x4ff000-0x4fffff (4.0 KiB) differs",
        "differing memory: 12.0 KiB of 3.0 MiB (0.4 %) in 2 ranges; 3 single bytes changed",
        "vcpu/0: regs.rip 0x1000 -> 0x1005",
    ] {
        assert!(
            seen.lines().any(|seen| seen == line),
            "no line {line:?} in\n{seen}"
        );
    }
    assert!(!seen.contains("vcpu/1"), "{seen}");
    let report = json(["diff", "--json", text(&file), text(&other)], 1);
    assert_eq!(
        report["memory"]["ranges"][1],
        value!({ "guest_address": HIGH + 0xff000, "len_bytes": 4096 })
    );
    assert_eq!(report["memory"]["changed_bytes"], 3);
    let fields = value!([{ "path": "regs.rip", "before": 0x1000, "after": 0x1005 }]);
    assert_eq!(
        (&report["sections"][0]["name"], &report["sections"][0]["fields"]),
        (&value!("vcpu/0"), &fields)
    );
    let coarse = json(["diff", "--json", "--by-chunk", text(&file), text(&other)], 1);
    assert_eq!(coarse["memory"]["differing_bytes"], 2 * 65536);
    assert_eq!(coarse["memory"]["changed_bytes"], value!(null));
}

#[test]
fn long_lists_are_cut_in_text_and_counted() {
    let (directory, file) = sample();
    let other = directory.path().join("other.vmsnap");
    let mut machine = Machine::new();
    machine.low.iter_mut().step_by(8192).for_each(|byte| *byte ^= 1);
    machine.write(&other);
    let lines = |limit| {
        let seen = run(["diff", "--limit", limit, text(&file), text(&other)], 1);
        seen.lines()
            .filter(|line| line.starts_with("memory: "))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(lines("2")[2], "memory: and 254 more ranges");
    assert_eq!(lines("0").len(), 256);
}

#[test]
fn an_incremental_snapshot_compares_with_its_parent() {
    let (directory, file) = sample();
    let later = directory.path().join("later.vmsnap");
    child(&file, &later);
    let report = json(["diff", "--json", text(&file), text(&later)], 1);
    assert_eq!(
        report["memory"]["ranges"],
        value!([{ "guest_address": MIB, "len_bytes": 4096 }])
    );
    assert_eq!(report["memory"]["changed_bytes"], 1);
}

#[test]
fn what_is_missing_cannot_be_compared() {
    let (_directory, file) = sample();
    complaint(["diff", text(&file), "/nonexistent"], 2);
    complaint(["diff", text(&file)], 2);
}
