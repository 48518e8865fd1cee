//! The sections of a snapshot file that say more than guest memory: which they are, and how they are encoded.
//!
//! The machine's own state is encoded by `vmm`; here it only gets its place in the file. Provenance, disk table and
//! statistics are defined here. All payloads are CBOR maps with named fields; their schemas are in
//! `fmt-spec/sections-v1.md`.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use snapfile::{Encoding, Section, SectionEntry, SectionKind, Snapshot};
use vmm::{StatePart, VmState};

use crate::disk::DiskTable;
use crate::error::{Error, Result};
use crate::machine_record::MachineRecord;
use crate::report::Statistics;

/// Name of the state part that says what the host must offer.
const PLATFORM: &str = "platform";
/// Name of the disk table.
const DISKS: &str = "disks";
/// Name of the provenance section.
const PROVENANCE: &str = "provenance";
/// Name of the section about the machine's connections to its host.
const MACHINE: &str = "machine";
/// Name of the statistics section.
const STATISTICS: &str = "statistics";

/// The version of the schema of a section that is defined here (sections 1.6).
fn version(name: &str) -> u32 {
    match name {
        DISKS | MACHINE => 2,
        _ => 1,
    }
}

/// Who made a snapshot, when and where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The instant that the snapshot shows, in nanoseconds since the Unix epoch.
    pub captured_unix_ns: u64,
    /// Name of the machine; may be empty.
    pub vm_name: String,
    /// The program that made it, such as `vmsnap 0.1.0`.
    pub producer: String,
    /// System name, release and version of the host's kernel.
    pub host_kernel: String,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
}

impl Provenance {
    pub(crate) fn new(captured: SystemTime, vm_name: &str, producer: &str) -> Self {
        let system = rustix::system::uname();
        let words = [system.sysname(), system.release(), system.version()];
        let since_epoch = captured.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            captured_unix_ns: u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX),
            vm_name: vm_name.to_owned(),
            producer: producer.to_owned(),
            host_kernel: words.map(|word| word.to_string_lossy().into_owned()).join(" "),
            labels: BTreeMap::new(),
        }
    }
}

/// The sections that hold the machine's state, and the disk table.
pub(crate) fn state_sections(parts: Vec<StatePart>, disks: &DiskTable) -> Result<Vec<Section>> {
    let mut sections: Vec<Section> = parts.into_iter().map(part_section).collect();
    sections.push(cbor_section(SectionKind::DiskTable, DISKS, disks)?);
    Ok(sections)
}

fn part_section(part: StatePart) -> Section {
    let kind = if part.name == PLATFORM {
        SectionKind::Platform
    } else {
        SectionKind::VmState
    };
    Section {
        kind,
        name: part.name,
        version: part.version,
        encoding: Encoding::Cbor,
        payload: part.cbor,
    }
}

pub(crate) fn provenance_section(provenance: &Provenance) -> Result<Section> {
    cbor_section(SectionKind::Provenance, PROVENANCE, provenance)
}

pub(crate) fn machine_section(record: &MachineRecord) -> Result<Section> {
    cbor_section(SectionKind::Provenance, MACHINE, record)
}

pub(crate) fn statistics_section(statistics: &Statistics) -> Result<Section> {
    cbor_section(SectionKind::Statistics, STATISTICS, statistics)
}

fn cbor_section(kind: SectionKind, name: &str, value: &impl Serialize) -> Result<Section> {
    let mut payload = Vec::new();
    ciborium::into_writer(value, &mut payload).map_err(|error| problem(name, error))?;
    Ok(Section {
        kind,
        name: name.to_owned(),
        version: version(name),
        encoding: Encoding::Cbor,
        payload,
    })
}

/// Reads the machine's state from a snapshot.
///
/// # Errors
/// A section is damaged, missing, unknown, there twice, or breaks its schema.
pub fn read_state(snapshot: &Snapshot) -> Result<VmState> {
    Ok(VmState::from_parts(&read_parts(snapshot)?)?)
}

/// Reads the named parts that make up the state.
pub(crate) fn read_parts(snapshot: &Snapshot) -> Result<Vec<StatePart>> {
    let mut parts = Vec::new();
    for entry in snapshot.sections() {
        if matches!(entry.kind, SectionKind::VmState | SectionKind::Platform) {
            let cbor = read(snapshot, entry)?;
            parts.push(StatePart {
                name: entry.name.clone(),
                version: entry.version,
                cbor,
            });
        }
    }
    Ok(parts)
}

/// Reads who made a snapshot, when and where.
///
/// # Errors
/// The section is damaged, missing or breaks its schema.
pub fn read_provenance(snapshot: &Snapshot) -> Result<Provenance> {
    read_cbor(snapshot, SectionKind::Provenance, PROVENANCE)
}

/// Reads what a snapshot cost.
///
/// # Errors
/// The section is damaged, missing or breaks its schema.
pub fn read_statistics(snapshot: &Snapshot) -> Result<Statistics> {
    read_cbor(snapshot, SectionKind::Statistics, STATISTICS)
}

/// Reads which disks belong to a snapshot.
///
/// # Errors
/// The section is damaged, missing or breaks its schema.
pub fn read_disks(snapshot: &Snapshot) -> Result<DiskTable> {
    read_cbor(snapshot, SectionKind::DiskTable, DISKS)
}

/// Reads how the machine of a snapshot was connected to its host; a file that does not say shows a machine without
/// virtio devices.
///
/// # Errors
/// The section is damaged or breaks its schema.
pub fn read_machine(snapshot: &Snapshot) -> Result<MachineRecord> {
    match snapshot.section(SectionKind::Provenance, MACHINE) {
        Some(_) => read_cbor(snapshot, SectionKind::Provenance, MACHINE),
        None => Ok(MachineRecord::without_devices()),
    }
}

fn read_cbor<T: DeserializeOwned>(snapshot: &Snapshot, kind: SectionKind, name: &str) -> Result<T> {
    let entry = snapshot
        .section(kind, name)
        .ok_or_else(|| problem(name, "missing"))?;
    let known = version(name);
    if entry.version != known {
        return Err(problem(
            name,
            format_args!("schema version {}, this program knows {known}", entry.version),
        ));
    }
    let payload = read(snapshot, entry)?;
    ciborium::from_reader(payload.as_slice()).map_err(|error| problem(name, error))
}

fn read(snapshot: &Snapshot, entry: &SectionEntry) -> Result<Vec<u8>> {
    if entry.encoding != Encoding::Cbor {
        return Err(problem(&entry.name, "not encoded as CBOR"));
    }
    snapshot.read_section(entry).map_err(|source| Error::ReadSection {
        name: entry.name.clone(),
        source: Box::new(source),
    })
}

pub(crate) fn problem(name: &str, problem: impl ToString) -> Error {
    Error::Section {
        name: name.to_owned(),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests;
