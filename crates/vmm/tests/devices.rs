//! What a machine's devices are to its guest and its owner, over a pause and a restore.

mod support;

use support::payloads::{self, COUNTER};
use support::{boot, clone_of, config, kvm_is_here, wait_for_heartbeats, word};
use vm_memory::{Bytes, GuestAddress};
use vmm::{
    BalloonConfig, ConsoleConfig, CpuModel, DevicesConfig, DiskConfig, Error, ErrorKind, Machine,
    MachineConfig, RestoreOptions, RunState, VmState, VsockConfig, create_guest_memory,
};

/// Where the machine keeps its generation id, which the guest learns from the ACPI tables.
const GENERATION_ID: GuestAddress = GuestAddress(0xd_ff00);

fn generation_id(machine: &Machine) -> [u8; 16] {
    machine.memory().read_obj(GENERATION_ID).unwrap()
}

fn running(config: &MachineConfig) -> Machine {
    let machine = boot(config);
    machine.resume().unwrap();
    wait_for_heartbeats(&machine, 10);
    machine
}

fn disk(id: &str, file: &tempfile::NamedTempFile) -> DiskConfig {
    file.as_file().set_len(1 << 20).unwrap();
    DiskConfig {
        readonly: true,
        ..DiskConfig::new(id, file.path())
    }
}

/// A machine with a device of each kind that needs nothing of its host but a file.
fn with_devices(files: &[tempfile::NamedTempFile; 2]) -> MachineConfig {
    let [first, second] = files;
    MachineConfig {
        devices: DevicesConfig {
            disks: vec![disk("system", first), disk("data", second)],
            vsock: Some(VsockConfig {
                cid: 3,
                uds: None,
                vhost: false,
            }),
            console: Some(ConsoleConfig::default()),
            balloon: Some(BalloonConfig::default()),
            rng: true,
            ..DevicesConfig::none()
        },
        ..config(payloads::virtio())
    }
}

fn two_files() -> [tempfile::NamedTempFile; 2] {
    std::array::from_fn(|_| tempfile::NamedTempFile::new().unwrap())
}

#[test]
fn a_restored_guest_gets_a_new_generation_id_when_it_starts_and_the_source_keeps_its_own() {
    if !kvm_is_here() {
        return;
    }
    let config = config(payloads::count());
    let source = running(&config);
    source.pause().unwrap();
    let id = generation_id(&source);
    assert_ne!(id, [0; 16], "a booted machine has one");
    let clones = [clone_of(&config, &source), clone_of(&config, &source)];
    for clone in &clones {
        assert_eq!(generation_id(clone), id, "a copy that never ran is a copy");
        clone.resume().unwrap();
    }
    source.resume().unwrap();
    wait_for_heartbeats(&source, 10);
    let renewed = clones.each_ref().map(generation_id);
    assert_eq!(generation_id(&source), id);
    assert!(renewed[0] != id && renewed[1] != id && renewed[0] != renewed[1]);

    clones[0].pause().unwrap();
    clones[0].resume().unwrap();
    assert_eq!(generation_id(&clones[0]), renewed[0], "once for each restore");
    clones[0].pause().unwrap();
    let grandchild = clone_of(&config, &clones[0]);
    grandchild.resume().unwrap();
    assert_ne!(generation_id(&grandchild), renewed[0]);
}

#[test]
fn a_guest_finds_the_virtio_devices_of_the_configuration_and_still_does_after_a_restore() {
    if !kvm_is_here() {
        return;
    }
    let files = two_files();
    let config = with_devices(&files);
    let machine = running(&config);
    assert_eq!(word(&machine, COUNTER), 6);
    assert_eq!(
        machine.disks().iter().map(vmm::Disk::id).collect::<Vec<_>>(),
        ["system", "data"]
    );
    assert!(machine.balloon().is_some());
    assert_eq!(machine.send_console_input(b"x").unwrap(), 1);
    machine.pause().unwrap();
    let names = machine.save_state().unwrap().vm.devices;
    let virtio: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| name.starts_with("virtio"))
        .collect();
    assert_eq!(
        virtio,
        [
            "virtio-blk-system",
            "virtio-blk-data",
            "virtio-vsock",
            "virtio-console",
            "virtio-balloon",
            "virtio-rng"
        ]
    );
    let clone = clone_of(&config, &machine);
    clone.resume().unwrap();
    wait_for_heartbeats(&clone, 10);
    assert_eq!(clone.devices_config(), &config.devices);
}

#[test]
fn a_machine_with_other_devices_is_not_the_saved_one() {
    if !kvm_is_here() {
        return;
    }
    let files = two_files();
    let config = with_devices(&files);
    let machine = running(&config);
    machine.pause().unwrap();
    let state = machine.save_state().unwrap();
    let mut other = config.clone();
    other.devices.rng = false;
    let memory = create_guest_memory(&other).unwrap();
    let error = Machine::restore(&other, memory, &state, &RestoreOptions::default()).unwrap_err();
    assert!(
        matches!(error, Error::Topology { part: "devices", .. }),
        "{error}"
    );
    assert!(error.to_string().contains("virtio-rng"), "{error}");
}

#[test]
fn a_virtio_state_that_contradicts_itself_is_refused_with_the_devices_name() {
    if !kvm_is_here() {
        return;
    }
    let files = two_files();
    let config = with_devices(&files);
    let machine = running(&config);
    machine.pause().unwrap();
    let state = machine.save_state().unwrap();
    let last = state.devices.len() - 1;
    for change in [
        |device: &mut vmm::DeviceState| device.version = 77,
        |device: &mut vmm::DeviceState| device.state = ciborium::Value::Map(vec![]),
    ] {
        let mut changed = state.clone();
        change(&mut changed.devices[last]);
        let memory = create_guest_memory(&config).unwrap();
        let error = Machine::restore(&config, memory, &changed, &RestoreOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), "device virtio-rng");
    }
}

#[test]
fn devices_can_be_quiesced_ahead_of_a_pause_and_set_to_work_again() {
    if !kvm_is_here() {
        return;
    }
    let files = two_files();
    let machine = running(&with_devices(&files));
    machine.release_devices();
    for _ in 0..2 {
        machine.quiesce_devices().unwrap();
        machine.quiesce_devices().unwrap();
        assert_eq!(machine.state(), RunState::Running, "the vCPUs run on");
        wait_for_heartbeats(&machine, 10);
        machine.release_devices();
    }
    machine.quiesce_devices().unwrap();
    machine.pause().unwrap();
    machine.release_devices();
    let state = machine.save_state().unwrap();
    VmState::from_parts(&state.to_parts().unwrap()).unwrap();
    machine.resume().unwrap();
    machine.quiesce_devices().unwrap();
    machine.resume().unwrap();
    wait_for_heartbeats(&machine, 10);
    machine.stop();
    assert!(matches!(
        machine.quiesce_devices(),
        Err(Error::InvalidRunState {
            operation: "quiesce",
            ..
        })
    ));
}

#[test]
fn devices_that_cannot_be_are_refused_before_anything_runs() {
    if !kvm_is_here() {
        return;
    }
    let files = two_files();
    let refusal = |devices: DevicesConfig| {
        let memory = create_guest_memory(&config(payloads::halt())).unwrap();
        let config = MachineConfig {
            devices,
            ..config(payloads::halt())
        };
        Machine::boot(&config, memory).unwrap_err()
    };
    let none = DevicesConfig::none;
    let twice = refusal(DevicesConfig {
        disks: vec![disk("a", &files[0]), disk("a", &files[1])],
        ..none()
    });
    assert!(matches!(twice, Error::InvalidDevices(_)), "{twice:?}");
    assert_eq!(twice.kind(), ErrorKind::InvalidInput);

    let mut missing = disk("a", &files[0]);
    missing.file = "/nonexistent/disk".into();
    let missing = refusal(DevicesConfig {
        disks: vec![missing],
        ..none()
    });
    assert_eq!(missing.to_string(), "device virtio-blk-a");
    let source = std::error::Error::source(&missing).unwrap().to_string();
    assert!(source.contains("/nonexistent/disk"), "{source}");

    let too_many = refusal(DevicesConfig {
        disks: (0..16)
            .map(|index| disk(&format!("d{index}"), &files[0]))
            .collect(),
        ..with_devices(&files).devices
    });
    assert!(
        matches!(too_many, Error::InvalidConfig { field: "devices", .. }),
        "{too_many:?}"
    );

    let machine = boot(&config(payloads::halt()));
    assert!(matches!(
        machine.send_console_input(b"x"),
        Err(Error::MissingDevice {
            name: "virtio-console"
        })
    ));
}

#[test]
fn a_machine_of_a_baseline_boots_where_the_host_meets_it_and_says_why_not_elsewhere() {
    if !kvm_is_here() {
        return;
    }
    for cpu in [CpuModel::X86_64V2, CpuModel::X86_64V3] {
        let config = MachineConfig {
            cpu,
            ..config(payloads::count())
        };
        match Machine::boot(&config, create_guest_memory(&config).unwrap()) {
            Ok(machine) => {
                machine.resume().unwrap();
                wait_for_heartbeats(&machine, 10);
                assert_eq!(machine.cpu_model(), cpu);
            }
            Err(error) => assert!(matches!(error, Error::MissingFeatures { .. }), "{error}"),
        }
    }
}
