//! `snaptool disk`, beside qemu-img where it is installed.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{alone, complaint, json, run, text};
use serde_json::{Value as Json, json as value};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn scratch() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.qcow2");
    (directory, image)
}

/// An image of 8 MiB.
fn image() -> (TempDir, PathBuf) {
    let (directory, image) = scratch();
    run(["disk", "create", text(&image), "8MiB"], 0);
    (directory, image)
}

/// Writes bytes through the engine.
fn write(path: &Path, offset: u64, bytes: &[u8]) {
    let disk = qcow2::Image::open_chain(path, &qcow2::ImageOptions::default()).unwrap();
    disk.write_at(bytes, offset).unwrap();
    disk.flush().unwrap();
}

/// Runs `qemu-img`; nothing where it is not installed.
fn qemu_img(test: &str, arguments: &[&str]) -> Option<(i32, String)> {
    match Command::new("qemu-img").args(arguments).output() {
        Ok(output) => Some((
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )),
        Err(_) => {
            eprintln!("SKIPPED: {test}: qemu-img is not installed");
            None
        }
    }
}

#[test]
fn info_shows_the_chain_and_what_is_wrong_with_it() {
    let _alone = alone();
    let (directory, top) = scratch();
    fs::write(directory.path().join("base.raw"), vec![7; 1 << 20]).unwrap();
    run(["disk", "create", "-b", "base.raw", "-F", "raw", text(&top)], 0);
    let report = json(["disk", "info", "--json", text(&top)], 0);
    assert_eq!(report["layers"][0]["virtual_size_bytes"], MIB);
    assert_eq!(report["layers"][0]["qcow2"]["backing"]["name"], "base.raw");
    assert_eq!(report["layers"][1]["format"], "raw");
    assert_eq!(report["incomplete"], Json::Null);
    let seen = run(["disk", "info", text(&top)], 0);
    assert!(
        seen.contains("names as backing file: base.raw, format raw"),
        "{seen}"
    );

    fs::remove_file(directory.path().join("base.raw")).unwrap();
    let report = json(["disk", "info", "--json", text(&top)], 0);
    assert!(
        report["incomplete"].as_str().unwrap().contains("base.raw"),
        "{report}"
    );
    complaint(["disk", "map", text(&top)], 2);
}

#[test]
fn a_format_is_stated_by_the_name_or_an_option_and_never_guessed() {
    let _alone = alone();
    let (directory, image) = image();
    let nameless = directory.path().join("disk");
    fs::copy(&image, &nameless).unwrap();
    let said = complaint(["disk", "info", text(&nameless)], 2);
    assert!(said.contains("--format"), "{said}");
    assert_eq!(
        json(["disk", "info", "--json", "-f", "qcow2", text(&nameless)], 0)["layers"][0]["format"],
        "qcow2"
    );
    assert_eq!(
        json(["disk", "info", "--json", "-f", "raw", text(&nameless)], 0)["layers"][0]["format"],
        "raw"
    );
}

#[test]
fn check_has_the_exit_codes_of_qemu_img() {
    let _alone = alone();
    let test = "check_has_the_exit_codes_of_qemu_img";
    let (directory, clean) = image();
    write(&clean, 0, &[1; 65536]);
    let header = fs::read(&clean).unwrap();
    let field = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let block = usize::try_from(field(&header, usize::try_from(field(&header, 48)).unwrap())).unwrap();
    let clusters = header.len() / 65536;
    let variant = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = directory.path().join(name);
        let mut bytes = header.clone();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        path
    };
    // A cluster more than is referred to, and the count of the last one taken away.
    let leaked = variant("leaked.qcow2", &|bytes| {
        bytes.extend([0; 65536]);
        bytes[block + 2 * clusters + 1] = 1;
    });
    let corrupt = variant("corrupt.qcow2", &|bytes| bytes[block + 2 * clusters - 1] = 0);
    let foreign = variant("foreign.qcow2", &|bytes| bytes[0] = 0);
    for (path, code) in [(&clean, 0), (&leaked, 3), (&corrupt, 2), (&foreign, 1)] {
        run(["disk", "check", text(path)], code);
        if let Some((theirs, said)) = qemu_img(test, &["check", "-f", "qcow2", text(path)]) {
            assert_eq!(theirs, code, "{}: {said}", path.display());
        }
    }
    let report = json(["disk", "check", "--json", text(&leaked)], 3);
    assert_eq!(
        (&report["leaks"], &report["corruptions"]),
        (&value!(1), &value!(0))
    );
    assert_eq!(report["findings"].as_array().unwrap().len(), 1);
    let raw = directory.path().join("disk.raw");
    fs::write(&raw, [0; 512]).unwrap();
    run(["disk", "check", text(&raw)], 63);
    run(["disk", "check", text(&directory.path().join("absent.qcow2"))], 1);

    run(["disk", "check", "--repair", "leaks", text(&leaked)], 0);
    run(["disk", "check", text(&leaked)], 0);
    let repaired = json(["disk", "repair", "--json", text(&corrupt)], 0);
    assert!(
        repaired["repaired"]["corruptions_fixed"].as_u64().unwrap() > 0,
        "{repaired}"
    );
    run(["disk", "check", text(&corrupt)], 0);
}

#[test]
fn snapshots_are_created_listed_compared_applied_and_deleted() {
    let _alone = alone();
    let test = "snapshots_are_created_listed_compared_applied_and_deleted";
    let (_directory, image) = image();
    write(&image, 0, &[1; 65536]);
    let made = json(
        ["disk", "snapshot", "create", "before", text(&image), "--json"],
        0,
    );
    assert_eq!((&made["id"], &made["name"]), (&value!("1"), &value!("before")));
    run(["disk", "diff", text(&image), "before"], 0);
    write(&image, MIB, &[2; 4096]);
    let found = json(["disk", "diff", "--json", text(&image), "before"], 1);
    assert_eq!(found["ranges"], value!([{ "offset": MIB, "len_bytes": 4096 }]));
    assert_eq!(found["same"], false);
    let seen = run(["disk", "diff", text(&image), "before"], 1);
    assert!(seen.contains("0x100000-0x100fff"), "{seen}");
    run(["disk", "snapshot", "create", "after", text(&image)], 0);
    run(["disk", "diff", text(&image), "before", "after"], 1);

    let list = json(
        [
            "disk",
            "snapshot",
            "list",
            "--fingerprint",
            "--json",
            text(&image),
        ],
        0,
    );
    let prints: Vec<_> = list["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["fingerprint"])
        .collect();
    assert_eq!(prints.len(), 2);
    assert_ne!(prints[0], prints[1]);
    if let Some((_, said)) = qemu_img(test, &["snapshot", "-l", text(&image)]) {
        assert!(said.contains("before") && said.contains("after"), "{said}");
    }

    run(["disk", "snapshot", "apply", "before", text(&image)], 0);
    run(["disk", "diff", text(&image), "before"], 0);
    run(["disk", "snapshot", "delete", "1", text(&image)], 0);
    let said = complaint(["disk", "snapshot", "delete", "before", text(&image)], 2);
    assert!(said.contains("before"), "{said}");
    run(["disk", "check", text(&image)], 0);
    if let Some((code, said)) = qemu_img(test, &["check", "-f", "qcow2", text(&image)]) {
        assert_eq!(code, 0, "{said}");
    }
}

#[test]
fn a_map_is_that_of_qemu_img() {
    let _alone = alone();
    let test = "a_map_is_that_of_qemu_img";
    let (directory, top) = scratch();
    let base = directory.path().join("base.qcow2");
    run(["disk", "create", text(&base), "8MiB"], 0);
    write(&base, 0, &[1; 1 << 20]);
    write(&base, 4 * MIB, &[2; 65536]);
    run(
        ["disk", "create", "-b", "base.qcow2", "-F", "qcow2", text(&top)],
        0,
    );
    write(&top, 65536, &[3; 65536]);
    let ours = json(["disk", "map", "--json", text(&top)], 0);
    let Some((code, said)) = qemu_img(test, &["map", "-f", "qcow2", "--output=json", text(&top)]) else {
        return;
    };
    assert_eq!(code, 0);
    let theirs: Json = serde_json::from_str(&said).unwrap();
    let facts = |map: &Json| {
        let names = ["start", "length", "depth", "present", "zero", "data", "offset"];
        let facts = |extent: &Json| names.map(|name| extent[name].clone());
        map.as_array().unwrap().iter().map(facts).collect::<Vec<_>>()
    };
    assert_eq!(facts(&ours), facts(&theirs));
    let seen = run(["disk", "map", text(&top)], 0);
    assert!(seen.contains("data in"), "{seen}");
}

#[test]
fn comparing_tells_whether_and_where_disks_differ() {
    let _alone = alone();
    let (directory, image) = image();
    let raw = directory.path().join("copy.raw");
    let mut content = vec![0; 8 << 20];
    content[5000..5010].fill(9);
    fs::write(&raw, &content).unwrap();
    write(&image, 5000, &[9; 10]);
    run(["disk", "compare", text(&image), text(&raw)], 0);
    content.extend([0; 512]);
    fs::write(&raw, &content).unwrap();
    run(["disk", "compare", text(&image), text(&raw)], 0);
    run(["disk", "compare", "--strict", text(&image), text(&raw)], 1);
    content[6000] = 1;
    fs::write(&raw, &content).unwrap();
    let found = json(["disk", "compare", "--json", text(&raw), text(&image)], 1);
    assert_eq!(
        (&found["same"], &found["first_difference"]),
        (&value!(false), &value!(6000))
    );
    run(
        [
            "disk",
            "compare",
            text(&image),
            text(&directory.path().join("absent.raw")),
        ],
        2,
    );
}

#[test]
fn an_overlay_is_flattened_and_another_one_committed() {
    let _alone = alone();
    let (directory, base) = image();
    write(&base, 0, &[1; 3 << 20]);
    let path = |name: &str| directory.path().join(name);
    let (flat, committed, expected) = (
        path("flat.qcow2"),
        path("committed.qcow2"),
        path("expected.qcow2"),
    );
    run(
        ["disk", "create", "-b", "disk.qcow2", "-F", "qcow2", text(&flat)],
        0,
    );
    write(&flat, MIB, &[2; 4096]);
    fs::copy(&flat, &committed).unwrap();
    fs::copy(&base, &expected).unwrap();
    write(&expected, MIB, &[2; 4096]);

    let report = json(["disk", "flatten", "--json", text(&flat)], 0);
    assert!(
        report["copied_bytes"].as_u64().unwrap() >= 3 * MIB - 65536,
        "{report}"
    );
    assert_eq!(
        json(["disk", "info", "--json", text(&flat)], 0)["layers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    run(["disk", "compare", text(&flat), text(&expected)], 0);

    run(["disk", "commit", text(&committed)], 0);
    for image in [&committed, &base] {
        run(["disk", "compare", text(image), text(&expected)], 0);
        run(["disk", "check", text(image)], 0);
    }
    let said = complaint(["disk", "commit", text(&flat)], 2);
    assert!(said.contains("backing"), "{said}");
}

#[test]
fn a_base_that_a_snapshot_needs_is_not_committed_to_unless_forced() {
    let _alone = alone();
    let (directory, base) = image();
    let overlay = directory.path().join("overlay.qcow2");
    let snapshot = directory.path().join("vm.vmsnap");
    common::Machine::new().write(&snapshot);
    let file_id = snapfile::Snapshot::open(&snapshot).unwrap().header().file_id.0;
    let storage =
        qcow2::FileStorage::from_file(fs::File::create_new(&overlay).unwrap(), qcow2::Access::ReadWrite);
    let mut options = qcow2::CreateOptions::overlay(
        8 * MIB,
        qcow2::Backing::new("disk.qcow2", qcow2::ImageFormat::Qcow2),
    );
    options.frozen_backing = Some(qcow2::FrozenBacking {
        owners: vec![qcow2::FrozenOwner {
            snapshot: snapshot.clone(),
            file_id,
        }],
    });
    qcow2::create(&storage, &options).unwrap();
    write(&overlay, 0, &[5; 512]);
    let before = fs::read(&base).unwrap();
    let said = complaint(["disk", "commit", text(&overlay)], 2);
    assert!(said.contains("vm.vmsnap"), "{said}");
    assert!(fs::read(&base).unwrap() == before, "written to all the same");
    let info = json(["disk", "info", "--json", text(&overlay)], 0);
    assert_eq!(
        info["layers"][0]["qcow2"]["backing"]["frozen_for"],
        value!([text(&snapshot)])
    );

    // Another file of that name needs nothing; a name that is gone neither.
    common::Machine::new().write(&snapshot);
    run(["disk", "commit", text(&overlay)], 0);
    fs::remove_file(&snapshot).unwrap();
    run(["disk", "commit", text(&overlay)], 0);
}

#[test]
fn an_image_in_use_is_refused_unless_it_is_only_looked_at_by_force() {
    let _alone = alone();
    let (_directory, image) = image();
    run(["disk", "snapshot", "create", "s", text(&image)], 0);
    let held = qcow2::Image::open_chain(&image, &qcow2::ImageOptions::default()).unwrap();
    for (command, code) in [
        (&["disk", "info"][..], 2),
        (&["disk", "check"], 1),
        (&["disk", "repair"], 1),
        (&["disk", "snapshot", "list"], 2),
        (&["disk", "snapshot", "create", "t"], 2),
        (&["disk", "map"], 2),
        (&["disk", "flatten"], 2),
    ] {
        let said = complaint(command.iter().chain([&text(&image)]), code);
        assert!(said.contains("in use"), "{command:?}: {said}");
    }
    for command in [
        &["disk", "info", "-U"][..],
        &["disk", "check", "-U"],
        &["disk", "map", "-U"],
    ] {
        run(command.iter().chain([&text(&image)]), 0);
    }
    run(["disk", "diff", "--force-share", text(&image), "s"], 0);
    drop(held);
    run(["disk", "info", text(&image)], 0);
}

#[test]
fn an_interrupted_flatten_leaves_a_sound_image_that_the_next_one_finishes() {
    let _alone = alone();
    let (directory, base) = image();
    write(&base, 0, &[1; 8 << 20]);
    let top = directory.path().join("top.qcow2");
    run(
        ["disk", "create", "-b", "disk.qcow2", "-F", "qcow2", text(&top)],
        0,
    );
    let before = fs::metadata(&top).unwrap().len();
    let mut child = Command::new(assert_cmd::cargo::cargo_bin("snaptool"))
        .args(["disk", "flatten", "--rate", "1MiB", text(&top)])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It has begun once the image grows.
    while fs::metadata(&top).unwrap().len() == before && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(2));
    run(["disk", "check", text(&top)], 0);
    run(["disk", "compare", text(&top), text(&base)], 0);
    run(["disk", "flatten", text(&top)], 0);
    fs::remove_file(&base).unwrap();
    run(["disk", "check", text(&top)], 0);
}

#[test]
fn a_new_image_takes_nobodys_place() {
    let _alone = alone();
    let (_directory, image) = image();
    let before = fs::read(&image).unwrap();
    complaint(["disk", "create", text(&image), "1MiB"], 2);
    assert!(fs::read(&image).unwrap() == before);
    for (option, value) in [("--cluster-size", "3000"), ("--refcount-bits", "7")] {
        complaint(
            ["disk", "create", option, value, "/nonexistent/x.qcow2", "1MiB"],
            2,
        );
    }
    let overlay = image.with_file_name("overlay.qcow2");
    complaint(
        ["disk", "create", "-b", "absent.raw", "-F", "raw", text(&overlay)],
        2,
    );
    assert!(!overlay.exists());
}
