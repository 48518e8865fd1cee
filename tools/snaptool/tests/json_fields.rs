//! The fields of `--json` are those that README.md documents.

mod common;

use std::collections::BTreeSet;

use common::{Machine, flip, json, kernel, sample, text};
use serde_json::Value as Json;
use snapfile::{ChunkNumber, Snapshot};

const README: &str = include_str!("../README.md");

/// The example that README.md has for a command.
fn documented(command: &str) -> Json {
    let (_, section) = README.split_once(&format!("\n## {command} --json\n")).unwrap();
    let (_, block) = section.split_once("```json\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    serde_json::from_str(block).unwrap()
}

/// Paths of all fields, of arrays those of all elements. Objects keyed by names of sections are not looked into.
fn fields(path: &str, value: &Json, found: &mut BTreeSet<String>) {
    match value {
        Json::Object(members) if !["provenance", "statistics"].contains(&path) => {
            for (key, value) in members {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                fields(&path, value, found);
                found.insert(path);
            }
        }
        Json::Array(elements) => elements.iter().for_each(|element| fields(path, element, found)),
        _ => {}
    }
}

#[track_caller]
fn assert_documented(command: &str, seen: &Json) {
    let (mut expected, mut found) = (BTreeSet::new(), BTreeSet::new());
    fields("", &documented(command), &mut expected);
    fields("", seen, &mut found);
    assert_eq!(found, expected, "{command}");
}

#[test]
fn fields_of_every_command_are_those_documented() {
    let (directory, file) = sample();
    assert_documented("inspect", &json(["inspect", "--json", text(&file)], 0));
    let linux = directory.path().join("linux.vmsnap");
    kernel::linux().write(&linux);
    let (raw, core) = (directory.path().join("mem.raw"), directory.path().join("vm.core"));
    let outputs = ["--memory", text(&raw), "--elf-core", text(&core)];
    let arguments = [&["restore", "--json", text(&linux)][..], &outputs].concat();
    assert_documented("restore", &json(arguments, 0));
    let other = directory.path().join("other.vmsnap");
    let mut machine = Machine {
        rip: 0x1005,
        ..Machine::new()
    };
    machine.low[0] = 1;
    machine.write(&other);
    assert_documented("diff", &json(["diff", "--json", text(&file), text(&other)], 1));
    let location = Snapshot::open(&file)
        .unwrap()
        .chunk_entry(ChunkNumber(17))
        .unwrap()
        .location;
    flip(&file, location + 64);
    assert_documented("verify", &json(["verify", "--json", text(&file)], 1));
}
