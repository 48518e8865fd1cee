//! Devices typed on the command line: one flag each, its value a list of keys.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use vmm::{BalloonConfig, DiskCache, DiskConfig, DiskFormat, MacAddress, NetConfig, OnFull, VsockConfig};

use super::list::Items;
use super::size;

/// What `--disk` takes.
pub const DISK: &str =
    "file=PATH[,format=raw|qcow2][,id=NAME][,readonly][,cache=writeback|none][,on-full=report|pause]";
/// What `--net` takes.
pub const NET: &str = "tap=NAME[,mac=ADDRESS][,id=NAME][,vhost]";
/// What `--vsock` takes.
pub const VSOCK: &str = "cid=N[,uds=PATH][,vhost]";
/// What `--balloon` takes.
const BALLOON: &str = "[free-page-reporting][,target=SIZE]";

/// A disk whose name may follow from its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    id: Option<String>,
    config: DiskConfig,
}

/// A network interface whose name may follow from its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Net {
    id: Option<String>,
    config: NetConfig,
}

/// The socket device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vsock(pub VsockConfig);

/// The balloon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balloon(pub BalloonConfig);

/// Names the disks that have no name `disk0`, `disk1` and so on, by their places.
pub fn name_disks(disks: &[Disk]) -> Vec<DiskConfig> {
    let named = disks.iter().enumerate().map(|(place, disk)| DiskConfig {
        id: disk.id.clone().unwrap_or_else(|| format!("disk{place}")),
        ..disk.config.clone()
    });
    named.collect()
}

/// Names the interfaces that have no name `net0`, `net1` and so on, by their places.
pub fn name_nets(nets: &[Net]) -> Vec<NetConfig> {
    let named = nets.iter().enumerate().map(|(place, net)| NetConfig {
        id: net.id.clone().unwrap_or_else(|| format!("net{place}")),
        ..net.config.clone()
    });
    named.collect()
}

/// The format that the name of a file says. Its content is not asked: a guest could make a raw disk look like an image
/// that names any file of the host.
fn format_by_name(file: &Path) -> Result<DiskFormat, String> {
    match file.extension().and_then(|ending| ending.to_str()) {
        Some("qcow2") => Ok(DiskFormat::Qcow2),
        Some("raw" | "img") => Ok(DiskFormat::Raw),
        _ if file.starts_with("/dev") => Ok(DiskFormat::Raw),
        _ => Err(format!(
            "the name of {} does not end in .qcow2, .raw or .img: say format=raw or format=qcow2",
            file.display()
        )),
    }
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut items = Items::parse(text, DISK)?;
        let mut config = DiskConfig {
            readonly: items.flag("readonly")?,
            ..DiskConfig::new("", items.required("file")?)
        };
        let format = items.optional("format")?;
        if let Some(cache) = items.optional("cache")? {
            config.cache = match cache.as_str() {
                "writeback" => DiskCache::Writeback,
                "none" => DiskCache::None,
                _ => {
                    return Err(format!(
                        "cache {cache:?} is not known, only writeback and none are"
                    ));
                }
            };
        }
        if let Some(on_full) = items.optional("on-full")? {
            config.on_full = match on_full.as_str() {
                "report" => OnFull::Report,
                "pause" => OnFull::Pause,
                _ => {
                    return Err(format!(
                        "on-full {on_full:?} is not known, only report and pause are"
                    ));
                }
            };
        }
        let id = items.optional("id")?;
        items.finish()?;
        config.format = match format.as_deref() {
            None => format_by_name(&config.file)?,
            Some("raw") => DiskFormat::Raw,
            Some("qcow2") => DiskFormat::Qcow2,
            Some(other) => return Err(format!("format {other:?} is not known, only raw and qcow2 are")),
        };
        Ok(Self { id, config })
    }
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut items = Items::parse(text, NET)?;
        let mac = items.optional("mac")?.map(|mac| mac.parse::<MacAddress>());
        let config = NetConfig {
            id: String::new(),
            tap: items.required("tap")?,
            mac: mac.transpose().map_err(|error| error.to_string())?,
            vhost: items.flag("vhost")?,
        };
        let id = items.optional("id")?;
        items.finish()?;
        Ok(Self { id, config })
    }
}

impl FromStr for Vsock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut items = Items::parse(text, VSOCK)?;
        let cid = items.required("cid")?;
        let config = VsockConfig {
            cid: cid.parse().map_err(|_| format!("cid {cid:?} is not a number"))?,
            uds: items.optional("uds")?.map(PathBuf::from),
            vhost: items.flag("vhost")?,
        };
        items.finish()?;
        if config.vhost && config.uds.is_some() {
            return Err("uds is not used with vhost: leave one out".to_owned());
        }
        Ok(Self(config))
    }
}

impl FromStr for Balloon {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut items = Items::parse(text, BALLOON)?;
        let target = items.optional("target")?.map(|target| size(&target));
        let config = BalloonConfig {
            free_page_reporting: items.flag("free-page-reporting")?,
            target_bytes: target.transpose()?.unwrap_or(0),
        };
        items.finish()?;
        Ok(Self(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_has_what_was_typed_and_a_name_by_its_place() {
        let typed = [
            "file=a.raw",
            "file=b.raw,format=raw,id=data,readonly",
            "file=c.raw",
        ];
        let disks = typed.map(|text| text.parse::<Disk>().unwrap());
        let named = name_disks(&disks);
        let ids: Vec<_> = named.iter().map(|disk| disk.id.as_str()).collect();
        assert_eq!(ids, ["disk0", "data", "disk2"]);
        assert_eq!(named[1].file, PathBuf::from("b.raw"));
        assert!(named[1].readonly && !named[0].readonly);
    }

    #[test]
    fn the_format_of_a_disk_follows_from_the_name_of_its_file_or_must_be_said() {
        let disk = |text: &str| text.parse::<Disk>().map(|disk| disk.config);
        for (text, format) in [
            ("file=a.qcow2", DiskFormat::Qcow2),
            ("file=a.raw", DiskFormat::Raw),
            ("file=a.img", DiskFormat::Raw),
            ("file=/dev/vdb", DiskFormat::Raw),
            ("file=a.qcow2,format=raw", DiskFormat::Raw),
            ("file=a,format=qcow2", DiskFormat::Qcow2),
        ] {
            assert_eq!(disk(text).unwrap().format, format, "{text}");
        }
        assert!(
            disk("file=a.disk")
                .unwrap_err()
                .contains("say format=raw or format=qcow2")
        );
        let typed = disk("file=a.qcow2,cache=none,on-full=pause").unwrap();
        assert_eq!((typed.cache, typed.on_full), (DiskCache::None, OnFull::Pause));
        assert!(disk("file=a.raw,cache=all").unwrap_err().contains("cache"));
        assert!(disk("file=a.raw,on-full=cry").unwrap_err().contains("on-full"));
    }

    #[test]
    fn an_interface_has_what_was_typed() {
        let nets = [
            "tap=tap0".parse::<Net>().unwrap(),
            "tap=tap1,mac=52:54:00:12:34:56,vhost".parse().unwrap(),
        ];
        let named = name_nets(&nets);
        assert_eq!(
            (named[0].id.as_str(), named[0].tap.as_str(), named[0].mac),
            ("net0", "tap0", None)
        );
        assert_eq!(named[1].mac.unwrap().to_string(), "52:54:00:12:34:56");
        assert!(named[1].vhost);
    }

    #[test]
    fn the_other_devices_have_what_was_typed() {
        let Vsock(vsock) = "cid=3,uds=v.sock".parse().unwrap();
        assert_eq!(
            (vsock.cid, vsock.uds, vsock.vhost),
            (3, Some("v.sock".into()), false)
        );
        let Balloon(balloon) = "free-page-reporting,target=64M".parse().unwrap();
        assert!(balloon.free_page_reporting);
        assert_eq!(balloon.target_bytes, 64 << 20);
        assert_eq!("".parse::<Balloon>().unwrap().0, BalloonConfig::default());
    }

    #[test]
    fn mistakes_are_named() {
        let disk = |text: &str| text.parse::<Disk>().unwrap_err();
        assert_eq!(disk("d.raw"), format!("file is missing: {DISK}"));
        assert!(disk("file=d,format=qcow3").contains("qcow3"));
        assert!(disk("file=d,ro").contains("\"ro\" is not known here"));
        assert!("tap=t,mac=5".parse::<Net>().unwrap_err().contains('5'));
        assert!("cid=x".parse::<Vsock>().unwrap_err().contains("not a number"));
        assert!(
            "cid=3,vhost,uds=v"
                .parse::<Vsock>()
                .unwrap_err()
                .contains("leave one out")
        );
        assert!("target=lots".parse::<Balloon>().unwrap_err().contains("64K"));
    }
}
