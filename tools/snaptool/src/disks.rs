//! The guest's disks as a snapshot lists them, and the files that hold their content.
//!
//! The disk table is part of the guest's state; the names of files belong to the machine's record, which is not. Both
//! schemas are in `fmt-spec/sections-v1.md`. Files are looked for as a restore looks for them, so that what is verified
//! is what a restore would read.

pub mod content;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use ciborium::value::Value;
use qcow2::{FileStorage, Header, ImageFormat};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use snapfile::{Encoding, SectionKind, Snapshot};

/// Name of the disk table.
const TABLE: &str = "disks";
/// Name of the provenance section with the machine's connections to its host.
const MACHINE: &str = "machine";
/// Version of both schemas that is understood.
const VERSION: u32 = 2;

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Name of the disk, unique in the machine.
    pub id: String,
    /// How the bytes of the top layer make content: `raw` or `qcow2`.
    pub format: String,
    /// Length that the guest sees.
    pub virtual_size_bytes: u64,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// How the content as of the snapshot is kept.
    pub mode: Mode,
    /// The internal snapshot, in that mode.
    pub internal: Option<Internal>,
    /// The files that make the content, the top one first; empty if none was recorded.
    pub layers: Vec<Layer>,
}

/// How the content of a disk is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The image was frozen.
    Overlay,
    /// An internal snapshot in an image that went on being written to.
    Internal,
    /// A copy beside the snapshot.
    Copy,
    /// Not at all, or the guest could only read it.
    None,
}

/// An internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Internal {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// A file that makes content of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// BLAKE3 of the file, or of what the internal snapshot maps.
    pub fingerprint: Fingerprint,
    /// Its path, relative to the directory of the snapshot unless absolute; nothing if it was not recorded.
    pub file: Option<String>,
    /// `raw` or `qcow2`.
    pub format: Option<String>,
    /// Its length.
    pub file_bytes: Option<u64>,
}

/// A BLAKE3 digest.
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

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Overlay => "overlay",
            Self::Internal => "internal",
            Self::Copy => "copy",
            Self::None => "none",
        })
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
    readonly: bool,
    mode: Mode,
    internal: Option<Internal>,
    /// Byte strings.
    layers: Vec<Value>,
}

#[derive(Default, Deserialize)]
struct Machine {
    #[serde(default)]
    disk_layers: BTreeMap<String, Vec<Record>>,
}

#[derive(Deserialize)]
struct Record {
    path: String,
    format: String,
    length_bytes: u64,
}

impl Disk {
    /// Returns the disks of a snapshot, in the order in which the guest finds them.
    ///
    /// # Errors
    /// A section cannot be read, is of an unknown version, or breaks its schema.
    pub fn all(snapshot: &Snapshot) -> anyhow::Result<Vec<Self>> {
        let Some(table) = section::<Table>(snapshot, SectionKind::DiskTable, TABLE)? else {
            return Ok(Vec::new());
        };
        let mut machine: Machine = section(snapshot, SectionKind::Provenance, MACHINE)?.unwrap_or_default();
        let disk = |entry: Entry| {
            let mut records = machine
                .disk_layers
                .remove(&entry.id)
                .unwrap_or_default()
                .into_iter();
            let layer = |value: Value| {
                let bytes = value.into_bytes().ok();
                let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
                let problem = || format!("disk table: a fingerprint of {:?} is not 32 bytes", entry.id);
                let record = records.next();
                anyhow::Ok(Layer {
                    fingerprint: Fingerprint(bytes.with_context(problem)?),
                    file_bytes: record.as_ref().map(|record| record.length_bytes),
                    format: record.as_ref().map(|record| record.format.clone()),
                    file: record.map(|record| record.path),
                })
            };
            anyhow::ensure!(
                entry.internal.is_some() == (entry.mode == Mode::Internal),
                "disk table: {:?} has an internal snapshot and another mode, or the mode without one",
                entry.id
            );
            Ok(Self {
                layers: entry
                    .layers
                    .into_iter()
                    .map(layer)
                    .collect::<anyhow::Result<_>>()?,
                id: entry.id,
                format: entry.format,
                virtual_size_bytes: entry.virtual_size_bytes,
                readonly: entry.readonly,
                mode: entry.mode,
                internal: entry.internal,
            })
        };
        table.disks.into_iter().map(disk).collect()
    }

    /// Returns where the file of each layer is found, from the top down (sections 4.6 and 7.2).
    ///
    /// A copy is beside the snapshot and nowhere else. In the other modes the top layer has its recorded path or its
    /// recorded name beside the snapshot, and the others are found through the images above them.
    pub fn files(&self, snapshot: &Path) -> Vec<Option<PathBuf>> {
        let mut files: Vec<Option<PathBuf>> = Vec::with_capacity(self.layers.len());
        for (depth, layer) in self.layers.iter().enumerate() {
            let above = files.last().cloned().flatten();
            let file = match (depth, self.mode, above) {
                (0, Mode::Copy, _) => self.copy(snapshot),
                (0, ..) | (_, _, None) => recorded(layer, snapshot),
                (_, _, Some(above)) => backing(&above).or_else(|| recorded(layer, snapshot)),
            };
            files.push(file);
        }
        files
    }

    /// The name that goes with the snapshot's present name comes first, then the recorded one. Neither can lead out of
    /// the directory.
    fn copy(&self, snapshot: &Path) -> Option<PathBuf> {
        let mut derived = snapshot.file_name()?.to_owned();
        derived.push(format!(".{}.{}", self.id, self.format));
        let known = self.layers.first().and_then(|layer| layer.file.as_deref());
        [Some(derived), known.map(OsString::from)]
            .into_iter()
            .flatten()
            .filter(|name| Path::new(name).file_name() == Some(name))
            .map(|name| snapshot.with_file_name(name))
            .find(|path| is_file(path))
    }
}

/// The file of a layer under its recorded path, or under the same name beside the snapshot.
fn recorded(layer: &Layer, snapshot: &Path) -> Option<PathBuf> {
    let path = Path::new(layer.file.as_deref()?);
    let directory = snapshot.parent().unwrap_or(Path::new(""));
    [directory.join(path), snapshot.with_file_name(path.file_name()?)]
        .into_iter()
        .find(|path| is_file(path))
}

/// The backing file that a qcow2 image names.
fn backing(above: &Path) -> Option<PathBuf> {
    let file = std::fs::File::open(above).ok()?;
    let header = Header::read(&FileStorage::from_file(file, qcow2::Access::ReadOnly)).ok()?;
    let (path, _) = qcow2::resolve(above, &header.backing()?).ok()?;
    is_file(&path).then_some(path)
}

/// Whether there is a regular file: nothing else is opened for a name that a snapshot states.
fn is_file(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|data| data.is_file())
}

/// The format of a layer, as far as it is known here.
pub fn format(name: &str) -> Option<ImageFormat> {
    ImageFormat::from_name(name)
}

/// Reads a section that may be absent.
fn section<T: DeserializeOwned>(
    snapshot: &Snapshot,
    kind: SectionKind,
    name: &str,
) -> anyhow::Result<Option<T>> {
    let Some(entry) = snapshot.section(kind, name) else {
        return Ok(None);
    };
    let problem = || format!("{} section {name:?}", kind.name());
    anyhow::ensure!(
        entry.encoding == Encoding::Cbor && entry.version == VERSION,
        "{}: version {} is not known, only {VERSION} is",
        problem(),
        entry.version
    );
    let payload = snapshot.read_section(entry)?;
    ciborium::from_reader(payload.as_slice())
        .map(Some)
        .with_context(problem)
}
