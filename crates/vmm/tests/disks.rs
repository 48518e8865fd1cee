//! A machine's disks: opened by others, changed under the machine, and what they tell.

mod support;

use std::time::Duration;

use std::path::Path;
use std::process::Command;

use support::payloads::{self, POKES};
use support::{boot, config, kvm_is_here, set_word, wait_for_heartbeats, wait_until, word};
use vmm::{
    DevicesConfig, Disk, DiskConfig, DiskEvent, DiskFormat, FrozenFor, Machine, MachineConfig, OnFull,
    RestoreOptions, create_guest_memory,
};

/// How long a machine may take to do what it must; slow machines are slow, not wrong.
const PATIENCE: Duration = Duration::from_secs(120);
/// Registers of the first virtio device.
const REGISTERS: u32 = 0xd000_0000;
/// Where the guest has its descriptors, its available and used rings, and its one request.
const DESCRIPTORS: u32 = 0x20_0000;
const AVAILABLE: u32 = 0x20_1000;
const USED: u32 = 0x20_2000;
const REQUEST: u32 = 0x20_3000;

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

/// A file system of a few MiB in memory.
struct SmallMedium(tempfile::TempDir);

impl SmallMedium {
    /// Nothing if this process may not mount.
    fn mount(test: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2M", "tmpfs"])
            .arg(directory.path())
            .output();
        if !mount.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: {test}: cannot mount a file system (root only)");
            return None;
        }
        Some(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes an overlay of a raw disk, then leaves no room for anything.
    fn full_disk(&self) -> Disk {
        let raw = self.path().join("d.raw");
        std::fs::File::create(&raw).unwrap().set_len(1 << 20).unwrap();
        let config = DiskConfig {
            on_full: OnFull::Pause,
            ..DiskConfig::new("data", raw)
        };
        let disk = Disk::open(&config).unwrap();
        let owner = FrozenFor {
            snapshot: "/tmp/out.vmsnap".into(),
            file_id: [1; 16],
        };
        let prepared = disk.prepare_overlay(&self.path().join("frozen"), &owner).unwrap();
        prepared.switch().unwrap().settle().unwrap();
        std::fs::write(self.path().join("ballast"), vec![1; 4 << 20]).expect_err("the medium is full");
        disk
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallMedium {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.path().display());
        }
    }
}

/// Boots a guest that drives its disk as Linux would and writes one page to it.
fn writing(disk: &Disk) -> Machine {
    let mut config = MachineConfig {
        cpus: 1,
        ..with_disk(disk.config().clone())
    };
    config.kernel = support::config(payloads::poke()).kernel;
    config.opened_disks.push(disk.clone());
    let machine = boot(&config);
    // Header (a write to sector 0), data, status; the device writes the last.
    for (index, (address, len, flags, next)) in [
        (REQUEST, 16, 1, 1u32),
        (REQUEST + 0x100, 4096 - 512, 1, 2),
        (REQUEST + 16, 1, 2, 0),
    ]
    .into_iter()
    .enumerate()
    {
        let descriptor = u64::from(DESCRIPTORS) + 16 * index as u64;
        set_word(&machine, descriptor, address);
        set_word(&machine, descriptor + 8, len);
        set_word(&machine, descriptor + 12, flags | next << 16);
    }
    set_word(&machine, REQUEST.into(), 1);
    set_word(&machine, u64::from(REQUEST) + 16, 0xee);
    // One chain is available, that of descriptor 0.
    set_word(&machine, AVAILABLE.into(), 1 << 16);
    let registers = [
        (0x070, 1),
        (0x070, 3),
        (0x024, 1),
        (0x020, 1), // version 1
        (0x070, 11),
        (0x038, 8),
        (0x080, DESCRIPTORS),
        (0x090, AVAILABLE),
        (0x0a0, USED),
        (0x044, 1),
        (0x070, 15),
        (0x050, 0),
    ];
    for (index, (register, value)) in registers.into_iter().enumerate() {
        let pair = POKES + 8 * index as u64;
        set_word(&machine, pair, REGISTERS + register);
        set_word(&machine, pair + 4, value);
    }
    machine.resume().unwrap();
    machine
}

fn answered(machine: &Machine) -> bool {
    word(machine, USED.into()) >> 16 == 1
}

#[test]
fn a_machine_whose_disk_is_full_waits_for_room_and_loses_nothing() {
    let test = "a_machine_whose_disk_is_full_waits_for_room_and_loses_nothing";
    let Some(medium) = kvm_is_here().then(|| SmallMedium::mount(test)).flatten() else {
        return;
    };
    let disk = medium.full_disk();
    let machine = writing(&disk);
    let full = DiskEvent::Full {
        disk: "data".to_owned(),
    };
    assert_eq!(machine.wait_disk_event(PATIENCE).as_ref(), Some(&full));
    machine.pause().unwrap();
    let error = machine.save_state().unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(
        source,
        "disk data: the medium is full and a request waits for room"
    );
    // In vain.
    machine.resume().unwrap();
    assert_eq!(machine.wait_disk_event(PATIENCE), Some(full));
    machine.pause().unwrap();
    assert!(!answered(&machine));
    medium.make_room();
    machine.resume().unwrap();
    wait_until("the write to be done", || answered(&machine));
    assert_eq!(word(&machine, u64::from(REQUEST) + 16) & 0xff, 0, "its status");
    machine.pause().unwrap();
    machine.save_state().unwrap();
    assert_eq!(machine.wait_disk_event(Duration::ZERO), None);
}

#[test]
fn a_machine_is_dropped_while_a_request_waits_for_room() {
    let test = "a_machine_is_dropped_while_a_request_waits_for_room";
    let Some(medium) = kvm_is_here().then(|| SmallMedium::mount(test)).flatten() else {
        return;
    };
    for paused in [false, true] {
        let disk = medium.full_disk();
        let machine = writing(&disk);
        machine.wait_disk_event(PATIENCE).unwrap();
        if paused {
            machine.pause().unwrap();
        }
        drop(machine);
        assert!(!disk.waits_for_room());
        drop(disk);
        for name in ["ballast", "d.raw.qcow2", "d.raw"] {
            std::fs::remove_file(medium.path().join(name)).unwrap();
        }
    }
}
