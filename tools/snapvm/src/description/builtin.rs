//! How the built-in guest behaves.

use serde::{Deserialize, Serialize};

use vmm::builtin::{BuiltinOptions, WriteRate};

use super::Size;

/// Settings of the built-in guest; what is left out has the guest's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Builtin {
    /// Memory that the guest fills and rewrites.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_set: Option<Size>,
    /// Pages that each processor writes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_rate: Option<u32>,
    /// Words of 8 bytes written into a page at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<u32>,
    /// Percentage of content that no codec can compress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incompressible: Option<u8>,
    /// Number that decides the order of writes and every byte of content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl Builtin {
    /// Returns the settings in the guest's words.
    #[must_use]
    pub fn options(&self) -> BuiltinOptions {
        let defaults = BuiltinOptions::default();
        BuiltinOptions {
            seed: self.seed.unwrap_or(defaults.seed),
            working_set_bytes: self.working_set.map(|size| size.0),
            words_per_step: self.words.unwrap_or(defaults.words_per_step),
            incompressible_percent: self.incompressible.unwrap_or(defaults.incompressible_percent),
            rate: self
                .write_rate
                .map_or(WriteRate::FlatOut, WriteRate::PagesPerSecond),
        }
    }
}
