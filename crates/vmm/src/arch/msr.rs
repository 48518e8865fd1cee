//! Model specific registers: which are saved, reading and writing them in batches.
//!
//! KVM's list of MSRs to save is not complete (it has lacked paravirtual ones, IA32_XSS and the shadow
//! stack pointers on one kernel or another) and may name some that the guest's CPUID hides. So the list is
//! extended by what is known to matter, and every entry is read once on a vCPU that has its CPUID:
//! what cannot be read then is not there, and what cannot be read later is an error.

use std::collections::BTreeMap;

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::error::{Error, Result};

/// Time stamp counter.
pub(crate) const IA32_TSC: u32 = 0x10;
/// Deadline of the local APIC timer.
pub(crate) const IA32_TSC_DEADLINE: u32 = 0x6e0;

const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Fast string operations.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// MTRRs enabled, write-back where no range says otherwise.
const MTRR_DEF_TYPE_WRITE_BACK: u64 = 1 << 11 | 6;

/// What firmware leaves in a processor that it hands over. Linux turns its page attribute table off where
/// it finds the MTRRs disabled.
pub(crate) const AT_BOOT: [(u32, u64); 2] = [
    (IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
    (IA32_MTRR_DEF_TYPE, MTRR_DEF_TYPE_WRITE_BACK),
];

/// MSRs beyond KVM's own list: MTRR, extended supervisor state, shadow stacks, and all of the range that
/// KVM's paravirtual MSRs have used or may use.
const EXTRA_RANGES: [(u32, u32); 7] = [
    (0x200, 0x20f), // variable MTRRs
    (0x250, 0x250), // fixed MTRRs
    (0x258, 0x259),
    (0x268, 0x26f),
    (0x2ff, 0x2ff), // MTRR default type
    (0x6a0, 0x6a8), // U_CET, S_CET, PL0-3_SSP, INT_SSP_TAB
    (0xda0, 0xda0), // IA32_XSS
];
const KVM_RANGE: (u32, u32) = (0x4b56_4d00, 0x4b56_4d10);

/// Returns the indices of the MSRs that `vcpu`, whose CPUID is set, lets us save, in ascending order.
pub(crate) fn saved_indices(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<u32>> {
    let list = kvm.get_msr_index_list().map_err(|source| Error::Kvm {
        operation: "KVM_GET_MSR_INDEX_LIST",
        source,
    })?;
    let extra = EXTRA_RANGES
        .into_iter()
        .chain([KVM_RANGE])
        .flat_map(|(first, last)| first..=last);
    let mut indices: Vec<u32> = list.as_slice().iter().copied().chain(extra).collect();
    indices.sort_unstable();
    indices.dedup();
    indices.retain(|&index| matches!(read_batch(vcpu, &[index]), Ok((1, _))));
    Ok(indices)
}

/// Reads every MSR of `indices`.
pub(crate) fn read(vcpu_id: u32, vcpu: &VcpuFd, indices: &[u32]) -> Result<BTreeMap<u32, u64>> {
    let mut values = BTreeMap::new();
    for chunk in indices.chunks(KVM_MAX_MSR_ENTRIES) {
        let operation = "KVM_GET_MSRS";
        let (count, batch) = read_batch(vcpu, chunk).map_err(|source| Error::Vcpu {
            vcpu: vcpu_id,
            operation,
            source,
        })?;
        if let Some(&index) = chunk.get(count) {
            return Err(Error::MsrRefused {
                vcpu: vcpu_id,
                operation,
                index,
            });
        }
        values.extend(batch.as_slice().iter().map(|entry| (entry.index, entry.data)));
    }
    Ok(values)
}

/// Writes every MSR, in the order given. One that KVM refuses is an error unless it has the value already.
pub(crate) fn write(vcpu_id: u32, vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<()> {
    let operation = "KVM_SET_MSRS";
    let mut rest = values;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let count = write_batch(vcpu, chunk)
            .map_err(|source| Error::Vcpu {
                vcpu: vcpu_id,
                operation,
                source,
            })?
            .min(chunk.len());
        rest = &rest[count..];
        if count < chunk.len() {
            let (index, value) = rest[0];
            let current = read(vcpu_id, vcpu, &[index])
                .ok()
                .and_then(|values| values.get(&index).copied());
            if current != Some(value) {
                return Err(Error::MsrRefused {
                    vcpu: vcpu_id,
                    operation,
                    index,
                });
            }
            rest = &rest[1..];
        }
    }
    Ok(())
}

fn read_batch(vcpu: &VcpuFd, indices: &[u32]) -> std::result::Result<(usize, Msrs), kvm_ioctls::Error> {
    let entries: Vec<kvm_msr_entry> = indices
        .iter()
        .map(|&index| kvm_msr_entry {
            index,
            ..kvm_msr_entry::default()
        })
        .collect();
    let mut batch = allocate(&entries)?;
    let count = vcpu.get_msrs(&mut batch)?;
    Ok((count, batch))
}

fn write_batch(vcpu: &VcpuFd, values: &[(u32, u64)]) -> std::result::Result<usize, kvm_ioctls::Error> {
    let entries: Vec<kvm_msr_entry> = values
        .iter()
        .map(|&(index, data)| kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        })
        .collect();
    vcpu.set_msrs(&allocate(&entries)?)
}

fn allocate(entries: &[kvm_msr_entry]) -> std::result::Result<Msrs, kvm_ioctls::Error> {
    Msrs::from_entries(entries).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))
}
