//! Whole machines: saved while they run, brought back, refused where they cannot run.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use snapshot::{
    RestoreOptions, SaveControl, SaveMode, SaveOptions, check, read_provenance, read_state, read_statistics,
    restore, save,
};
use tempfile::TempDir;
use vmm::builtin::{BuiltinOptions, Mailbox};
use vmm::{Kernel, Machine, MachineConfig, RunState, VmState, create_guest_memory};

const MEMORY_BYTES: u64 = 64 << 20;

/// Boots the built-in guest, unless there is no KVM.
fn boot(test: &str, cpus: u32) -> Option<Machine> {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("SKIPPED: {test}: there is no /dev/kvm");
        return None;
    }
    let config = MachineConfig {
        memory_bytes: MEMORY_BYTES,
        cpus,
        kernel: Some(Kernel::Builtin(BuiltinOptions::default())),
        ..MachineConfig::default()
    };
    let machine = Machine::boot(&config, create_guest_memory(&config).unwrap()).unwrap();
    machine.resume().unwrap();
    wait_for_steps(&machine, cpus, 2000);
    Some(machine)
}

fn steps(machine: &Machine, cpus: u32) -> u64 {
    (0..cpus)
        .map(|cpu| Mailbox::read(machine.memory(), cpu).unwrap().step)
        .sum()
}

fn wait_for_steps(machine: &Machine, cpus: u32, more: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let target = steps(machine, cpus) + more;
    while steps(machine, cpus) < target {
        assert!(Instant::now() < deadline, "the guest makes no progress");
        thread::yield_now();
    }
}

#[track_caller]
fn assert_clean(path: &Path) {
    let report = check(path, 0).unwrap();
    assert_eq!(report.mismatches, Vec::<String>::new());
    assert!(report.pages_checked > 16_000, "{report:?}");
}

#[test]
fn a_running_machine_is_saved_and_its_twin_goes_on() {
    let Some(machine) = boot("a_running_machine_is_saved_and_its_twin_goes_on", 2) else {
        return;
    };
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("out.vmsnap");
    let options = SaveOptions {
        vm_name: "web".to_owned(),
        labels: [("why".to_owned(), "test".to_owned())].into(),
        ..SaveOptions::default()
    };
    let report = save(&machine, &path, &options, &SaveControl::new()).unwrap();
    assert_clean(&path);
    assert_eq!(machine.state(), RunState::Running);

    let file = snapfile::Snapshot::open(&path).unwrap();
    let provenance = read_provenance(&file).unwrap();
    assert_eq!(
        (provenance.vm_name.as_str(), provenance.labels["why"].as_str()),
        ("web", "test")
    );
    assert_eq!(read_statistics(&file).unwrap(), report.statistics);
    assert_eq!(report.root_digest, file.root_digest().to_string());

    let (twin, restored) = restore(&path, &RestoreOptions::default()).unwrap();
    assert_eq!(
        (restored.vm_name.as_str(), restored.cpus, restored.memory_bytes),
        ("web", 2, MEMORY_BYTES)
    );
    wait_for_steps(&twin, 2, 20_000);
    for cpu in 0..2 {
        assert_eq!(Mailbox::read(twin.memory(), cpu).unwrap().bad_stamps, 0);
    }
    let again = directory.path().join("again.vmsnap");
    save(&twin, &again, &SaveOptions::default(), &SaveControl::new()).unwrap();
    assert_clean(&again);
}

#[test]
fn both_modes_give_a_paused_machine_the_same_root_digest() {
    let Some(machine) = boot("both_modes_give_a_paused_machine_the_same_root_digest", 1) else {
        return;
    };
    let directory = TempDir::new().unwrap();
    machine.pause().unwrap();
    let digest = |mode| {
        let options = SaveOptions {
            mode,
            ..SaveOptions::default()
        };
        save(
            &machine,
            directory.path().join("out"),
            &options,
            &SaveControl::new(),
        )
        .unwrap()
        .root_digest
    };
    assert_eq!(digest(SaveMode::Async), digest(SaveMode::Stop));
    assert_eq!(machine.state(), RunState::Paused);
}

/// Writes a file with the given state and no memory but zeros.
fn write_file(path: &Path, state: &VmState) {
    let regions = [snapfile::MemoryRegion {
        guest_address: 0,
        len_bytes: MEMORY_BYTES,
    }];
    let map = snapfile::MemoryMap::new(regions.to_vec()).unwrap();
    let output = snapfile::SnapshotFile::create(path).unwrap();
    let writer = snapfile::Writer::new(output, &map, snapfile::WriterOptions::default()).unwrap();
    let section = |kind, part: vmm::StatePart| snapfile::Section {
        kind,
        name: part.name,
        version: part.version,
        encoding: snapfile::Encoding::Cbor,
        payload: part.cbor,
    };
    for part in state.to_parts().unwrap() {
        let kind = match part.name.as_str() {
            "platform" => snapfile::SectionKind::Platform,
            _ => snapfile::SectionKind::VmState,
        };
        writer.put_section(&section(kind, part)).unwrap();
    }
    // {"disks": []}
    let disks = vmm::StatePart {
        name: "disks".to_owned(),
        version: 2,
        cbor: b"\xa1\x65disks\x80".to_vec(),
    };
    writer
        .put_section(&section(snapfile::SectionKind::DiskTable, disks))
        .unwrap();
    writer.put_zero(0..writer.layout().chunk_count()).unwrap();
    writer.finish().unwrap().0.commit().unwrap();
}

/// Restores a file whose state was changed; returns the refusal, causes included.
fn refusal(test: &str, change: impl FnOnce(&mut VmState)) -> Option<String> {
    let machine = boot(test, 1)?;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("out.vmsnap");
    machine.pause().unwrap();
    let mut state = machine.save_state().unwrap();
    write_file(&path, &state);
    assert_eq!(
        read_state(&snapfile::Snapshot::open(&path).unwrap()).unwrap(),
        state
    );
    restore(
        &path,
        &RestoreOptions {
            paused: true,
            ..RestoreOptions::default()
        },
    )
    .unwrap();

    change(&mut state);
    write_file(&path, &state);
    let error = restore(&path, &RestoreOptions::default()).unwrap_err();
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
    Some(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

#[test]
fn a_processor_feature_that_the_host_lacks_is_named() {
    let refused = refusal("a_processor_feature_that_the_host_lacks_is_named", |state| {
        // No processor has both 3DNow! and AMX.
        for leaf in &mut state.platform.cpuid {
            match leaf.function {
                0x8000_0001 => leaf.edx |= 1 << 31,
                7 if leaf.index == 0 => leaf.edx |= 1 << 24,
                _ => {}
            }
        }
    });
    if let Some(refused) = refused {
        assert!(
            refused.contains("3dnow") || refused.contains("amx_tile"),
            "{refused}"
        );
    }
}

#[test]
fn a_machine_whose_memory_is_not_the_files_is_refused() {
    let refused = refusal("a_machine_whose_memory_is_not_the_files_is_refused", |state| {
        state.vm.memory[0].len_bytes *= 2;
    });
    if let Some(refused) = refused {
        assert!(refused.contains("memory map"), "{refused}");
    }
}
