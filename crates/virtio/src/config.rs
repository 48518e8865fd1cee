//! What devices a machine is to have, in the words of its users.
//!
//! The same structures stand behind the command line, the TOML and JSON description of a machine and the
//! description kept in a snapshot file. A field that is not known is refused: a misspelt `readonly` must not
//! become a writable disk. Whether the values can be had on this host is decided where a device is made.

mod mac;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use mac::{MacAddress, ParseMacAddressError};

/// Characters that an id may consist of; it becomes part of a device's and a file's name.
const ID_CHARACTERS: &str = "letters, digits, '-', '_' and '.'";
/// Longest id, so that a disk's serial number (20 bytes, virtio 1.2, 5.2.6) holds it whole.
const MAX_ID_LEN: usize = 20;
/// Most disks, and most network interfaces, of one machine.
const MAX_OF_ONE_KIND: usize = 16;

/// The devices of a machine, beside those that every machine has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DevicesConfig {
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces, in the order in which the guest finds them.
    pub nets: Vec<NetConfig>,
    /// Socket device between guest and host.
    pub vsock: Option<VsockConfig>,
    /// Console device; the serial port is there without it.
    pub console: Option<ConsoleConfig>,
    /// Memory balloon.
    pub balloon: Option<BalloonConfig>,
    /// Whether there is an entropy device.
    pub rng: bool,
}

impl DevicesConfig {
    /// Returns the configuration of a machine without any virtio device.
    #[must_use]
    pub fn none() -> Self {
        Self {
            disks: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            console: None,
            balloon: None,
            rng: false,
        }
    }

    /// Checks what can be checked without looking at the host: ids, counts, addresses.
    ///
    /// # Errors
    /// The rule that is broken, by the name of the field.
    pub fn validate(&self) -> Result<(), InvalidDevices> {
        check_ids("disks", self.disks.iter().map(|disk| disk.id.as_str()))?;
        check_ids("nets", self.nets.iter().map(|net| net.id.as_str()))?;
        if let Some(vsock) = &self.vsock
            && (vsock.cid <= 2 || vsock.cid == u32::MAX)
        {
            return Err(InvalidDevices::Cid { cid: vsock.cid });
        }
        Ok(())
    }
}

impl Default for DevicesConfig {
    /// What an empty description asks for: an entropy device and nothing else.
    fn default() -> Self {
        Self {
            rng: true,
            ..Self::none()
        }
    }
}

/// A disk of the guest, kept in a file or block device of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Name of the disk, unique among disks; the guest reads it as the serial number.
    pub id: String,
    /// Image file or block device.
    pub file: PathBuf,
    /// How the file's bytes make the disk's.
    #[serde(default)]
    pub format: DiskFormat,
    /// Whether the guest may only read.
    #[serde(default)]
    pub readonly: bool,
    /// How the host's page cache is used.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache: DiskCache,
    /// What becomes of a request for which the medium has no room.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_full: OnFull,
}

/// How the bytes of an image file make the bytes of a disk. The file's content is never asked: a guest could
/// make a raw disk look like anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DiskFormat {
    /// Byte for byte.
    #[default]
    Raw,
    /// A qcow2 image, with whatever backing files it names.
    Qcow2,
}

/// How the host's page cache is used for a disk. A flush makes everything durable either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DiskCache {
    /// Reads and writes go through it.
    #[default]
    Writeback,
    /// They pass it by (`O_DIRECT`).
    None,
}

/// What becomes of a request for which the medium has no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OnFull {
    /// The guest is told of an I/O error.
    #[default]
    Report,
    /// The request is kept and the machine's owner is told, who is to pause the machine; it is tried again when
    /// the machine is resumed.
    Pause,
}

impl DiskConfig {
    /// Returns the configuration of a raw, writable disk with the defaults of everything else.
    #[must_use]
    pub fn new(id: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        Self {
            id: id.into(),
            file: file.into(),
            format: DiskFormat::default(),
            readonly: false,
            cache: DiskCache::default(),
            on_full: OnFull::default(),
        }
    }
}

/// Tells whether a field is left out when it is written: files made before it was known stay as they are.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A network interface of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Name of the interface, unique among interfaces.
    pub id: String,
    /// Name of the host's tap device.
    pub tap: String,
    /// The guest's address; one is made up if there is none.
    #[serde(default)]
    pub mac: Option<MacAddress>,
    /// Whether the host kernel moves the packets (`/dev/vhost-net`).
    #[serde(default)]
    pub vhost: bool,
}

/// The socket device between guest and host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub cid: u32,
    /// Unix socket that stands for the guest on the host; not used with `vhost`.
    #[serde(default)]
    pub uds: Option<PathBuf>,
    /// Whether the host kernel moves the packets (`/dev/vhost-vsock`).
    #[serde(default)]
    pub vhost: bool,
}

/// The console device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// Where the guest's output goes.
    #[serde(default)]
    pub output: ConsoleOutput,
}

/// Where a console's output goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConsoleOutput {
    /// Nowhere.
    #[default]
    Null,
    /// The standard output of the process.
    Stdio,
    /// Appended to a file, which is created if need be.
    File(PathBuf),
}

/// The memory balloon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// Whether the guest reports free pages, whose memory is then given back to the host.
    #[serde(default)]
    pub free_page_reporting: bool,
    /// Memory that the guest is asked to give up, in bytes.
    #[serde(default)]
    pub target_bytes: u64,
}

/// A rule of [`DevicesConfig`] that is broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidDevices {
    /// An id is empty, too long or has other characters.
    #[error("{field}: id {id:?} is not 1 to {MAX_ID_LEN} {ID_CHARACTERS}")]
    Id {
        /// The list that it stands in.
        field: &'static str,
        /// The id.
        id: String,
    },
    /// Two devices of one kind have one id.
    #[error("{field}: id {id} stands twice")]
    RepeatedId {
        /// The list that it stands in.
        field: &'static str,
        /// The id.
        id: String,
    },
    /// There are more devices of one kind than a machine has room for.
    #[error("{field}: {count}, at most {MAX_OF_ONE_KIND}")]
    TooMany {
        /// The list.
        field: &'static str,
        /// Its length.
        count: usize,
    },
    /// The context id is one of those with a meaning of their own (virtio 1.2, 5.10.4).
    #[error("vsock: cid {cid} is reserved")]
    Cid {
        /// The context id.
        cid: u32,
    },
}

fn check_ids<'a>(field: &'static str, ids: impl Iterator<Item = &'a str>) -> Result<(), InvalidDevices> {
    let mut seen = BTreeSet::new();
    for id in ids {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if id.is_empty() || id.len() > MAX_ID_LEN || !id.chars().all(allowed) {
            return Err(InvalidDevices::Id {
                field,
                id: id.to_owned(),
            });
        }
        if !seen.insert(id) {
            return Err(InvalidDevices::RepeatedId {
                field,
                id: id.to_owned(),
            });
        }
    }
    if seen.len() > MAX_OF_ONE_KIND {
        return Err(InvalidDevices::TooMany {
            field,
            count: seen.len(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
