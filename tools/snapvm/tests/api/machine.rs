//! A process that waits for the description of its machine, and machines described in several ways.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::vm::Vm;
use crate::{Described, has_kvm};

/// What is asked of a process without a machine, and of one whose machine was described to it.
pub fn answers_around_the_description() -> BTreeSet<(String, String, u16)> {
    let mut api = Described::new(Vm::without_machine());
    for (method, path) in everything_about_a_machine(&api) {
        let answer = api.expect(404, &method, &path, "");
        assert!(
            answer["error"].as_str().unwrap().contains("/v1/machine"),
            "{answer}"
        );
    }
    for body in [
        "{".to_owned(),
        json!({}).to_string(),
        json!({"builtin": {}, "colour": "red"}).to_string(),
        json!({"kernel": "relative"}).to_string(),
        json!({"builtin": {}, "serial": "null", "memory": "lots"}).to_string(),
    ] {
        api.expect(400, "PUT", "/v1/machine", &body);
    }
    let missing = json!({"kernel": "/nonexistent/vmlinuz", "serial": "null"});
    let refused = api.expect(422, "PUT", "/v1/machine", &missing.to_string());
    assert!(refused.to_string().contains("/nonexistent/vmlinuz"), "{refused}");

    let description =
        json!({"name": "web", "memory": "64M", "builtin": {"seed": 7}, "serial": "null", "rng": false});
    let made = api.expect(201, "PUT", "/v1/machine", &description.to_string());
    assert_eq!((&made["memory"], &made["cpus"]), (&json!(64 << 20), &json!(1)));
    assert_eq!(api.expect(200, "GET", "/v1/machine", ""), made);
    let status = api.expect(200, "GET", "/v1/status", "");
    assert_eq!(
        (&status["name"], &status["state"]),
        (&json!("web"), &json!("running"))
    );
    api.expect(409, "PUT", "/v1/machine", &description.to_string());
    assert_eq!(api.expect(200, "PUT", "/v1/shutdown", "")["state"], "stopped");
    assert_eq!(api.vm.wait(), 0);
    api.seen
}

/// All that needs a machine; the routes that do not are left out.
fn everything_about_a_machine(api: &Described) -> Vec<(String, String)> {
    let answers = api.description.answers().into_iter();
    let described = answers.filter(|(_, _, status)| *status == 404);
    described.map(|(method, path, _)| (method, path)).collect()
}

#[test]
fn a_process_without_a_machine_ends_when_it_is_asked_to() {
    let mut api = Described::new(Vm::without_machine());
    assert_eq!(api.expect(200, "PUT", "/v1/shutdown", "")["state"], "stopped");
    assert_eq!(api.vm.wait(), 0);
    let mut vm = Vm::without_machine();
    vm.terminate();
    assert_eq!(vm.wait(), 0);
    assert!(!vm.socket().exists());
}

#[test]
fn flags_and_files_make_the_machine_that_they_describe() {
    if !has_kvm("flags_and_files_make_the_machine_that_they_describe") {
        return;
    }
    let flags = [
        "--memory", "64M", "--cpus", "2", "--seed", "7", "--no-rng", "--cpu", "host",
    ];
    let by_flags = Described::new(Vm::builtin(&flags)).expect(200, "GET", "/v1/machine", "");
    let text =
        "memory = \"64M\"\ncpus = 2\nrng = false\ncpu = \"host\"\nserial = \"null\"\nbuiltin.seed = 7\n";
    let by_file = Described::new(Vm::by_config("machine.toml", text)).expect(200, "GET", "/v1/machine", "");
    let without_serial = |mut description: Value| {
        description.as_object_mut().unwrap().remove("serial");
        description
    };
    assert_eq!(without_serial(by_flags), without_serial(by_file.clone()));
    let by_json = Described::new(Vm::by_config("machine.json", &by_file.to_string()));
    assert_eq!({ by_json }.expect(200, "GET", "/v1/machine", ""), by_file);
}

#[test]
fn a_file_that_describes_no_machine_is_refused_before_a_socket_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("machine.toml");
    fs::write(&config, "cpus = 1\nkernels = \"x\"\n").unwrap();
    let socket = directory.path().join("vm.sock");
    let (code, stderr) = Vm::fails_to_start(&["--config", config.to_str().unwrap()], &socket);
    assert_eq!(code, 2);
    assert!(
        stderr.contains("machine.toml: line 2") && stderr.contains("kernels"),
        "{stderr}"
    );
    assert!(!socket.exists());
}
