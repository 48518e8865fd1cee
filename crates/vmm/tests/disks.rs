//! A machine's disks: opened by others, changed under the machine, and what they tell.

mod support;

use std::time::Duration;

use support::{boot, config, kvm_is_here, payloads, wait_for_heartbeats};
use vmm::{
    DevicesConfig, Disk, DiskConfig, DiskFormat, FrozenFor, Machine, MachineConfig, RestoreOptions,
    create_guest_memory,
};

/// A machine with one writable disk.
fn with_disk(disk: DiskConfig) -> MachineConfig {
    MachineConfig {
        devices: DevicesConfig {
            disks: vec![disk],
            ..DevicesConfig::none()
        },
        ..config(payloads::count())
    }
}

fn raw_disk(directory: &tempfile::TempDir) -> DiskConfig {
    let path = directory.path().canonicalize().unwrap().join("d.raw");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    DiskConfig::new("data", path)
}

#[test]
fn a_disk_that_is_open_already_is_not_opened_again() {
    if !kvm_is_here() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = raw_disk(&directory);
    let mut config = with_disk(DiskConfig::new("data", "/nonexistent"));
    config.opened_disks.push(Disk::open(&disk).unwrap());
    let machine = boot(&config);
    assert_eq!(machine.disks()[0].path(), Some(disk.file));
    assert_eq!(machine.devices_config(), &config.devices);
}

#[test]
fn a_machine_goes_on_over_an_overlay_and_so_does_one_that_is_restored() {
    if !kvm_is_here() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = raw_disk(&directory);
    let config = with_disk(disk.clone());
    let machine = boot(&config);
    machine.resume().unwrap();
    wait_for_heartbeats(&machine, 10);
    let live = machine.disks().remove(0);
    let owner = FrozenFor {
        snapshot: "/tmp/out.vmsnap".into(),
        file_id: [1; 16],
    };
    let prepared = live.prepare_overlay(&disk.file, &owner).unwrap();
    machine.pause().unwrap();
    let frozen = prepared.switch().unwrap();
    let state = machine.save_state().unwrap();
    machine.resume().unwrap();
    frozen.settle().unwrap();
    assert_eq!((frozen.path, frozen.format), (disk.file.clone(), DiskFormat::Raw));
    assert_eq!((live.depth(), live.format()), (2, DiskFormat::Qcow2));
    let overlay = live.path().unwrap();
    drop((machine, live));

    let overlay = DiskConfig {
        file: overlay,
        format: DiskFormat::Qcow2,
        ..disk
    };
    let config = with_disk(overlay);
    let memory = create_guest_memory(&config).unwrap();
    let restored = Machine::restore(&config, memory, &state, &RestoreOptions::default()).unwrap();
    assert_eq!(restored.disks()[0].depth(), 2);
    assert_eq!(restored.save_state().unwrap().devices, state.devices);
}

#[test]
fn waiting_for_disks_ends_with_the_machine() {
    if !kvm_is_here() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let machine = boot(&with_disk(raw_disk(&directory)));
    assert_eq!(machine.wait_disk_event(Duration::ZERO), None);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| machine.wait_disk_event(Duration::MAX));
        machine.stop();
        assert_eq!(waiting.join().unwrap(), None);
    });
}
