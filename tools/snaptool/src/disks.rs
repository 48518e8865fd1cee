//! The guest's disks as a snapshot lists them, and the copies that were made with it.
//!
//! The disk table is part of the guest's state; the names of the copies belong to the machine's
//! record, which is not. Both schemas are in `fmt-spec/sections-v1.md`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use ciborium::value::Value;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use snapfile::{Encoding, SectionKind, Snapshot};

/// Name of the disk table.
const TABLE: &str = "disks";
/// Name of the provenance section with the machine's connections to its host.
const MACHINE: &str = "machine";
/// Version of both schemas that is understood.
const VERSION: u32 = 1;

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Name of the disk, unique in the machine.
    pub id: String,
    /// How the bytes of its file make its content, such as `raw`.
    pub format: String,
    /// Length that the guest sees.
    pub virtual_size_bytes: u64,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// BLAKE3 of the content as of the snapshot; nothing if it was not copied.
    pub fingerprint: Option<Fingerprint>,
    /// File name of the copy, beside the snapshot.
    pub copy: Option<String>,
}

/// BLAKE3 of the content of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Deserialize)]
struct Table {
    disks: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    id: String,
    format: String,
    virtual_size_bytes: u64,
    #[serde(default)]
    readonly: bool,
    /// A byte string or null.
    fingerprint: Value,
}

#[derive(Default, Deserialize)]
struct Machine {
    #[serde(default)]
    disk_copies: BTreeMap<String, String>,
}

impl Disk {
    /// Returns the disks of a snapshot, in the order in which the guest finds them.
    ///
    /// # Errors
    /// A section cannot be read, or breaks its schema.
    pub fn all(snapshot: &Snapshot) -> anyhow::Result<Vec<Self>> {
        let Some(table) = section::<Table>(snapshot, SectionKind::DiskTable, TABLE)? else {
            return Ok(Vec::new());
        };
        let machine: Machine = section(snapshot, SectionKind::Provenance, MACHINE)?.unwrap_or_default();
        let disk = |entry: Entry| {
            let fingerprint = match entry.fingerprint {
                Value::Null => None,
                Value::Bytes(bytes) => {
                    let bytes = <[u8; 32]>::try_from(bytes.as_slice());
                    Some(Fingerprint(
                        bytes.ok().with_context(|| fingerprint_problem(&entry.id))?,
                    ))
                }
                _ => anyhow::bail!(fingerprint_problem(&entry.id)),
            };
            Ok(Self {
                copy: machine.disk_copies.get(&entry.id).cloned(),
                id: entry.id,
                format: entry.format,
                virtual_size_bytes: entry.virtual_size_bytes,
                readonly: entry.readonly,
                fingerprint,
            })
        };
        table.disks.into_iter().map(disk).collect()
    }

    /// Returns the copy's file beside the snapshot, if it is there (sections 4.2).
    ///
    /// Its recorded name comes first, then the one that the snapshot's present name gives. Neither
    /// can lead out of the directory.
    pub fn copy_beside(&self, snapshot: &Path) -> Option<PathBuf> {
        let mut derived = snapshot.file_name()?.to_owned();
        derived.push(format!(".{}.{}", self.id, self.format));
        [self.copy.as_deref().map(OsString::from), Some(derived)]
            .into_iter()
            .flatten()
            .filter(|name| Path::new(name).file_name() == Some(name))
            .map(|name| snapshot.with_file_name(name))
            .find(|path| std::fs::metadata(path).is_ok_and(|data| data.is_file()))
    }
}

fn fingerprint_problem(id: &str) -> String {
    format!("disk table: fingerprint of {id:?} is not 32 bytes")
}

/// Reads a section that may be absent, or of a version that is not understood.
fn section<T: DeserializeOwned>(
    snapshot: &Snapshot,
    kind: SectionKind,
    name: &str,
) -> anyhow::Result<Option<T>> {
    let Some(entry) = snapshot.section(kind, name) else {
        return Ok(None);
    };
    if entry.encoding != Encoding::Cbor || entry.version != VERSION {
        return Ok(None);
    }
    let payload = snapshot.read_section(entry)?;
    let value = ciborium::from_reader(payload.as_slice());
    value
        .map(Some)
        .map_err(|error| anyhow::anyhow!("{} section {name:?}: {error}", kind.name()))
}
