//! The saved state as named, versioned CBOR parts, and back.
//!
//! Parts come from files, so nothing in them is believed: sizes are limited before they are decoded,
//! decoding is strict (unknown, missing and repeated fields and parts are errors), and what the later
//! steps rely on is checked here. Whether the values make sense to KVM is for KVM to say.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::arch::vcpu_state::{LAPIC_BYTES, MAX_XCRS};
use crate::config::MAX_CPUS;
use crate::state::{DeviceState, PlatformState, VcpuState, VmSection, VmState};

/// Version of the schemas of the parts `vm`, `vcpu/N` and `platform`.
const VERSION: u32 = 1;
/// Most bytes of one part.
const MAX_PART_BYTES: usize = 1 << 20;
/// Most devices of a machine.
const MAX_DEVICES: usize = 256;
/// Most ranges of guest memory.
const MAX_MEMORY_RANGES: usize = 256;
/// Most leaves of a CPUID, which is KVM's limit.
const MAX_CPUID_LEAVES: usize = 256;
/// Most MSRs of a vCPU.
const MAX_MSRS: usize = 4096;
/// Smallest and largest XSAVE area.
const XSAVE_BYTES: std::ops::RangeInclusive<usize> = 4096..=256 << 10;

/// One named part of a saved state, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePart {
    /// `vm`, `vcpu/N`, `device/NAME` or `platform`.
    pub name: String,
    /// Version of the part's schema.
    pub version: u32,
    /// One CBOR map.
    pub cbor: Vec<u8>,
}

/// Why a saved state cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A part is missing.
    #[error("part {name} is missing")]
    MissingPart {
        /// Name of the part.
        name: String,
    },
    /// A part has a name that means nothing, or belongs to no vCPU or device of the machine.
    #[error("part {name} is unknown")]
    UnknownPart {
        /// Name of the part.
        name: String,
    },
    /// Two parts have the same name.
    #[error("part {name} is there twice")]
    DuplicatePart {
        /// Name of the part.
        name: String,
    },
    /// A part's schema is of a version that this crate does not read.
    #[error("part {name} has version {found}, known is {known}")]
    Version {
        /// Name of the part.
        name: String,
        /// Version of the part.
        found: u32,
        /// Version that is read.
        known: u32,
    },
    /// A part is larger than any valid one.
    #[error("part {name} has {len_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// Name of the part.
        name: String,
        /// Its length in bytes.
        len_bytes: usize,
        /// The limit in bytes.
        limit_bytes: usize,
    },
    /// A part is not the CBOR that its schema demands.
    #[error("part {name}: {problem}")]
    Schema {
        /// Name of the part.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A field's value breaks a rule.
    #[error("part {name}: {field} {rule}")]
    Field {
        /// Name of the part.
        name: String,
        /// Name of the field.
        field: &'static str,
        /// The rule that it breaks.
        rule: &'static str,
    },
}

type Result<T> = std::result::Result<T, StateError>;

impl VmState {
    /// Encodes the state; equal states give equal bytes.
    ///
    /// # Errors
    /// A device's state cannot be encoded.
    pub fn to_parts(&self) -> Result<Vec<StatePart>> {
        let mut parts = vec![encode("vm".into(), VERSION, &self.vm)?];
        for vcpu in &self.vcpus {
            parts.push(encode(vcpu_part(vcpu.id), VERSION, vcpu)?);
        }
        for device in &self.devices {
            parts.push(encode(device_part(&device.name), device.version, &device.state)?);
        }
        parts.push(encode("platform".into(), VERSION, &self.platform)?);
        Ok(parts)
    }

    /// Decodes a state. The parts may come in any order.
    ///
    /// # Errors
    /// A part is unknown, missing, there twice, too large, or breaks its schema.
    pub fn from_parts(parts: &[StatePart]) -> Result<Self> {
        let mut parts = PartSet::new(parts)?;
        let vm: VmSection = parts.decode("vm".into())?;
        check_vm(&vm)?;
        let platform: PlatformState = parts.decode("platform".into())?;
        check_platform(&platform)?;
        let vcpus = (0..vm.cpus)
            .map(|id| {
                let vcpu: VcpuState = parts.decode(vcpu_part(id))?;
                check_vcpu(id, &vcpu).map(|()| vcpu)
            })
            .collect::<Result<_>>()?;
        let devices = vm
            .devices
            .iter()
            .map(|name| {
                let part = parts.take(device_part(name))?;
                Ok(DeviceState {
                    name: name.clone(),
                    version: part.version,
                    state: decode(part)?,
                })
            })
            .collect::<Result<_>>()?;
        parts.nothing_left()?;
        Ok(Self {
            vm,
            vcpus,
            devices,
            platform,
        })
    }
}

/// The parts that have not been asked for yet.
struct PartSet<'a>(Vec<&'a StatePart>);

impl<'a> PartSet<'a> {
    fn new(parts: &'a [StatePart]) -> Result<Self> {
        let mut sorted: Vec<&StatePart> = parts.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        match sorted.windows(2).find(|pair| pair[0].name == pair[1].name) {
            Some(pair) => Err(StateError::DuplicatePart {
                name: pair[0].name.clone(),
            }),
            None => Ok(Self(sorted)),
        }
    }

    fn take(&mut self, name: String) -> Result<&'a StatePart> {
        let position = self.0.binary_search_by(|part| part.name.cmp(&name));
        match position {
            Ok(position) => Ok(self.0.remove(position)),
            Err(_) => Err(StateError::MissingPart { name }),
        }
    }

    fn decode<T: DeserializeOwned>(&mut self, name: String) -> Result<T> {
        let part = self.take(name)?;
        if part.version != VERSION {
            return Err(StateError::Version {
                name: part.name.clone(),
                found: part.version,
                known: VERSION,
            });
        }
        decode(part)
    }

    fn nothing_left(self) -> Result<()> {
        self.0.first().map_or(Ok(()), |part| {
            Err(StateError::UnknownPart {
                name: part.name.clone(),
            })
        })
    }
}

fn vcpu_part(id: u32) -> String {
    format!("vcpu/{id}")
}

fn device_part(name: &str) -> String {
    format!("device/{name}")
}

fn encode<T: Serialize>(name: String, version: u32, value: &T) -> Result<StatePart> {
    let mut cbor = Vec::new();
    match ciborium::into_writer(value, &mut cbor) {
        Ok(()) => Ok(StatePart { name, version, cbor }),
        Err(error) => Err(StateError::Schema {
            name,
            problem: error.to_string(),
        }),
    }
}

fn decode<T: DeserializeOwned>(part: &StatePart) -> Result<T> {
    let schema = |problem: String| StateError::Schema {
        name: part.name.clone(),
        problem,
    };
    if part.cbor.len() > MAX_PART_BYTES {
        return Err(StateError::TooLarge {
            name: part.name.clone(),
            len_bytes: part.cbor.len(),
            limit_bytes: MAX_PART_BYTES,
        });
    }
    let mut rest = part.cbor.as_slice();
    let value = ciborium::from_reader(&mut rest).map_err(|error| schema(error.to_string()))?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(schema(format!("{} bytes beyond its end", rest.len())))
    }
}

fn check(name: &str, rules: &[(bool, &'static str, &'static str)]) -> Result<()> {
    match rules.iter().find(|(holds, ..)| !holds) {
        Some(&(_, field, rule)) => Err(StateError::Field {
            name: name.to_owned(),
            field,
            rule,
        }),
        None => Ok(()),
    }
}

fn check_vm(vm: &VmSection) -> Result<()> {
    let mut names: Vec<&String> = vm.devices.iter().collect();
    names.sort_unstable();
    names.dedup();
    check(
        "vm",
        &[
            ((1..=MAX_CPUS).contains(&vm.cpus), "cpus", "must be from 1 to 254"),
            (
                (1..=MAX_MEMORY_RANGES).contains(&vm.memory.len()),
                "memory",
                "must have from 1 to 256 ranges",
            ),
            (vm.devices.len() <= MAX_DEVICES, "devices", "must be at most 256"),
            (
                names.len() == vm.devices.len(),
                "devices",
                "must have different names",
            ),
        ],
    )
}

fn check_vcpu(id: u32, vcpu: &VcpuState) -> Result<()> {
    let xsave_len = vcpu.xsave.0.len();
    check(
        &vcpu_part(id),
        &[
            (vcpu.id == id, "id", "must be that of the part's name"),
            (vcpu.lapic.0.len() == LAPIC_BYTES, "lapic", "must have 1024 bytes"),
            (
                XSAVE_BYTES.contains(&xsave_len),
                "xsave",
                "must have from 4 KiB to 256 KiB",
            ),
            (
                xsave_len.is_multiple_of(4),
                "xsave",
                "must have a length divisible by four",
            ),
            (vcpu.xcrs.len() <= MAX_XCRS, "xcrs", "must be at most 16"),
            (
                (1..=MAX_CPUID_LEAVES).contains(&vcpu.cpuid.len()),
                "cpuid",
                "must have from 1 to 256 leaves",
            ),
            (vcpu.msrs.len() <= MAX_MSRS, "msrs", "must be at most 4096"),
        ],
    )
}

fn check_platform(platform: &PlatformState) -> Result<()> {
    check(
        "platform",
        &[
            (
                platform.cpuid.len() <= MAX_CPUID_LEAVES,
                "cpuid",
                "must have at most 256 leaves",
            ),
            (
                platform.msr_indices.len() <= MAX_MSRS,
                "msr_indices",
                "must be at most 4096",
            ),
        ],
    )
}

#[cfg(test)]
mod tests;
