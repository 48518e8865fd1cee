//! A paused machine stands still: both ways of saving it give the same state, and it stays paused.

use e2e::{Guest, has_kvm, run};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn async_and_stop_of_a_paused_guest_have_the_same_root_digest() {
    if !has_kvm("async_and_stop_of_a_paused_guest_have_the_same_root_digest") {
        return;
    }
    let directory = TempDir::new().expect("a directory");
    let mut guest = Guest::run_builtin(directory.path(), &["--memory", "128M", "--cpus", "2"]);
    guest.wait_for_steps(10_000);
    guest.control("pause", &[]).expect_code(0);
    assert_eq!(guest.state(), "paused");
    let steps = guest.steps();

    let (moving, stopped) = (
        directory.path().join("async.vmsnap"),
        directory.path().join("stop.vmsnap"),
    );
    guest.snapshot(&moving, &["--mode", "async"]);
    guest.snapshot(&stopped, &["--mode", "stop", "--codec", "lz4", "--chunk", "16K"]);
    let digest = |file: &std::path::Path| -> Value {
        let report = run("snaptool", ["inspect", "--json", file.to_str().expect("UTF-8")])
            .expect_code(0)
            .json();
        assert!(report["root_digest"].is_string(), "no root digest in {report}");
        report["root_digest"].clone()
    };
    assert_eq!(digest(&moving), digest(&stopped));
    let names = [moving.to_str().expect("UTF-8"), stopped.to_str().expect("UTF-8")];
    run("snaptool", [&["diff"][..], &names].concat()).expect_code(0);

    assert_eq!(guest.state(), "paused");
    assert_eq!(guest.steps(), steps, "a paused guest ran");
    guest.control("resume", &[]).expect_code(0);
    guest.wait_for_steps(10_000);
    let later = directory.path().join("later.vmsnap");
    guest.snapshot(&later, &["--max-stall", "30s"]);
    run("snaptool", ["diff", names[0], later.to_str().expect("UTF-8")]).expect_code(1);
}

/// The clocks and timers of a machine are KVM's and go on while it is held; nothing else does.
fn assert_only_clocks_differ(diff: &Value) {
    const CLOCKS: [&str; 5] = ["clock", "msrs", "pit", "lapic", "tsc"];
    let sections = diff["sections"].as_array().expect("a list of sections").iter();
    for section in sections.filter(|section| section["state"] == true) {
        let fields = section["fields"].as_array();
        for field in fields.unwrap_or_else(|| panic!("not told by field: {section}")) {
            let path = field["path"].as_str().expect("a path");
            assert!(
                CLOCKS.iter().any(|clock| path.starts_with(clock)),
                "a held machine changed {field}"
            );
        }
    }
}

#[test]
fn a_machine_restored_paused_waits_for_resume() {
    if !has_kvm("a_machine_restored_paused_waits_for_resume") {
        return;
    }
    let directory = TempDir::new().expect("a directory");
    let mut guest = Guest::run_builtin(directory.path(), &["--memory", "64M"]);
    guest.wait_for_steps(5_000);
    let file = directory.path().join("out.vmsnap");
    guest.snapshot(&file, &["--max-stall", "30s"]);
    let name = file.to_str().expect("UTF-8");
    let mut restored = Guest::spawn(directory.path(), "restored", ["restore", name, "--paused"]);
    assert_eq!(restored.state(), "paused");
    let again = directory.path().join("again.vmsnap");
    restored.snapshot(&again, &["--mode", "stop"]);
    let compared = ["diff", "--json", name, again.to_str().expect("UTF-8")];
    let diff = run("snaptool", compared).json();
    assert_eq!(diff["memory"]["differing_bytes"], 0, "memory moved: {diff}");
    assert_only_clocks_differ(&diff);
    restored.control("resume", &[]).expect_code(0);
    restored.wait_for_steps(5_000);
}
