//! What a host must offer for a saved guest to go on.

use serde::{Deserialize, Serialize};

use crate::state::CpuidLeaf;

/// The processor and the KVM that the guest has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlatformState {
    /// Processor vendor from CPUID leaf 0, for instance `AuthenticAMD`.
    pub vendor: String,
    /// Processor family, extended family added.
    pub family: u32,
    /// Processor model, extended model included.
    pub model: u32,
    /// Processor stepping.
    pub stepping: u32,
    /// The features that the guest's CPUID shows, by their usual lower-case names, sorted.
    pub features: Vec<String>,
    /// CPUID as the guest's first vCPU sees it.
    pub cpuid: Vec<CpuidLeaf>,
    /// Bytes of a vCPU's XSAVE area.
    pub xsave_bytes: u32,
    /// Indices of the MSRs that are saved.
    pub msr_indices: Vec<u32>,
    /// Frequency of the guest's time stamp counter in kHz.
    pub tsc_khz: u32,
    /// KVM's API version.
    pub kvm_api_version: u32,
    /// The KVM capabilities that the machine uses, by name, sorted.
    pub kvm_capabilities: Vec<String>,
}
