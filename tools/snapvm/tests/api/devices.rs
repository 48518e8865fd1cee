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
}

#[test]
fn disks_are_saved_with_the_machine_and_come_back_with_it() {
    if !has_kvm("disks_are_saved_with_the_machine_and_come_back_with_it") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    make_disk(&path("d.raw"));
    make_disk(&path("cd.raw"));
    let flags = [
        format!("file={},id=data", path("d.raw").display()),
        format!("file={},readonly", path("cd.raw").display()),
    ];
    let flags = [
        "--memory",
        "64M",
        "--disk",
        &flags[0],
        "--disk",
        &flags[1],
        "--console",
        "null",
    ];
    let mut api = Described::new(Vm::builtin(&flags));
    let out = path("out.vmsnap");
    let done = api.expect(
        200,
        "POST",
        "/v1/snapshots?wait=true",
        &json!({"path": out}).to_string(),
    );
    assert_eq!(done["state"], "done", "{done}");
    assert_eq!(done["report"]["statistics"]["disks"]["bytes"], DISK_BYTES);
    assert_eq!(done["progress"]["disk_bytes"], DISK_BYTES);
    assert_eq!(
        fs::read(path("out.vmsnap.data.raw")).unwrap(),
        fs::read(path("d.raw")).unwrap()
    );
    assert!(
        !path("out.vmsnap.disk1.raw").exists(),
        "a disk that the guest only reads is not copied"
    );
    drop(api);

    let second = path("second.raw");
    let assignment = format!("data={}", second.display());
    let mut restored = Described::new(Vm::restored(&out, &["--disk", &assignment]));
    let disks = restored.expect(200, "GET", "/v1/machine", "")["disks"].clone();
    assert_eq!(disks[0]["file"], second.to_str().unwrap());
    assert_eq!(disks[1]["file"], path("cd.raw").to_str().unwrap());
    // The restored machine can be saved again, disks included.
    let again = json!({"path": path("again.vmsnap")});
    let done = restored.expect(200, "POST", "/v1/snapshots?wait=true", &again.to_string());
    assert_eq!(done["report"]["statistics"]["disks"]["count"], 1, "{done}");
    drop(restored);
    assert!(second.exists(), "a working copy that was asked for stays");

    let left = fs::read_dir(directory.path()).unwrap().count();
    let mut nameless = Described::new(Vm::restored(&out, &[]));
    // It takes the place of the one before: a disk without a name can be saved as well.
    let done = nameless.expect(200, "POST", "/v1/snapshots?wait=true", &again.to_string());
    assert_eq!(done["report"]["statistics"]["disks"]["count"], 1, "{done}");
    drop(nameless);
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        left,
        "a working copy was left"
    );
}

#[test]
fn disks_that_are_not_those_of_the_snapshot_are_refused_by_name() {
    if !has_kvm("disks_that_are_not_those_of_the_snapshot_are_refused_by_name") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    make_disk(&path("d.raw"));
    let disk = format!("file={}", path("d.raw").display());
    let mut api = Described::new(Vm::builtin(&["--memory", "64M", "--disk", &disk]));
    for (name, disks) in [("out.vmsnap", "copy"), ("bare.vmsnap", "none")] {
        let body = json!({"path": path(name), "disks": disks});
        let done = api.expect(200, "POST", "/v1/snapshots?wait=true", &body.to_string());
        assert_eq!(done["state"], "done", "{done}");
    }
    assert!(!path("bare.vmsnap.disk0.raw").exists());
    drop(api);
    let refused = |snapshot: &str, flags: &[&str], reason: &str| {
        let (code, stderr) = Vm::fails_to_restore(&path(snapshot), flags);
        assert_eq!(code, 2);
        assert!(stderr.contains(reason), "{stderr}");
    };
    refused("bare.vmsnap", &[], "give the disk as it was by --disk disk0=FILE");
    refused(
        "out.vmsnap",
        &["--disk", "disk9=x"],
        "disk disk9: the machine has no such disk",
    );
    refused("out.vmsnap", &["--net", "net0=tap7"], "no network interface net0");
    refused("out.vmsnap", &["--vsock-uds", "x"], "no socket device");
    refused("out.vmsnap", &["--console", "null"], "no console device");
    let existing = format!("disk0={}", path("d.raw").display());
    refused("out.vmsnap", &["--disk", &existing], "d.raw exists");
    let mut given = Described::new(Vm::restored(&path("bare.vmsnap"), &["--disk", &existing]));
    let disks = given.expect(200, "GET", "/v1/machine", "")["disks"].clone();
    assert_eq!(disks[0]["file"], path("d.raw").to_str().unwrap());
    drop(given);

    let copy = path("out.vmsnap.disk0.raw");
    let file = fs::File::options().write(true).open(&copy).unwrap();
    file.write_all_at(b"C", 5000).unwrap();
    refused("out.vmsnap", &[], "out.vmsnap.disk0.raw was changed");
    file.set_len(DISK_BYTES - 512).unwrap();
    refused("out.vmsnap", &[], "bytes, the guest's disk has");
    fs::remove_file(&copy).unwrap();
    refused("out.vmsnap", &[], "out.vmsnap.disk0.raw is missing");
    assert!(!fs::read_dir(directory.path()).unwrap().any(|entry| {
        let name = entry.unwrap().file_name();
        name.to_str().unwrap().starts_with('.')
    }));
}
