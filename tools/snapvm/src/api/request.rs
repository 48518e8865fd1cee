//! The request for a snapshot, and what it means to the engine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use snapshot::{
    CaptureOptions, ChunkSize, DisksMode, KnownFingerprints, SaveMode, SaveOptions, WriterOptions,
};

/// Body of `POST /v1/snapshots`; all but the path may be left out.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// The file to write; absolute.
    pub path: PathBuf,
    /// Whether the guest runs meanwhile.
    #[serde(default)]
    pub mode: Mode,
    /// Compression of chunks.
    #[serde(default)]
    pub codec: Codec,
    /// Level of zstd.
    #[serde(default = "default_level")]
    pub level: i32,
    /// Bytes of memory per chunk.
    #[serde(default = "default_chunk_bytes")]
    pub chunk_bytes: u64,
    /// What happens when the guest writes faster than the file takes it.
    #[serde(default)]
    pub on_pressure: OnPressure,
    /// Memory for copied chunks.
    #[serde(default = "default_buffer_bytes")]
    pub buffer_bytes: u64,
    /// Longest wait of one write of the guest.
    #[serde(default = "default_max_stall_us")]
    pub max_stall_us: u64,
    /// Longest time from the request to the capture point.
    #[serde(default = "default_max_arm_us")]
    pub max_arm_us: u64,
    /// What happens to the guest's disks.
    #[serde(default)]
    pub disks: Disks,
    /// Names of frozen images by disk; absolute.
    #[serde(default)]
    pub frozen: BTreeMap<String, PathBuf>,
    /// Snapshot whose equal chunks are not stored again; absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<PathBuf>,
    /// Labels kept in the file.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

fn default_level() -> i32 {
    1
}

fn default_chunk_bytes() -> u64 {
    64 << 10
}

fn default_buffer_bytes() -> u64 {
    64 << 20
}

fn default_max_stall_us() -> u64 {
    100_000
}

fn default_max_arm_us() -> u64 {
    250_000
}

/// Whether the guest runs while its memory is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The guest runs on; memory is copied before it changes.
    #[default]
    Async,
    /// The guest is held until all is written.
    Stop,
}

/// Compression of chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Zstandard: small files.
    #[default]
    Zstd,
    /// LZ4: larger files, quicker to decode.
    Lz4,
    /// No compression.
    Raw,
}

/// What happens when the guest writes faster than the file takes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnPressure {
    /// The guest waits.
    #[default]
    Throttle,
    /// The snapshot is given up and the guest runs on.
    Fail,
}

/// How the disks that the guest can write are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Disks {
    /// Each image is frozen, and the machine goes on in an overlay over it.
    #[default]
    Overlay,
    /// Each image, which must be qcow2, gets an internal snapshot.
    Internal,
    /// Each disk, which must be raw, is copied to a file beside the snapshot.
    Copy,
    /// They are only recorded.
    None,
}

impl SnapshotRequest {
    /// Checks what JSON types cannot say.
    ///
    /// # Errors
    /// Says in words which field breaks which rule.
    pub fn validate(&self) -> Result<(), String> {
        let named = self.parent.iter().chain(self.frozen.values());
        if [&self.path]
            .into_iter()
            .chain(named)
            .any(|path| path.is_relative())
        {
            return Err("paths must be absolute: the machine runs in another directory".to_owned());
        }
        if !(-50..=19).contains(&self.level) {
            return Err(format!("level {} is not from -50 to 19", self.level));
        }
        if !self.frozen.is_empty() && self.disks != Disks::Overlay {
            return Err("frozen: only disks in mode overlay leave a frozen image".to_owned());
        }
        self.chunk_size().map(|_| ())
    }

    /// Translates the request for the engine, which adds to what is known of the disks' layers.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn to_options(&self, vm_name: &str, fingerprints: &KnownFingerprints) -> Result<SaveOptions, String> {
        self.validate()?;
        let codec = match self.codec {
            Codec::Zstd => snapshot::Codec::Zstd { level: self.level },
            Codec::Lz4 => snapshot::Codec::Lz4,
            Codec::Raw => snapshot::Codec::Raw,
        };
        let on_pressure = match self.on_pressure {
            OnPressure::Throttle => snapshot::Pressure::Throttle,
            OnPressure::Fail => snapshot::Pressure::Fail,
        };
        Ok(SaveOptions {
            mode: match self.mode {
                Mode::Async => SaveMode::Async,
                Mode::Stop => SaveMode::Stop,
            },
            capture: CaptureOptions {
                max_arm: Duration::from_micros(self.max_arm_us),
                max_stall: Duration::from_micros(self.max_stall_us),
                buffer_bytes: self.buffer_bytes,
                on_pressure,
                ..CaptureOptions::default()
            },
            writer: WriterOptions {
                codec,
                chunk_size: self.chunk_size()?,
                ..WriterOptions::default()
            },
            disks: match self.disks {
                Disks::Overlay => DisksMode::Overlay,
                Disks::Internal => DisksMode::Internal,
                Disks::Copy => DisksMode::Copy,
                Disks::None => DisksMode::None,
            },
            frozen: self.frozen.clone(),
            fingerprints: fingerprints.clone(),
            parent: self.parent.clone(),
            vm_name: vm_name.to_owned(),
            labels: self.labels.clone(),
        })
    }

    fn chunk_size(&self) -> Result<ChunkSize, String> {
        let refused = || {
            format!(
                "chunk size {} is not a power of two from 4K to 2M",
                self.chunk_bytes
            )
        };
        ChunkSize::new(u32::try_from(self.chunk_bytes).map_err(|_| refused())?).map_err(|_| refused())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn described() -> Value {
        let description: Value = serde_json::from_str(include_str!("../../openapi.json")).unwrap();
        description["components"]["schemas"]["SnapshotRequest"]["properties"].clone()
    }

    #[test]
    fn what_is_left_out_has_the_described_default() {
        let request: SnapshotRequest = serde_json::from_value(json!({"path": "/x"})).unwrap();
        let filled = serde_json::to_value(&request).unwrap();
        for (name, property) in described().as_object().unwrap() {
            if let Some(default) = property.get("default") {
                assert_eq!(&filled[name], default, "{name}");
            }
        }
    }

    #[test]
    fn the_limits_are_the_described_ones() {
        let with = |name: &str, value: &Value| {
            let mut body = json!({"path": "/x"});
            body[name] = value.clone();
            serde_json::from_value::<SnapshotRequest>(body)
                .unwrap()
                .validate()
        };
        let properties = described();
        for name in ["level", "chunk_bytes"] {
            let limit = |which: &str| properties[name][which].as_i64().unwrap();
            assert_eq!(with(name, &limit("minimum").into()), Ok(()));
            assert_eq!(with(name, &limit("maximum").into()), Ok(()));
            assert!(with(name, &(limit("maximum") + 1).into()).is_err());
        }
        assert!(with("level", &(-51).into()).is_err());
        assert!(with("chunk_bytes", &2048.into()).is_err());
    }
}
