//! What a processor model makes of what KVM supports on a host.
//!
//! The host's model is all of it, but nested virtualization, whose state is not saved. A baseline shows the
//! features of its level of the x86-64 psABI and those that every machine has of KVM; everything else is
//! hidden, with the leaves and state components that belong to it, so that two hosts give two guests of one
//! baseline the same processor but for vendor, family, model and caches. Hidden, too, are the means to
//! restrain speculative execution, which not all hosts have: who needs them takes the host's model.

use crate::arch::features;
use crate::cpu_model::CpuModel;
use crate::error::{Error, Result};
use crate::state::CpuidLeaf;

/// Virtualization inside the guest.
const NOT_SAVED: &str = "vmx svm";

/// What a machine shows beside the features of its level: those that came before the first level, KVM's
/// own of long standing, and those that this crate sets itself.
const COMMON: &str = "vme de pse tsc msr pae mce apic sep mtrr pge mca pat pse36 clflush ht nx \
                      x2apic tsc_deadline_timer hypervisor cmp_legacy \
                      kvmclock kvm_nop_io_delay kvmclock2 kvm_steal_time kvm_pv_eoi kvm_pv_unhalt kvmclock_stable";
const LEVEL_1: &str = "fpu cx8 cmov mmx fxsr sse sse2 syscall lm";
const LEVEL_2: &str = "cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2";
/// OSXSAVE, which the level demands of the operating system, follows from `xsave`.
const LEVEL_3: &str = "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave";

/// Components of the XSAVE area: x87, SSE and AVX.
const LEVEL_3_COMPONENTS: u32 = 0b111;
/// Bytes of an XSAVE area before the components that have a place of their own.
const XSAVE_LEGACY_BYTES: u32 = 512 + 64;
/// Highest leaves of a baseline.
const LAST_BASIC_LEAF: u32 = 0xd;
const LAST_BASIC_LEAF_WITHOUT_XSAVE: u32 = 0xb;
const LAST_EXTENDED_LEAF: u32 = 0x8000_0008;
/// Bits of a guest physical and of a linear address.
const PHYSICAL_BITS: u32 = 46;
const LINEAR_BITS: u32 = 48;
/// The timer of the local APIC runs in all sleep states of the processor.
const LEAF6_EAX_ARAT: u32 = 1 << 2;
/// Bits of leaf 0x80000001 that AMD repeats from leaf 1.
const REPEATED_EDX: u32 = 0x0183_f3ff;
/// Leaves of the brand string, sixteen bytes each.
const BRAND_LEAVES: [u32; 3] = [0x8000_0002, 0x8000_0003, 0x8000_0004];

/// Returns the leaves that a guest of the model is shown on a host that supports `supported`.
///
/// # Errors
/// The host lacks features of the baseline, which are named.
pub(crate) fn apply(model: CpuModel, supported: &[CpuidLeaf]) -> Result<Vec<CpuidLeaf>> {
    let mut leaves: Vec<CpuidLeaf> = supported
        .iter()
        .filter(|leaf| !BRAND_LEAVES.contains(&leaf.function))
        .copied()
        .collect();
    let required = match model {
        CpuModel::Host => {
            features::hide(&mut leaves, NOT_SAVED);
            leaves.extend(brand(&host_brand()));
            return Ok(leaves);
        }
        CpuModel::X86_64V2 => [LEVEL_1, LEVEL_2].join(" "),
        CpuModel::X86_64V3 => [LEVEL_1, LEVEL_2, LEVEL_3].join(" "),
    };
    let missing = features::lacking(&leaves, &required);
    if !missing.is_empty() {
        return Err(Error::MissingFeatures { missing });
    }
    let has_xsave = model == CpuModel::X86_64V3;
    leaves.retain(|leaf| belongs_to_baseline(leaf, has_xsave));
    features::keep_only(&mut leaves, &[COMMON, &required].join(" "));
    let leaf_1_edx = leaves
        .iter()
        .find(|leaf| leaf.function == 1)
        .map_or(0, |leaf| leaf.edx);
    let components = xsave_end(&leaves);
    for leaf in &mut leaves {
        restrict(leaf, has_xsave, leaf_1_edx, components);
    }
    leaves.extend(brand(&format!("{model} processor")));
    Ok(leaves)
}

fn belongs_to_baseline(leaf: &CpuidLeaf, has_xsave: bool) -> bool {
    match leaf.function {
        0x0..=0x2 | 0x4 | 0x6 | 0xb | 0x4000_0000 | 0x4000_0001 | 0x8000_0000..=LAST_EXTENDED_LEAF => true,
        0x7 => leaf.index == 0,
        0xd => has_xsave && leaf.index <= 2,
        _ => false,
    }
}

/// Removes from a leaf what is no feature bit, but depends on features that are hidden.
fn restrict(leaf: &mut CpuidLeaf, has_xsave: bool, leaf_1_edx: u32, xsave_end: u32) {
    match (leaf.function, leaf.index) {
        (0x0, _) => {
            let last = if has_xsave {
                LAST_BASIC_LEAF
            } else {
                LAST_BASIC_LEAF_WITHOUT_XSAVE
            };
            leaf.eax = leaf.eax.min(last);
        }
        (0x6, _) => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (leaf.eax & LEAF6_EAX_ARAT, 0, 0, 0),
        (0x7, _) => leaf.eax = 0, // no further subleaf
        (0xd, 0) => {
            (leaf.eax, leaf.edx) = (leaf.eax & LEVEL_3_COMPONENTS, 0);
            (leaf.ebx, leaf.ecx) = (xsave_end, xsave_end);
        }
        (0xd, 1) => (leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0), // no supervisor components
        (0x8000_0000, _) => leaf.eax = leaf.eax.min(LAST_EXTENDED_LEAF),
        (0x8000_0001, _) => leaf.edx |= leaf_1_edx & REPEATED_EDX,
        (0x8000_0007, _) => (leaf.eax, leaf.ebx, leaf.ecx) = (0, 0, 0),
        (0x8000_0008, _) => {
            leaf.eax = (leaf.eax & 0xff).min(PHYSICAL_BITS) | LINEAR_BITS << 8;
            leaf.edx = 0;
        }
        _ => {}
    }
}

/// End of the last component in the standard format of the XSAVE area.
fn xsave_end(leaves: &[CpuidLeaf]) -> u32 {
    leaves
        .iter()
        .filter(|leaf| leaf.function == 0xd && leaf.index == 2)
        .map(|leaf| leaf.ebx.saturating_add(leaf.eax))
        .fold(XSAVE_LEGACY_BYTES, u32::max)
}

/// The brand string of this host's processor, which KVM does not pass on.
fn host_brand() -> String {
    let bytes: Vec<u8> = BRAND_LEAVES
        .into_iter()
        .map(std::arch::x86_64::__cpuid)
        .flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
        .flat_map(u32::to_le_bytes)
        .take_while(|&byte| byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

fn brand(text: &str) -> [CpuidLeaf; 3] {
    let mut bytes = text.bytes().chain(std::iter::repeat(0));
    let mut register = || u32::from_le_bytes(std::array::from_fn(|_| bytes.next().unwrap_or(0)));
    BRAND_LEAVES.map(|function| CpuidLeaf {
        function,
        eax: register(),
        ebx: register(),
        ecx: register(),
        edx: register(),
        ..CpuidLeaf::default()
    })
}

#[cfg(test)]
mod tests;
