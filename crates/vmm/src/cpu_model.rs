//! The processors that a guest can be given, by name.
//!
//! A guest that sees all of its host's features can only be restored on a host that has them all. The named
//! baselines are the micro-architecture levels of the x86-64 psABI: a guest of one of them can be restored
//! wherever the level is met by a processor of the same vendor.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The processor that a guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuModel {
    /// All that KVM supports on this host.
    #[default]
    #[serde(rename = "host")]
    Host,
    /// Level 2 of the psABI: up to SSE 4.2, POPCNT and CMPXCHG16B.
    #[serde(rename = "x86-64-v2")]
    X86_64V2,
    /// Level 3 of the psABI: level 2 and AVX2, BMI, FMA, F16C, LZCNT and MOVBE.
    #[serde(rename = "x86-64-v3")]
    X86_64V3,
}

/// A name that is no [`CpuModel`]'s.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown processor {name}, known are host, x86-64-v2 and x86-64-v3")]
pub struct UnknownCpuModel {
    /// The name.
    pub name: String,
}

impl CpuModel {
    /// Every model.
    pub const ALL: [Self; 3] = [Self::Host, Self::X86_64V2, Self::X86_64V3];

    /// Returns the model's name, as in a machine description and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::X86_64V2 => "x86-64-v2",
            Self::X86_64V3 => "x86-64-v3",
        }
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CpuModel {
    type Err = UnknownCpuModel;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|model| model.name() == name);
        known.ok_or_else(|| UnknownCpuModel {
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use ciborium::Value;

    use super::*;

    #[test]
    fn a_model_has_one_name_everywhere() {
        for model in CpuModel::ALL {
            assert_eq!(model.to_string().parse(), Ok(model));
            assert_eq!(
                Value::serialized(&model).unwrap(),
                Value::Text(model.name().into())
            );
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = "x86-64-v5".parse::<CpuModel>().unwrap_err();
        assert!(error.to_string().contains("x86-64-v2"), "{error}");
    }
}
