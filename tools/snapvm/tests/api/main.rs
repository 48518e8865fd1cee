//! The control API of a real machine, held against its OpenAPI description.

mod description;
mod devices;
mod machine;
mod vm;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use description::Description;
use vm::Vm;

/// Whether there is KVM; says so if a test is skipped for lack of it.
fn has_kvm(test: &str) -> bool {
    let there = Path::new("/dev/kvm").exists();
    if !there {
        eprintln!("SKIPPED: {test}: there is no /dev/kvm");
    }
    there
}

/// A machine whose every answer is held against the description.
struct Described {
    vm: Vm,
    description: Description,
    seen: BTreeSet<(String, String, u16)>,
}

impl Described {
    fn new(vm: Vm) -> Self {
        Self {
            vm,
            description: Description::load(),
            seen: BTreeSet::new(),
        }
    }

    /// Makes a request and insists on the status and on an answer as described.
    #[track_caller]
    fn expect(&mut self, status: u16, method: &str, route: &str, body: &str) -> Value {
        let (answered, answer) = self.vm.request(method, route, body);
        assert_eq!(answered, status, "{method} {route} {body}: {answer}");
        let path = route.split('?').next().unwrap();
        self.description.check(method, path, status, &answer);
        self.seen.insert((method.to_owned(), path.to_owned(), status));
        answer
    }

    /// Waits until the latest snapshot has ended.
    fn wait_for_end(&mut self) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let snapshot = self.expect(200, "GET", "/v1/snapshots/current", "");
            if snapshot["state"] != "running" {
                return snapshot;
            }
            assert!(Instant::now() < deadline, "the snapshot does not end: {snapshot}");
        }
    }

    /// Begins a snapshot that takes long.
    fn start_slow_snapshot(&mut self) -> Value {
        let body = json!({"path": self.vm.path("slow.vmsnap"), "level": 19, "max_stall_us": 60_000_000_u64});
        self.expect(202, "POST", "/v1/snapshots", &body.to_string())
    }
}

#[test]
fn every_answer_is_as_described() {
    if !has_kvm("every_answer_is_as_described") {
        return;
    }
    let mut api = Described::new(Vm::builtin(&["--memory", "64M", "--balloon"]));
    answers_without_a_snapshot(&mut api);
    answers_about_the_balloon(&mut api);
    answers_to_bad_requests(&mut api);
    answers_around_snapshots(&mut api);
    answers_about_the_guest(&mut api);
    let shut_down = api.expect(200, "PUT", "/v1/shutdown", "");
    assert_eq!(shut_down["state"], "stopped");
    assert_eq!(api.vm.wait(), 0);
    let mut seen = api.seen;
    let mut other = Described::new(Vm::other_guest());
    other.expect(404, "GET", "/v1/guest", "");
    other.expect(404, "PUT", "/v1/guest/longest-gap", "");
    assert_eq!(other.expect(200, "GET", "/v1/status", "")["guest"], Value::Null);
    other.expect(404, "GET", "/v1/balloon", "");
    other.expect(404, "PUT", "/v1/balloon", r#"{"target_bytes": 0}"#);
    seen.append(&mut other.seen);
    seen.append(&mut machine::answers_around_the_description());
    seen.append(&mut devices::answers_about_disks());

    // A stopped machine answers only for as long as its process takes to end.
    let beyond_reach =
        [("PUT", "/v1/pause"), ("PUT", "/v1/resume")].map(|(m, p)| (m.to_owned(), p.to_owned(), 409));
    let described = api.description.answers();
    let untried: Vec<_> = described
        .iter()
        .filter(|answer| !seen.contains(answer) && !beyond_reach.contains(answer))
        .collect();
    assert!(untried.is_empty(), "described, but never seen: {untried:?}");
}

fn answers_without_a_snapshot(api: &mut Described) {
    assert_eq!(api.expect(200, "GET", "/v1/status", "")["snapshot"], Value::Null);
    api.expect(404, "GET", "/v1/snapshots/current", "");
    api.expect(409, "DELETE", "/v1/snapshots/current", "");
    assert_eq!(api.expect(200, "PUT", "/v1/pause", "")["state"], "paused");
    assert_eq!(
        api.expect(200, "PUT", "/v1/pause", "")["state"],
        "paused",
        "pausing twice is harmless"
    );
    assert_eq!(api.expect(200, "GET", "/v1/status", "")["state"], "paused");
    assert_eq!(api.expect(200, "PUT", "/v1/resume", "")["state"], "running");
    assert_eq!(
        api.expect(200, "GET", "/v1/openapi.json", ""),
        api.description.document()
    );
}

fn answers_to_bad_requests(api: &mut Described) {
    for body in [
        String::new(),
        "{".to_owned(),
        "[]".to_owned(),
        json!({}).to_string(),
        json!({"path": "relative.vmsnap"}).to_string(),
        json!({"path": "/x", "parent": "relative.vmsnap"}).to_string(),
        json!({"path": "/x", "colour": "red"}).to_string(),
        json!({"path": "/x", "mode": "later"}).to_string(),
        json!({"path": "/x", "level": 99}).to_string(),
        json!({"path": "/x", "chunk_bytes": 5000}).to_string(),
        json!({"path": "/x", "chunk_bytes": 1_u64 << 40}).to_string(),
        json!({"path": "/x", "max_arm_us": -1}).to_string(),
    ] {
        let answer = api.expect(400, "POST", "/v1/snapshots", &body);
        assert_ne!(answer["error"], "", "{body}");
    }
    let body = json!({"path": api.vm.path("out.vmsnap")}).to_string();
    api.expect(400, "POST", "/v1/snapshots?wait=perhaps", &body);
    api.expect(404, "GET", "/v1/snapshots/current", "");
}

fn answers_around_snapshots(api: &mut Described) {
    for mode in ["async", "stop"] {
        let body = json!({"path": api.vm.path("out.vmsnap"), "mode": mode, "labels": {"why": "test"}});
        let done = api.expect(200, "POST", "/v1/snapshots?wait=true", &body.to_string());
        assert_eq!(done["state"], "done", "{done}");
        assert_eq!(done["report"]["statistics"]["mode"], mode);
    }
    let started = api.start_slow_snapshot();
    assert_eq!(
        (&started["id"], &started["state"]),
        (&json!(3), &json!("running"))
    );
    let busy = json!({"path": api.vm.path("busy.vmsnap")});
    api.expect(409, "POST", "/v1/snapshots", &busy.to_string());
    assert_eq!(api.expect(200, "GET", "/v1/status", "")["snapshot"]["id"], 3);
    api.expect(202, "DELETE", "/v1/snapshots/current", "");
    assert_eq!(api.wait_for_end()["state"], "cancelled");
    assert!(!api.vm.path("slow.vmsnap").exists());

    let nowhere = json!({"path": api.vm.path("missing/out.vmsnap")});
    let failed = api.expect(200, "POST", "/v1/snapshots?wait=true", &nowhere.to_string());
    assert_eq!(failed["state"], "failed");
    assert!(
        failed["error"]["error"].as_str().unwrap().contains("missing"),
        "{failed}"
    );
    assert_eq!(api.expect(200, "GET", "/v1/status", "")["state"], "running");
}

fn answers_about_the_balloon(api: &mut Described) {
    let target = json!({"target_bytes": 16 << 20});
    // Nobody in this guest has a driver: the target is kept for whoever may have one.
    let asked = api.expect(200, "PUT", "/v1/balloon", &target.to_string());
    assert_eq!(asked, json!({"target_bytes": 16 << 20, "actual_bytes": 0}));
    assert_eq!(api.expect(200, "GET", "/v1/balloon", ""), asked);
    for body in [
        json!({}),
        json!({"target_bytes": -1}),
        json!({"target_bytes": 1_u64 << 40}),
        json!({"target_bytes": 0, "colour": "red"}),
    ] {
        api.expect(400, "PUT", "/v1/balloon", &body.to_string());
    }
}

fn answers_about_the_guest(api: &mut Described) {
    let guest = api.expect(200, "GET", "/v1/guest", "");
    assert_eq!(guest["bad_stamps"], 0);
    assert_eq!(guest["cpus"].as_array().unwrap().len(), 1);
    api.expect(200, "PUT", "/v1/guest/longest-gap", "");
}

#[test]
fn what_is_not_described_is_refused() {
    if !has_kvm("what_is_not_described_is_refused") {
        return;
    }
    let vm = Vm::builtin(&["--memory", "64M"]);
    let description = Description::load();
    for path in description.paths() {
        for method in ["GET", "PUT", "POST", "DELETE", "PATCH"] {
            if !description.has(method, &path) {
                let (status, answer) = vm.request(method, &path, "");
                assert_eq!(status, 405, "{method} {path}: {answer}");
                description.check_error(&answer);
            }
        }
    }
    for path in ["/", "/v1", "/v1/status/", "/v2/status", "/v1/snapshots/1"] {
        let (status, answer) = vm.request("GET", path, "");
        assert_eq!(status, 404, "{path}: {answer}");
        description.check_error(&answer);
    }
}

#[test]
fn api_and_guest_go_on_while_a_snapshot_is_written() {
    if !has_kvm("api_and_guest_go_on_while_a_snapshot_is_written") {
        return;
    }
    let mut api = Described::new(Vm::builtin(&["--memory", "128M", "--cpus", "2"]));
    api.start_slow_snapshot();
    let steps = |api: &mut Described| api.expect(200, "GET", "/v1/guest", "")["steps"].as_u64().unwrap();
    let before = steps(&mut api);
    while steps(&mut api) < before + 2000 {
        let status = api.expect(200, "GET", "/v1/status", "");
        assert_eq!(
            status["snapshot"]["state"], "running",
            "the snapshot ended too early to tell"
        );
    }
    // A pause by the user is possible as well, and the snapshot does not undo it.
    assert_eq!(api.expect(200, "PUT", "/v1/pause", "")["state"], "paused");
    api.expect(202, "DELETE", "/v1/snapshots/current", "");
    api.wait_for_end();
    assert_eq!(api.expect(200, "GET", "/v1/status", "")["state"], "paused");
}

#[test]
fn a_signal_gives_the_snapshot_up_and_removes_the_socket() {
    if !has_kvm("a_signal_gives_the_snapshot_up_and_removes_the_socket") {
        return;
    }
    let mut api = Described::new(Vm::builtin(&["--memory", "128M"]));
    api.start_slow_snapshot();
    api.vm.terminate();
    assert_eq!(api.vm.wait(), 0);
    assert!(!api.vm.socket().exists(), "the socket is still there");
    let left: Vec<_> = std::fs::read_dir(api.vm.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["serial.log"], "left behind");
}

#[test]
fn a_socket_in_use_is_not_taken() {
    if !has_kvm("a_socket_in_use_is_not_taken") {
        return;
    }
    let vm = Vm::builtin(&["--memory", "64M"]);
    let (code, stderr) = Vm::fails_to_start(&["--builtin", "--memory", "64M"], &vm.socket());
    assert_eq!(code, 2);
    assert!(stderr.contains("another process listens"), "{stderr}");
    assert_eq!(vm.request("GET", "/v1/status", "").0, 200);
}
