//! The command line as people meet it: help, and errors that say what to do.

use std::io::Read;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const COMMANDS: [&str; 13] = [
    "run",
    "serve",
    "balloon",
    "disk",
    "snapshot",
    "pause",
    "resume",
    "status",
    "cancel",
    "restore",
    "check",
    "demo",
    "builtin-elf",
];

fn snapvm(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_snapvm"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Insists on exit code 2 and one line on standard error that contains `text`.
#[track_caller]
fn assert_refused(args: &[&str], text: &str) {
    let output = snapvm(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(stderr.contains(text), "{args:?}: {stderr}");
    assert!(
        output.stdout.is_empty(),
        "an error has no place on standard output"
    );
}

#[test]
fn every_command_has_examples_in_its_help() {
    let help = String::from_utf8(snapvm(&["--help"]).stdout).unwrap();
    for command in COMMANDS {
        assert!(help.contains(&format!("  {command}")), "{command} is not listed");
        let help = String::from_utf8(snapvm(&[command, "--help"]).stdout).unwrap();
        assert!(
            help.contains("Examples:\n  snapvm "),
            "no example for {command}:\n{help}"
        );
    }
}

#[test]
fn every_command_about_disks_has_examples_in_its_help() {
    for command in ["list", "flatten", "cancel"] {
        let help = String::from_utf8(snapvm(&["disk", command, "--help"]).stdout).unwrap();
        assert!(help.contains("Examples:\n  snapvm disk "), "{command}:\n{help}");
    }
}

#[test]
fn help_states_the_defaults_of_a_snapshot() {
    let help = String::from_utf8(snapvm(&["snapshot", "--help"]).stdout).unwrap();
    for default in [
        "overlay", "async", "zstd", "1", "64K", "throttle", "64M", "100ms", "250ms",
    ] {
        assert!(
            help.contains(&format!("[default: {default}]")),
            "{default} is not there:\n{help}"
        );
    }
}

#[test]
fn bad_values_are_refused_with_the_option_named() {
    let snapshot = |option: &'static str, value: &'static str| {
        assert_refused(
            &["snapshot", "--api-sock", "x.sock", "out", option, value],
            option,
        );
    };
    snapshot("--mode", "later");
    snapshot("--codec", "gzip");
    snapshot("--level", "99");
    snapshot("--chunk", "huge");
    snapshot("--on-pressure", "cry");
    snapshot("--max-stall", "5");
    snapshot("--label", "novalue");
    assert_refused(&["run", "--builtin", "--memory", "lots"], "--memory");
    assert_refused(&["run", "--builtin", "--serial", "tty"], "--serial");
    assert_refused(&["run", "--builtin", "--words", "513"], "--words");
    assert_refused(&["run", "--builtin", "--kernel", "x.elf"], "--kernel");
    assert_refused(&["run"], "--kernel");
    assert_refused(&["run", "--builtin", "--config", "m.toml"], "--config");
    assert_refused(&["run", "--config", "m.toml", "--memory", "1G"], "--memory");
    assert_refused(&["run", "--config", "m.toml", "--serial", "null"], "--serial");
    assert_refused(&["run", "--builtin", "--initrd", "x"], "initrd");
    assert_refused(&["run", "--builtin", "--cpu", "z80"], "--cpu");
    assert_refused(
        &["run", "--builtin", "--disk", "file=d.raw,ro"],
        "\"ro\" is not known here",
    );
    assert_refused(&["run", "--builtin", "--net", "mac=1"], "--net");
    assert_refused(&["run", "--builtin", "--vsock", "cid=2"], "cid 2");
    assert_refused(&["run", "--builtin", "--balloon", "target=lots"], "--balloon");
    assert_refused(&["run", "--builtin", "--console", "stdio"], "both be stdio");
    assert_refused(&["restore", "out.vmsnap", "--disk", "file=x,y"], "No such file");
    assert_refused(&["restore", "out.vmsnap", "--disk", "disk0"], "--disk");
    assert_refused(
        &["restore", "out.vmsnap", "--disk", "a=1", "--disk", "a=2"],
        "stands twice",
    );
    snapshot("--disks", "maybe");
    snapshot("--frozen", "data");
    assert_refused(
        &["run", "--builtin", "--disk", "file=d"],
        "say format=raw or format=qcow2",
    );
    assert_refused(&["restore", "out.vmsnap", "--disks", "copy"], "--disks");
    assert_refused(
        &["disk", "flatten", "--api-sock", "x.sock", "--rate", "lots"],
        "--rate",
    );
    assert_refused(
        &["disk", "flatten", "--api-sock", "x.sock", "a", "--rate", "0"],
        "never end",
    );
    assert_refused(&["nonsense"], "nonsense");
}

#[test]
fn a_chunk_size_that_is_no_power_of_two_is_refused_before_anything_is_asked() {
    let args = [
        "snapshot",
        "--api-sock",
        "/nonexistent/x.sock",
        "out",
        "--chunk",
        "5000",
    ];
    assert_refused(&args, "power of two");
}

#[test]
fn a_machine_that_is_not_there_is_named() {
    for command in ["pause", "resume", "status", "cancel", "balloon"] {
        assert_refused(
            &[command, "--api-sock", "/nonexistent/vm.sock"],
            "/nonexistent/vm.sock",
        );
    }
    assert_refused(
        &["snapshot", "--api-sock", "/nonexistent/vm.sock", "out"],
        "No such file",
    );
}

#[test]
fn files_that_are_no_snapshots_are_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("not.vmsnap");
    std::fs::write(&path, vec![b'x'; 10_000]).unwrap();
    let name = path.to_str().unwrap();
    assert_refused(&["check", name], "not.vmsnap");
    assert_refused(&["restore", name, "--serial", "null"], "not.vmsnap");
    assert_refused(&["check", "/nonexistent/out.vmsnap"], "No such file");
}

#[test]
fn a_socket_path_that_is_a_file_is_refused_and_the_file_kept() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("precious");
    std::fs::write(&path, "text").unwrap();
    assert_refused(
        &["run", "--builtin", "--api-sock", path.to_str().unwrap()],
        "not a socket",
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"text");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let directory = TempDir::new().unwrap();
    let elf = directory.path().join("guest.elf");
    assert!(snapvm(&["builtin-elf", elf.to_str().unwrap()]).status.success());
    assert_eq!(&std::fs::read(&elf).unwrap()[..4], b"\x7fELF");
    let mut command = Command::new(env!("CARGO_BIN_EXE_snapvm"));
    command.args(["demo", "--no-kvm", "--memory", "16M", "--json"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    let code = child.wait().unwrap().code();
    if std::path::Path::new("/dev/userfaultfd").exists() {
        assert_eq!(code, Some(0), "{stderr}");
    } else {
        eprintln!("SKIPPED: a_reader_that_goes_away_is_no_error: there is no /dev/userfaultfd");
    }
}

#[test]
fn the_demonstration_works_without_kvm() {
    if !std::path::Path::new("/dev/userfaultfd").exists() {
        eprintln!("SKIPPED: the_demonstration_works_without_kvm: there is no /dev/userfaultfd");
        return;
    }
    let output = snapvm(&["demo", "--no-kvm", "--memory", "16M", "--cpus", "2", "--json"]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let story: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let modes: Vec<_> = story["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|snapshot| snapshot["mode"].as_str().unwrap())
        .collect();
    assert_eq!(modes, ["async", "stop"]);
}
