//! What is kept in a snapshot about the machine beside its state: the devices by which it was connected to its host.
//!
//! Paths, taps and sockets are of the host that made the snapshot. They are no part of the guest's state and of the
//! root digest; a restore starts from them, and whoever restores may replace each.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use vmm::{ConsoleConfig, ConsoleOutput, CpuModel, DevicesConfig};

use crate::error::{Error, Result};

/// The machine of a snapshot, in the words of its configuration (sections 7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// The processor that the guest was given.
    pub cpu: CpuModel,
    /// Its virtio devices and what they were connected to.
    pub devices: DevicesConfig,
    /// The files of the disks' layers, the top one first, by disk.
    pub disk_layers: BTreeMap<String, Vec<LayerRecord>>,
}

/// Where a layer of a disk was, and what tells whether it is still the same (sections 7.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Relative to the directory of the snapshot if the file is in it or below, otherwise absolute.
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Length of the file.
    pub length_bytes: u64,
    /// Time of its last change, in nanoseconds since the Unix epoch.
    pub mtime_ns: u64,
}

impl MachineRecord {
    /// A machine without virtio devices, as all were that left no record.
    #[must_use]
    pub fn without_devices() -> Self {
        Self {
            cpu: CpuModel::Host,
            devices: DevicesConfig::none(),
            disk_layers: BTreeMap::new(),
        }
    }
}

/// What a restored machine is connected to instead of what its snapshot says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceOverrides {
    /// Files of disks by id: where a disk gets its overlay or working copy, or the disk itself if it was only recorded.
    pub disks: BTreeMap<String, PathBuf>,
    /// Tap devices of network interfaces by id.
    pub nets: BTreeMap<String, String>,
    /// Unix socket that stands for the guest's socket device.
    pub vsock_uds: Option<PathBuf>,
    /// Context id of the guest's socket device.
    pub vsock_cid: Option<u32>,
    /// Where the console device's output goes.
    pub console: Option<ConsoleOutput>,
}

impl DeviceOverrides {
    /// Applies everything but the disks.
    pub(crate) fn apply(&self, devices: &mut DevicesConfig) -> Result<()> {
        let unknown = |device: String| Error::NoSuchDevice { device };
        for (id, tap) in &self.nets {
            let net = devices.nets.iter_mut().find(|net| net.id == *id);
            let net = net.ok_or_else(|| unknown(format!("network interface {id}")))?;
            net.tap.clone_from(tap);
        }
        if self.vsock_uds.is_some() || self.vsock_cid.is_some() {
            let vsock = devices.vsock.as_mut();
            let vsock = vsock.ok_or_else(|| unknown("socket device".to_owned()))?;
            vsock.uds = self.vsock_uds.clone().or(vsock.uds.take());
            vsock.cid = self.vsock_cid.unwrap_or(vsock.cid);
        }
        if let Some(output) = &self.console {
            let console: &mut Option<ConsoleConfig> = &mut devices.console;
            let console = console
                .as_mut()
                .ok_or_else(|| unknown("console device".to_owned()))?;
            console.output = output.clone();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vmm::{NetConfig, VsockConfig};

    use super::*;

    fn devices() -> DevicesConfig {
        DevicesConfig {
            nets: vec![NetConfig {
                id: "net0".to_owned(),
                tap: "tap0".to_owned(),
                mac: None,
                vhost: false,
            }],
            vsock: Some(VsockConfig {
                cid: 3,
                uds: Some("v.sock".into()),
                vhost: false,
            }),
            console: Some(ConsoleConfig::default()),
            ..DevicesConfig::none()
        }
    }

    #[test]
    fn what_is_not_overridden_stays() {
        let mut changed = devices();
        DeviceOverrides::default().apply(&mut changed).unwrap();
        assert_eq!(changed, devices());
        let overrides = DeviceOverrides {
            nets: [("net0".to_owned(), "tap7".to_owned())].into(),
            vsock_uds: Some("other.sock".into()),
            console: Some(ConsoleOutput::Stdio),
            ..DeviceOverrides::default()
        };
        overrides.apply(&mut changed).unwrap();
        assert_eq!(changed.nets[0].tap, "tap7");
        let vsock = changed.vsock.unwrap();
        assert_eq!((vsock.cid, vsock.uds), (3, Some("other.sock".into())));
        assert_eq!(changed.console.unwrap().output, ConsoleOutput::Stdio);
    }

    #[test]
    fn what_the_machine_does_not_have_is_refused_by_name() {
        let refused = |overrides: DeviceOverrides| {
            let applied = overrides.apply(&mut DevicesConfig::none());
            applied.unwrap_err().to_string()
        };
        let nets = [("net9".to_owned(), "tap0".to_owned())].into();
        let net = refused(DeviceOverrides {
            nets,
            ..DeviceOverrides::default()
        });
        assert_eq!(net, "the machine has no network interface net9");
        let vsock = refused(DeviceOverrides {
            vsock_cid: Some(4),
            ..DeviceOverrides::default()
        });
        assert_eq!(vsock, "the machine has no socket device");
        let console = Some(ConsoleOutput::Null);
        let console = refused(DeviceOverrides {
            console,
            ..DeviceOverrides::default()
        });
        assert_eq!(console, "the machine has no console device");
    }
}
