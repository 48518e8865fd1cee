//! Bringing a machine back from a file: state first, because it decides about memory; then memory; then vCPUs.
//!
//! Nothing of the guest runs before everything is in place. A host that lacks a processor feature which the guest
//! has seen is refused before memory is filled or a vCPU exists.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use memsnap::RestoreProgress;
use snapfile::Snapshot;
use vm_memory::GuestMemoryMmap;

use vmm::{Backing, Disk, FrozenFor, Machine, MachineConfig, SerialOutput, VmState, create_guest_memory_for};

use crate::control::micros;
use crate::disk::{DiskTable, DisksRestore, KnownFingerprints, Places, open_disks};
use crate::error::{Error, Result};
use crate::machine_record::{DeviceOverrides, LayerRecord, MachineRecord};
use crate::report::RestoreReport;
use crate::sections::{problem, read_disks, read_machine, read_provenance, read_state};

/// How a machine is brought back.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// Where the serial port goes.
    pub serial: SerialOutput,
    /// What guest memory is made of on the host.
    pub backing: Backing,
    /// Whether the host may use transparent huge pages for anonymous guest memory.
    pub transparent_huge_pages: bool,
    /// Threads that fill memory; 0 means one per core.
    pub threads: usize,
    /// Leave the machine paused; it runs otherwise.
    pub paused: bool,
    /// Let the guest's paravirtual clock advance by the real time since the capture point.
    pub advance_clock: bool,
    /// What the machine is connected to instead of what the file says.
    pub devices: DeviceOverrides,
    /// How disks are brought back.
    pub disks: DisksRestore,
    /// Compare the fingerprints of disks even where length and time of a file are those of the snapshot.
    pub check_disks: bool,
    /// Takes note of the fingerprints of the disks' layers, for snapshots of the restored machine.
    pub fingerprints: KnownFingerprints,
    /// Restore although the host's processor lacks features that the guest has seen.
    pub ignore_cpu_features: bool,
}

/// Opens a snapshot file with its parents and makes a machine of it.
///
/// # Errors
/// The file is damaged, incomplete or not for this host, or the machine cannot be created.
pub fn restore(path: impl AsRef<Path>, options: &RestoreOptions) -> Result<(Machine, RestoreReport)> {
    restore_with_progress(path, options, &|_| {})
}

/// Like [`restore()`], and tells from several threads how much of memory is in place.
///
/// # Errors
/// As [`restore()`].
pub fn restore_with_progress(
    path: impl AsRef<Path>,
    options: &RestoreOptions,
    progress: &(dyn Fn(RestoreProgress) + Sync),
) -> Result<(Machine, RestoreReport)> {
    let began = Instant::now();
    let path = path.as_ref();
    let snapshot = open(path)?;
    let (table, mut record) = read_description(&snapshot)?;
    let state = read_state(&snapshot)?;
    check_memory_map(&snapshot, &state)?;
    options.devices.apply(&mut record.devices)?;
    let vm_name = read_provenance(&snapshot)
        .map(|provenance| provenance.vm_name)
        .unwrap_or_default();
    let mut config = MachineConfig {
        memory_bytes: snapshot.memory_map().len_bytes(),
        cpus: state.vm.cpus,
        serial: options.serial.clone(),
        backing: options.backing,
        transparent_huge_pages: options.transparent_huge_pages,
        cpu: record.cpu,
        devices: record.devices,
        ..MachineConfig::default()
    };
    if !options.ignore_cpu_features {
        state.platform.check_host()?;
    }
    let opened = began.elapsed();

    let placing = Instant::now();
    let places = places(path, &snapshot, &record.disk_layers, options)?;
    let mut disks = open_disks(&table.disks, &mut config.devices.disks, &places)?;
    let placed = placing.elapsed();

    let filling = Instant::now();
    let memory = fill_memory(path, &snapshot, &state, options, progress)?;
    let filled = filling.elapsed();

    let creating = Instant::now();
    let vmm_options = vmm::RestoreOptions {
        ignore_cpu_features: options.ignore_cpu_features,
        advance_clock: options.advance_clock,
    };
    config.opened_disks = disks.finish()?;
    let machine = Machine::restore(&config, memory, &state, &vmm_options)?;
    disks.keep();
    if !options.paused {
        machine.resume()?;
    }
    let report = RestoreReport {
        vm_name,
        cpus: config.cpus,
        memory_bytes: config.memory_bytes,
        open_us: micros(opened),
        disks_us: micros(placed),
        memory_us: micros(filled),
        machine_us: micros(creating.elapsed()),
        total_us: micros(began.elapsed()),
    };
    Ok((machine, report))
}

/// Brings back the disks of a snapshot without its machine, in the order of the guest.
///
/// # Errors
/// The file cannot be read, or a disk is not as the snapshot has it.
pub fn restore_disks(path: impl AsRef<Path>, options: &RestoreOptions) -> Result<Vec<Disk>> {
    let path = path.as_ref();
    let snapshot = open(path)?;
    let (table, mut record) = read_description(&snapshot)?;
    let places = places(path, &snapshot, &record.disk_layers, options)?;
    let mut ready = open_disks(&table.disks, &mut record.devices.disks, &places)?;
    let disks = ready.finish()?;
    ready.keep();
    Ok(disks)
}

/// Where the disks of a snapshot are, and how they are wanted.
fn places<'a>(
    path: &Path,
    snapshot: &Snapshot,
    layers: &'a BTreeMap<String, Vec<LayerRecord>>,
    options: &'a RestoreOptions,
) -> Result<Places<'a>> {
    let owner = FrozenFor {
        snapshot: absolute(path)?,
        file_id: snapshot.header().file_id.0,
    };
    Ok(Places {
        owner,
        layers,
        given: &options.devices.disks,
        how: options.disks,
        check: options.check_disks,
        known: &options.fingerprints,
    })
}

/// Maps guest memory and fills it from the file.
fn fill_memory(
    path: &Path,
    snapshot: &Snapshot,
    state: &VmState,
    options: &RestoreOptions,
    progress: &(dyn Fn(RestoreProgress) + Sync),
) -> Result<GuestMemoryMmap> {
    let memory = create_guest_memory_for(&state.vm.memory, options.backing, options.transparent_huge_pages)?;
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    memsnap::restore_eager(&memory, snapshot, threads, progress).map_err(|error| match error {
        memsnap::Error::Source(source) => Error::read(path)(source),
        error => Error::Memory(error),
    })?;
    Ok(memory)
}

/// Reads disk table and machine record, which must speak of the same disks.
fn read_description(snapshot: &Snapshot) -> Result<(DiskTable, MachineRecord)> {
    let table = read_disks(snapshot)?;
    let record = read_machine(snapshot)?;
    record
        .devices
        .validate()
        .map_err(|broken| problem("machine", broken))?;
    let stored = table
        .disks
        .iter()
        .map(|entry| (entry.id.as_str(), entry.readonly));
    let expected = record
        .devices
        .disks
        .iter()
        .map(|disk| (disk.id.as_str(), disk.readonly));
    if stored.eq(expected) {
        Ok((table, record))
    } else {
        Err(problem(
            "disks",
            "not the disks of the machine in section machine",
        ))
    }
}

/// Refuses a file whose machine and memory are not of the same shape, before anything is mapped.
fn check_memory_map(snapshot: &Snapshot, state: &VmState) -> Result<()> {
    let stored = snapshot
        .memory_map()
        .regions()
        .iter()
        .map(|region| (region.guest_address, region.len_bytes));
    let expected = state
        .vm
        .memory
        .iter()
        .map(|range| (range.guest_address, range.len_bytes));
    if stored.eq(expected) {
        return Ok(());
    }
    let problem = "the machine's memory is not that of the file's memory map".to_owned();
    Err(Error::Section {
        name: "vm".to_owned(),
        problem,
    })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|source| Error::Path {
        path: path.to_owned(),
        source,
    })
}

/// Opens a snapshot file and all its parents.
pub(crate) fn open(path: &Path) -> Result<Snapshot> {
    Snapshot::open_with_parents(path).map_err(Error::read(path))
}
