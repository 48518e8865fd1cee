//! Machines with virtio devices: snapshots with disks, and their way back.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::json;

use crate::vm::Vm;
use crate::{Described, has_kvm};

const DISK_BYTES: u64 = 8 << 20;

/// A disk with some content, in a directory that outlives the machine.
fn make_disk(path: &Path) {
    let file = fs::File::create_new(path).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    file.write_all_at(b"content", 5000).unwrap();
    file.write_all_at(&[0x5a; 1 << 20], 1 << 20).unwrap();
}

/// The flags of a machine with a writable disk `data`, which is to be in such a file, and a read-only one.
fn flags(data: &Path, cd: &Path) -> Vec<String> {
    make_disk(data);
    make_disk(cd);
    let disks = [
        format!("file={},id=data", data.display()),
        format!("file={},readonly", cd.display()),
    ];
    let [data, cd] = disks;
    [
        "--memory",
        "64M",
        "--disk",
        &data,
        "--disk",
        &cd,
        "--console",
        "null",
    ]
    .map(str::to_owned)
    .into()
}

fn strs(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

#[test]
fn disks_are_frozen_with_the_machine_and_come_back_with_it() {
    if !has_kvm("disks_are_frozen_with_the_machine_and_come_back_with_it") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let flags = flags(&path("d.raw"), &path("cd.raw"));
    let mut api = Described::new(Vm::builtin(&strs(&flags)));
    let out = path("out.vmsnap");
    for name in ["out.vmsnap", "next.vmsnap"] {
        let body = json!({"path": path(name)}).to_string();
        let done = api.expect(200, "POST", "/v1/snapshots?wait=true", &body);
        assert_eq!(done["state"], "done", "{done}");
        assert_eq!(done["report"]["statistics"]["disks"]["count"], 1);
        assert_eq!(done["report"]["disks"][1]["mode"], "none");
    }
    assert!(path("d.raw.qcow2").exists() && path("next.vmsnap.data.qcow2").exists());
    drop(api);

    // The first name cannot be the live disk any more, and nobody works on it by mistake.
    let socket = path("vm.sock");
    let (code, stderr) =
        Vm::fails_to_start(&strs(&[&["--builtin".to_owned()][..], &flags].concat()), &socket);
    assert!(code == 2 && stderr.contains("d.raw.qcow2"), "{stderr}");

    let second = path("second.qcow2");
    let assignment = format!("data={}", second.display());
    let mut restored = Described::new(Vm::restored(&out, &["--disk", &assignment, "--check-disks"]));
    let disks = restored.expect(200, "GET", "/v1/machine", "")["disks"].clone();
    assert_eq!(disks[0]["file"], second.to_str().unwrap());
    assert_eq!(disks[1]["file"], path("cd.raw").to_str().unwrap());
    // The restored machine can be saved again, and what came before is not read once more.
    let again = json!({"path": path("again.vmsnap")});
    let done = restored.expect(200, "POST", "/v1/snapshots?wait=true", &again.to_string());
    assert_eq!(done["state"], "done", "{done}");
    let figures = &done["report"]["statistics"]["disks"];
    assert!(
        figures["fingerprint_bytes"].as_u64().unwrap() < DISK_BYTES,
        "{figures}"
    );
    drop(restored);
    assert!(second.exists(), "an overlay that was asked for stays");

    let left = fs::read_dir(directory.path()).unwrap().count();
    drop(Vm::restored(&path("again.vmsnap"), &[]));
    let mut nameless = Described::new(Vm::restored(&out, &[]));
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        left,
        "a restored machine left a file"
    );
    let third = json!({"path": path("third.vmsnap")});
    let done = nameless.expect(200, "POST", "/v1/snapshots?wait=true", &third.to_string());
    assert_eq!(done["state"], "done", "{done}");
    drop(nameless);
    drop(Vm::restored(&path("third.vmsnap"), &[]));
}

#[test]
fn raw_disks_can_be_copied_with_the_machine() {
    if !has_kvm("raw_disks_can_be_copied_with_the_machine") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let flags = flags(&path("d.raw"), &path("cd.raw"));
    let mut api = Described::new(Vm::builtin(&strs(&flags)));
    let body = json!({"path": path("out.vmsnap"), "disks": "copy"});
    let done = api.expect(200, "POST", "/v1/snapshots?wait=true", &body.to_string());
    assert_eq!(
        done["report"]["statistics"]["disks"]["bytes"], DISK_BYTES,
        "{done}"
    );
    drop(api);
    let copy = path("out.vmsnap.data.raw");
    assert_eq!(fs::read(&copy).unwrap(), fs::read(path("d.raw")).unwrap());
    assert!(
        !path("out.vmsnap.disk1.raw").exists(),
        "a read-only disk is not copied"
    );
    drop(Vm::restored(&path("out.vmsnap"), &[]));

    let refused = |flags: &[&str], reason: &str| {
        let (code, stderr) = Vm::fails_to_restore(&path("out.vmsnap"), flags);
        assert!(code == 2 && stderr.contains(reason), "{stderr}");
    };
    refused(&["--disks", "in-place"], "leave out --disks in-place");
    let file = fs::File::options().write(true).open(&copy).unwrap();
    file.write_all_at(b"C", 5000).unwrap();
    refused(&[], "out.vmsnap.data.raw was changed");
    file.set_len(DISK_BYTES - 512).unwrap();
    refused(&[], "bytes, the guest's disk has");
    fs::remove_file(&copy).unwrap();
    refused(&[], "out.vmsnap.data.raw is missing");
}

#[test]
fn disks_that_are_not_those_of_the_snapshot_are_refused_by_name() {
    if !has_kvm("disks_that_are_not_those_of_the_snapshot_are_refused_by_name") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let flags = flags(&path("d.raw"), &path("cd.raw"));
    let mut api = Described::new(Vm::builtin(&strs(&flags)));
    for (name, disks) in [("bare.vmsnap", "none"), ("out.vmsnap", "overlay")] {
        let body = json!({"path": path(name), "disks": disks});
        let done = api.expect(200, "POST", "/v1/snapshots?wait=true", &body.to_string());
        assert_eq!(done["state"], "done", "{done}");
    }
    let internal = json!({"path": path("internal.vmsnap"), "disks": "internal"});
    // The disk is a qcow2 overlay by now, which takes an internal snapshot.
    let done = api.expect(200, "POST", "/v1/snapshots?wait=true", &internal.to_string());
    assert_eq!(done["state"], "done", "{done}");
    let frozen = json!({"path": path("internal.vmsnap"), "disks": "copy", "frozen": {"data": "/x"}});
    api.expect(400, "POST", "/v1/snapshots", &frozen.to_string());
    drop(api);
    let refused = |snapshot: &str, flags: &[&str], reason: &str| {
        let (code, stderr) = Vm::fails_to_restore(&path(snapshot), flags);
        assert_eq!(code, 2);
        assert!(stderr.contains(reason), "{stderr}");
    };
    refused("bare.vmsnap", &[], "give the disk as it was by --disk data=FILE");
    refused(
        "out.vmsnap",
        &["--disk", "disk9=x"],
        "disk disk9: the machine has no such disk",
    );
    refused("out.vmsnap", &["--net", "net0=tap7"], "no network interface net0");
    refused("out.vmsnap", &["--vsock-uds", "x"], "no socket device");
    let existing = format!("data={}", path("d.raw").display());
    refused("out.vmsnap", &["--disk", &existing], "d.raw exists");

    let base = fs::File::options().write(true).open(path("d.raw")).unwrap();
    base.write_all_at(b"C", 5000).unwrap();
    refused("out.vmsnap", &[], "disk data: its image");
    refused("out.vmsnap", &[], "d.raw was changed");
    fs::rename(path("d.raw"), path("moved.raw")).unwrap();
    refused("out.vmsnap", &[], "d.raw is missing");
    assert!(!fs::read_dir(directory.path()).unwrap().any(|entry| {
        let name = entry.unwrap().file_name();
        name.to_str().unwrap().starts_with('.')
    }));
}

/// Everything that the API says of disks; returns what was asked.
pub fn answers_about_disks() -> std::collections::BTreeSet<(String, String, u16)> {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let flags = flags(&path("d.raw"), &path("cd.raw"));
    let mut api = Described::new(Vm::builtin(&strs(&flags)));
    api.expect(404, "GET", "/v1/disks/flatten", "");
    api.expect(409, "DELETE", "/v1/disks/flatten", "");
    let body = json!({"path": path("out.vmsnap")}).to_string();
    api.expect(200, "POST", "/v1/snapshots?wait=true", &body);
    let layers = |api: &mut Described| {
        let list = api.expect(200, "GET", "/v1/disks", "");
        assert_eq!(list["disks"][1]["readonly"], true);
        list["disks"][0]["layers"].as_array().unwrap().len()
    };
    assert_eq!(layers(&mut api), 2);
    for body in [
        json!({}),
        json!({"disk": "zzz"}),
        json!({"disk": "data", "bytes_per_second": 0}),
        json!({"disk": "data", "colour": "red"}),
    ] {
        api.expect(400, "POST", "/v1/disks/flatten", &body.to_string());
    }
    // Slow enough to be seen at work.
    let slow = json!({"disk": "data", "bytes_per_second": 1}).to_string();
    let started = api.expect(202, "POST", "/v1/disks/flatten", &slow);
    assert_eq!(
        (&started["id"], &started["state"]),
        (&json!(1), &json!("running"))
    );
    api.expect(409, "POST", "/v1/disks/flatten", &slow);
    let refused = api.expect(409, "POST", "/v1/snapshots", &body);
    assert!(
        refused.to_string().contains("disk data is being flattened"),
        "{refused}"
    );
    api.expect(202, "DELETE", "/v1/disks/flatten", "");
    while api.expect(200, "GET", "/v1/disks/flatten", "")["state"] == "running" {}
    assert_eq!(
        api.expect(200, "GET", "/v1/disks/flatten", "")["state"],
        "cancelled"
    );
    assert_eq!(layers(&mut api), 2);
    let quick = json!({"disk": "data"}).to_string();
    let done = api.expect(200, "POST", "/v1/disks/flatten?wait=true", &quick);
    assert_eq!(done["state"], "done", "{done}");
    assert_eq!(layers(&mut api), 1);
    // The snapshot needs the lower file, not the machine.
    drop(Vm::restored(&path("out.vmsnap"), &["--check-disks"]));
    api.start_slow_snapshot();
    api.expect(409, "POST", "/v1/disks/flatten", &quick);
    api.expect(202, "DELETE", "/v1/snapshots/current", "");
    api.wait_for_end();
    commands_about_disks(&api, &path("cli.vmsnap"));
    api.seen
}

/// The same by the commands.
fn commands_about_disks(api: &Described, snapshot: &Path) {
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_snapvm"));
        let output = command.args(args).arg("--api-sock").arg(api.vm.socket()).output();
        let output = output.unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text)
    };
    let (code, text) = run(&["snapshot", snapshot.to_str().unwrap()]);
    assert!(code == Some(0) && text.contains("data: frozen as "), "{text}");
    let (code, text) = run(&["disk", "list"]);
    assert!(code == Some(0) && text.contains("d.raw.qcow2 (qcow2)"), "{text}");
    let (code, text) = run(&["disk", "flatten"]);
    assert!(
        code == Some(0) && text.contains("data: consists of one file"),
        "{text}"
    );
    let (code, text) = run(&["disk", "flatten"]);
    assert!(code == Some(0) && text.contains("nothing to flatten"), "{text}");
    let (code, text) = run(&["disk", "cancel"]);
    assert!(
        code == Some(1) && text.contains("no disk is being flattened"),
        "{text}"
    );
}

#[test]
fn the_images_of_a_machine_that_was_ended_are_complete() {
    if !has_kvm("the_images_of_a_machine_that_was_ended_are_complete") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let flags = flags(&path("d.raw"), &path("cd.raw"));
    let mut api = Described::new(Vm::builtin(&strs(&flags)));
    let body = json!({"path": path("out.vmsnap")}).to_string();
    api.expect(200, "POST", "/v1/snapshots?wait=true", &body);
    // What flattening writes into the overlay is as a guest's writes are.
    let flatten = json!({"disk": "data"}).to_string();
    api.expect(200, "POST", "/v1/disks/flatten?wait=true", &flatten);
    api.expect(200, "PUT", "/v1/shutdown", "");
    assert_eq!(api.vm.wait(), 0);
    let mut command = std::process::Command::new("qemu-img");
    match command
        .args(["check", "-f", "qcow2"])
        .arg(path("d.raw.qcow2"))
        .output()
    {
        Ok(output) => assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        ),
        Err(error) => eprintln!("SKIPPED: checking with qemu-img: {error}"),
    }
}
