//! Guests on real virtualisation: unmodified Linux kernels under load, which must never notice a snapshot.
//!
//! Each test is one run of the suite with a directory of its own in `target/guests/runs`, where everything that was
//! seen is kept. The runs take turns: each of them uses all processors.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use e2e::nested::{self, Missing, Ran, Wanted};
use e2e::plan::{Disks, Extra, PlannedKernel, Round};

/// Snapshots of the main scenarios, unless `NESTED_SNAPSHOTS` says otherwise, and of the others.
const MANY: u32 = 20;
const FEW: u32 = 3;

/// Snapshots in whose midst the machine is killed, with each kind of disks.
const KILLS: u32 = 7;

/// Bounds for hanging machines; a run takes a fraction of them.
const SHORT: Duration = Duration::from_secs(15 * 60);
const LONG: Duration = Duration::from_secs(30 * 60);

const CLOUD: &str = "debian-cloud-6.1";
const GENERIC: &str = "debian-generic-6.1";
const NEWER: &str = "debian-cloud-6.12";
const UBUNTU: &str = "ubuntu-6.8";

#[test]
fn the_built_in_guest_is_snapshotted_without_a_wrong_page() {
    let wanted = wanted("the_built_in_guest", CLOUD, &[], SHORT);
    run(&wanted, |_kernels, _place| {
        let of = |cpus| Round::Builtin { cpus, snapshots: FEW };
        vec![of(1), of(2)]
    });
}

#[test]
fn a_newer_host_kernel_protects_memory_that_is_not_there() {
    let wanted = wanted("a_newer_host_kernel", NEWER, &[], SHORT);
    run(&wanted, |_kernels, _place| {
        vec![Round::Builtin {
            cpus: 1,
            snapshots: FEW,
        }]
    });
}

#[test]
fn linux_with_one_processor_never_notices() {
    let wanted = wanted("linux_with_one_processor", CLOUD, &[CLOUD], LONG);
    run(&wanted, |kernels, _place| {
        vec![linux(
            &kernels[0],
            1,
            many(),
            Disks::Qcow2Overlaid,
            Extra::Nothing,
        )]
    });
}

#[test]
fn linux_with_two_processors_never_notices() {
    let wanted = wanted("linux_with_two_processors", CLOUD, &[CLOUD], LONG);
    run(&wanted, |kernels, _place| {
        vec![linux(
            &kernels[0],
            2,
            many(),
            Disks::Qcow2Internal,
            Extra::Nothing,
        )]
    });
}

#[test]
fn what_a_kill_leaves_is_what_the_guest_last_saw() {
    let wanted = wanted("killed", CLOUD, &[CLOUD], LONG);
    run(&wanted, |kernels, _place| {
        let killed = |disks| Round::Killed {
            kernel: kernels[0].clone(),
            disks,
            kills: KILLS,
        };
        vec![killed(Disks::Qcow2Overlaid), killed(Disks::Qcow2Internal)]
    });
}

#[test]
fn copies_of_a_generic_kernel_know_what_they_are() {
    let wanted = wanted("generic_kernel", CLOUD, &[GENERIC], SHORT);
    run(&wanted, |kernels, _place| {
        vec![linux(&kernels[0], 2, FEW, Disks::RawOverlaid, Extra::Nothing)]
    });
}

#[test]
fn copies_of_a_newer_kernel_know_what_they_are() {
    let wanted = wanted("newer_kernel", CLOUD, &[NEWER], SHORT);
    run(&wanted, |kernels, _place| {
        vec![linux(&kernels[0], 2, FEW, Disks::RawCopied, Extra::Nothing)]
    });
}

#[test]
fn linux_of_another_distribution_never_notices() {
    let wanted = wanted("ubuntu_kernel", CLOUD, &[UBUNTU], SHORT);
    run(&wanted, |kernels, _place| {
        vec![linux(&kernels[0], 1, FEW, Disks::Qcow2Overlaid, Extra::Devices)]
    });
}

#[test]
fn what_the_kernel_writes_for_vhost_is_captured() {
    if nested::has_hardware_kvm() && !Path::new("/dev/vhost-vsock").exists() {
        eprintln!("SKIPPED: what_the_kernel_writes_for_vhost_is_captured: no /dev/vhost-vsock");
        return;
    }
    let wanted = wanted("vhost", CLOUD, &[CLOUD], SHORT);
    run(&wanted, |kernels, place| {
        let program = |name: &str, arguments: &[&str]| Round::Program {
            name: name.to_owned(),
            command: std::iter::once(place.join("vhost_caught").display().to_string())
                .chain(arguments.iter().map(|argument| (*argument).to_owned()))
                .collect(),
        };
        vec![
            program("vhost-vsock without a guest", &["--rounds", "20"]),
            program("the oracle of vhost can fail", &["--no-protect", "--rounds", "3"]),
            linux(&kernels[0], 1, FEW, Disks::RawCopied, Extra::Vhost),
        ]
    });
}

/// Snapshots of the main scenarios.
fn many() -> u32 {
    let wanted = std::env::var("NESTED_SNAPSHOTS").ok();
    wanted.map_or(MANY, |number| {
        number.parse().expect("NESTED_SNAPSHOTS is a number")
    })
}

fn wanted<'a>(name: &'a str, outer: &'a str, kernels: &'a [&'a str], limit: Duration) -> Wanted<'a> {
    Wanted {
        name,
        outer,
        kernels,
        limit,
    }
}

fn linux(kernel: &PlannedKernel, cpus: u32, snapshots: u32, disks: Disks, extra: Extra) -> Round {
    Round::Linux {
        kernel: kernel.clone(),
        cpus,
        snapshots,
        disks,
        extra,
    }
}

/// Runs the suite when its turn comes; where it cannot be run the test says why.
fn run(wanted: &Wanted<'_>, rounds: impl FnOnce(&[PlannedKernel], &Path) -> Vec<Round>) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match nested::run(wanted, rounds) {
        Ok(ran) => judge(&ran),
        Err(reason) if reason.is::<Missing>() => eprintln!("SKIPPED: {}: {reason}", wanted.name),
        Err(reason) => panic!("{}: {reason:#}", wanted.name),
    }
}

/// Prints every step; fails when one failed, or when the suite did not come to its end, with the reason at the end.
fn judge(ran: &Ran) {
    for step in &ran.steps {
        let outcome = step.error.as_deref().unwrap_or("ok");
        println!(
            "{}: {}: {:.1} s: {outcome}",
            step.scenario, step.step, step.seconds
        );
        println!("    {:?} {:?}", step.figures, step.facts);
    }
    if let Some(failure) = ran.failure() {
        panic!("{failure}");
    }
}
