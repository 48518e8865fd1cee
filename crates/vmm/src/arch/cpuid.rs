//! What the CPUID instruction answers on each vCPU.
//!
//! The answers are what KVM supports on this host, as far as the processor model shows it, with the leaves
//! that differ between processors filled in per vCPU: one socket, one thread per core, the APIC id equal to
//! the vCPU's number.

pub(crate) mod model;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use crate::error::{Error, Result};
use crate::state::CpuidLeaf;

const LEAF1_EBX_APIC_ID_SHIFT: u32 = 24;
const LEAF1_EBX_LOGICAL_SHIFT: u32 = 16;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
/// The subleaf is significant.
const FLAG_SIGNIFICANT_INDEX: u32 = 1;

/// Returns the leaves that KVM supports on this host, as they come.
pub(crate) fn supported(kvm: &Kvm) -> Result<Vec<CpuidLeaf>> {
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|source| Error::Kvm {
            operation: "KVM_GET_SUPPORTED_CPUID",
            source,
        })?;
    let mut leaves: Vec<CpuidLeaf> = cpuid.as_slice().iter().map(CpuidLeaf::from).collect();
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        // KVM leaves this bit out of its answer, because it also depends on the in-kernel APIC, which we use.
        for leaf in leaves.iter_mut().filter(|leaf| leaf.function == 1) {
            leaf.ecx |= LEAF1_ECX_TSC_DEADLINE;
        }
    }
    Ok(leaves)
}

/// Returns the leaves for vCPU `id` of `cpus`.
pub(crate) fn for_vcpu(supported: &[CpuidLeaf], id: u32, cpus: u32) -> Vec<CpuidLeaf> {
    let mut leaves: Vec<CpuidLeaf> = supported
        .iter()
        .filter(|leaf| !is_topology(leaf.function))
        .copied()
        .collect();
    for leaf in &mut leaves {
        match leaf.function {
            0x1 => identify(leaf, id, cpus),
            0x4 | 0x8000_001d => share_cache(leaf, cpus),
            0x8000_0001 if cpus > 1 => leaf.ecx |= 1 << 1, // CMP_LEGACY: leaf 1 counts cores, not threads
            0x8000_0008 => leaf.ecx = (apic_id_bits(cpus) << 12) | (cpus - 1),
            0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (id, id, 0),
            _ => {}
        }
    }
    let max_basic = supported
        .iter()
        .find(|leaf| leaf.function == 0)
        .map_or(0, |leaf| leaf.eax);
    leaves.extend(
        [0xb, 0x1f]
            .into_iter()
            .filter(|&leaf| leaf <= max_basic)
            .flat_map(|leaf| topology(leaf, id, cpus)),
    );
    leaves
}

/// Sets the CPUID of a vCPU.
pub(crate) fn set(vcpu_id: u32, vcpu: &VcpuFd, leaves: &[CpuidLeaf]) -> Result<()> {
    let failed = |source| Error::Vcpu {
        vcpu: vcpu_id,
        operation: "KVM_SET_CPUID2",
        source,
    };
    let entries: Vec<kvm_cpuid_entry2> = leaves.iter().map(kvm_cpuid_entry2::from).collect();
    let cpuid = CpuId::from_entries(&entries).map_err(|_| failed(kvm_ioctls::Error::new(libc::E2BIG)))?;
    vcpu.set_cpuid2(&cpuid).map_err(failed)
}

/// Reads the CPUID of a vCPU back.
pub(crate) fn get(vcpu_id: u32, vcpu: &VcpuFd) -> Result<Vec<CpuidLeaf>> {
    let cpuid = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(|source| Error::Vcpu {
            vcpu: vcpu_id,
            operation: "KVM_GET_CPUID2",
            source,
        })?;
    Ok(cpuid.as_slice().iter().map(CpuidLeaf::from).collect())
}

/// Returns the CPUID that a guest of this host sees, by trying it on a vCPU that has not run yet. That may
/// be more than KVM says it supports: where it cannot intercept the instruction, it adds what the hardware
/// answers.
pub(crate) fn shown(supported: &[CpuidLeaf], vcpu: &VcpuFd) -> Result<Vec<CpuidLeaf>> {
    set(0, vcpu, &for_vcpu(supported, 0, 1))?;
    get(0, vcpu)
}

/// Vendor string, family, model and stepping.
pub(crate) fn signature(leaves: &[CpuidLeaf]) -> (String, u32, u32, u32) {
    let leaf = |function| {
        leaves
            .iter()
            .find(|leaf| leaf.function == function)
            .copied()
            .unwrap_or_default()
    };
    let zero = leaf(0);
    let vendor: Vec<u8> = [zero.ebx, zero.edx, zero.ecx]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    let eax = leaf(1).eax;
    let (base_family, base_model) = ((eax >> 8) & 0xf, (eax >> 4) & 0xf);
    let family = if base_family == 0xf {
        base_family + ((eax >> 20) & 0xff)
    } else {
        base_family
    };
    let model = if base_family == 0xf || base_family == 6 {
        base_model | ((eax >> 16) & 0xf) << 4
    } else {
        base_model
    };
    (
        String::from_utf8_lossy(&vendor).into_owned(),
        family,
        model,
        eax & 0xf,
    )
}

/// Tells whether this processor shows hardware virtualization: VMX or SVM.
pub(crate) fn host_has_virtualization() -> bool {
    let vmx = std::arch::x86_64::__cpuid(1).ecx & (1 << 5) != 0;
    let svm = std::arch::x86_64::__cpuid(0x8000_0001).ecx & (1 << 2) != 0;
    vmx || svm
}

fn is_topology(function: u32) -> bool {
    matches!(function, 0xb | 0x1f)
}

fn identify(leaf: &mut CpuidLeaf, id: u32, cpus: u32) {
    let keep = (1 << LEAF1_EBX_LOGICAL_SHIFT) - 1;
    leaf.ebx = (leaf.ebx & keep) | (id << LEAF1_EBX_APIC_ID_SHIFT) | (cpus << LEAF1_EBX_LOGICAL_SHIFT);
    leaf.ecx |= LEAF1_ECX_HYPERVISOR;
    if cpus > 1 {
        leaf.edx |= LEAF1_EDX_HTT;
    } else {
        leaf.edx &= !LEAF1_EDX_HTT;
    }
}

/// Says which vCPUs share a cache: the third level all of them, the others none.
fn share_cache(leaf: &mut CpuidLeaf, cpus: u32) {
    let is_cache = leaf.eax & 0x1f != 0;
    if !is_cache {
        return;
    }
    let level = (leaf.eax >> 5) & 0x7;
    let sharing = if level >= 3 { cpus - 1 } else { 0 };
    let cores = if leaf.function == 0x4 {
        cpus.next_power_of_two() - 1
    } else {
        0
    };
    leaf.eax = (leaf.eax & 0x3fff) | ((sharing & 0xfff) << 14) | ((cores & 0x3f) << 26);
}

/// The extended topology: a level of threads, one per core, and a level of cores.
fn topology(function: u32, id: u32, cpus: u32) -> [CpuidLeaf; 3] {
    let level = |index, bits, count, kind: u32| CpuidLeaf {
        function,
        index,
        flags: FLAG_SIGNIFICANT_INDEX,
        eax: bits,
        ebx: count,
        ecx: index | (kind << 8),
        edx: id,
    };
    [
        level(0, 0, 1, 1),
        level(1, apic_id_bits(cpus), cpus, 2),
        level(2, 0, 0, 0),
    ]
}

/// Bits of an APIC id that number the cores.
fn apic_id_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Vec<CpuidLeaf> {
        let leaf = |function, index, flags| CpuidLeaf {
            function,
            index,
            flags,
            ..CpuidLeaf::default()
        };
        vec![
            CpuidLeaf {
                eax: 0x1f,
                ebx: 0x6874_7541,
                edx: 0x6974_6e65,
                ecx: 0x444d_4163,
                ..leaf(0, 0, 0)
            },
            CpuidLeaf {
                eax: 0x00a2_0f10,
                ebx: 0xffff_ff08,
                edx: 0,
                ..leaf(1, 0, 0)
            },
            CpuidLeaf {
                eax: 0xffff_c121,
                ..leaf(4, 0, 1)
            },
            leaf(0xb, 0, 1),
            CpuidLeaf {
                ecx: 0xffff_ffff,
                ..leaf(0x8000_0008, 0, 0)
            },
        ]
    }

    fn find(leaves: &[CpuidLeaf], function: u32, index: u32) -> CpuidLeaf {
        *leaves
            .iter()
            .find(|leaf| leaf.function == function && leaf.index == index)
            .unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id_and_the_same_topology() {
        for id in 0..3 {
            let leaves = for_vcpu(&host(), id, 3);
            let one = find(&leaves, 1, 0);
            assert_eq!(one.ebx, id << 24 | 3 << 16 | 0xff08);
            assert_eq!(one.edx & LEAF1_EDX_HTT, LEAF1_EDX_HTT);
            for function in [0xb, 0x1f] {
                assert_eq!(find(&leaves, function, 0).edx, id);
                let cores = find(&leaves, function, 1);
                assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, id));
                assert_eq!(find(&leaves, function, 2).ebx, 0, "the list of levels ends");
            }
            assert_eq!(find(&leaves, 0x8000_0008, 0).ecx, 2 << 12 | 2);
        }
    }

    #[test]
    fn a_single_vcpu_claims_no_siblings() {
        let leaves = for_vcpu(&host(), 0, 1);
        assert_eq!(find(&leaves, 1, 0).edx & LEAF1_EDX_HTT, 0);
        assert_eq!(find(&leaves, 4, 0).eax, 0x121);
        assert_eq!(
            leaves.iter().filter(|leaf| leaf.function == 0xb).count(),
            3,
            "the host's own are gone"
        );
    }

    #[test]
    fn reads_the_signature() {
        assert_eq!(signature(&host()), ("AuthenticAMD".into(), 0x19, 0x21, 0));
        assert_eq!(signature(&[]), ("\0".repeat(12), 0, 0, 0));
    }
}
