//! The commands that scripts use, typed exactly as they are documented.

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::{Guest, Output, has_kvm, run};
use tempfile::TempDir;

fn snaptool(arguments: &[&str]) -> Output {
    run("snaptool", arguments)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// The same guest from an ELF file by its PVH note, then every command on its snapshots.
#[test]
fn the_documented_commands_work_on_an_elf_guest() {
    if !has_kvm("the_documented_commands_work_on_an_elf_guest") {
        return;
    }
    let directory = TempDir::new().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    run("snapvm", ["builtin-elf", text(&path("guest.elf"))]).expect_code(0);
    let elf = path("guest.elf");
    let arguments = ["run", "--kernel", text(&elf), "--memory", "512M", "--cpus", "1"];
    let mut guest = Guest::spawn(directory.path(), "vm", arguments);
    guest.wait_for("progress on the serial port", |guest| {
        guest.serial().contains("step").then_some(())
    });

    let (first, second) = (path("a.vmsnap"), path("b.vmsnap"));
    guest.snapshot(
        &first,
        &[
            "--mode", "async", "--codec", "zstd", "--level", "1", "--chunk", "64K",
        ],
    );
    let more = [
        "--on-pressure",
        "throttle",
        "--buffer",
        "64M",
        "--max-stall",
        "100ms",
        "--max-arm",
        "250ms",
    ];
    guest.snapshot(&second, &more);
    for file in [&first, &second] {
        snaptool(&["inspect", text(file)]).expect_code(0);
        snaptool(&["inspect", text(file), "--json"]).expect_code(0).json();
        snaptool(&["verify", text(file)]).expect_code(0);
        snaptool(&["verify", text(file), "--json"]).expect_code(0).json();
    }
    snaptool(&["diff", text(&first), text(&first)]).expect_code(0);
    let diff = snaptool(&["diff", text(&first), text(&second), "--json"])
        .expect_code(1)
        .json();
    assert!(diff.is_object(), "not an object: {diff}");

    let (memory, core, state) = (path("mem.raw"), path("mem.core"), path("vmstate.json"));
    let extract = [
        "--memory",
        text(&memory),
        "--elf-core",
        text(&core),
        "--vmstate",
        text(&state),
    ];
    snaptool(&[&["restore", text(&first)][..], &extract].concat()).expect_code(0);
    assert_eq!(fs::metadata(&memory).expect("the memory").len(), 512 << 20);
    assert_eq!(&fs::read(&core).expect("the core")[..4], b"\x7fELF");
    let state: serde_json::Value =
        serde_json::from_slice(&fs::read(&state).expect("the state")).expect("JSON");
    assert!(state.is_object() || state.is_array(), "no state: {state}");
}

#[test]
fn a_damaged_file_is_refused_by_verify_and_by_restore() {
    if !has_kvm("a_damaged_file_is_refused_by_verify_and_by_restore") {
        return;
    }
    let directory = TempDir::new().expect("a directory");
    let mut guest = Guest::run_builtin(directory.path(), &["--memory", "64M"]);
    guest.wait_for_steps(5_000);
    let file = directory.path().join("out.vmsnap");
    guest.snapshot(&file, &["--max-stall", "30s"]);
    drop(guest);

    let mut bytes = fs::read(&file).expect("the snapshot");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&file, &bytes).expect("the damaged snapshot");
    let output = snaptool(&["verify", text(&file)]).expect_code(1);
    assert!(
        output.stdout.contains("spec"),
        "no clause is named: {}",
        output.stdout
    );
    let socket = directory.path().join("vm2.sock");
    let output = run(
        "snapvm",
        [
            "restore",
            text(&file),
            "--api-sock",
            text(&socket),
            "--serial",
            "null",
        ],
    );
    let output = output.expect_code(2);
    assert!(
        output.stderr.contains("checksum"),
        "unclear error: {}",
        output.stderr
    );

    fs::write(&file, &bytes[..middle]).expect("the truncated snapshot");
    snaptool(&["verify", text(&file)]).expect_code(1);
}

/// The extracted memory holds each page at the offset that is its guest physical address.
#[test]
fn a_core_file_opens_in_gdb() {
    if !has_kvm("a_core_file_opens_in_gdb") {
        return;
    }
    if Command::new("gdb").arg("--version").output().is_err() {
        eprintln!("SKIPPED: a_core_file_opens_in_gdb: gdb is not installed");
        return;
    }
    let directory = TempDir::new().expect("a directory");
    let mut guest = Guest::run_builtin(directory.path(), &["--memory", "64M", "--cpus", "2"]);
    guest.wait_for_steps(5_000);
    let (file, core) = (
        directory.path().join("out.vmsnap"),
        directory.path().join("mem.core"),
    );
    guest.snapshot(&file, &["--max-stall", "30s"]);
    snaptool(&["restore", text(&file), "--elf-core", text(&core)]).expect_code(0);
    let commands = ["info threads", "info registers rip", "x/2i $rip"];
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-nx"])
        .args(commands.iter().flat_map(|command| ["-ex", command]));
    let output = gdb.args(["-core", text(&core)]).output().expect("gdb runs");
    let seen = String::from_utf8_lossy(&output.stdout);
    assert!(seen.contains("rip"), "gdb shows no registers: {seen}");
    assert!(
        !seen.contains("Cannot access memory"),
        "gdb cannot read memory at rip: {seen}"
    );
}
