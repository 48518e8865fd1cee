//! Saving and restoring one vCPU, in the order that KVM's side effects demand.
//!
//! Save: MP_STATE first, for it makes KVM apply pending INIT and SIPI to the registers; events last, for
//! the calls before may still queue or deliver one. Restore: CPUID before everything whose validity it
//! decides; system registers before the local APIC (its base address) and the local APIC before the MSRs
//! (the deadline is accepted only in its timer mode); events after the registers, whose setting clears
//! exceptions. The deadline itself comes last of all, when the time stamp counters of all vCPUs are right,
//! because KVM computes the timer's expiry when it is written.

use std::collections::BTreeMap;

use kvm_bindings::{
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_sregs2, kvm_vcpu_events, kvm_xcr,
    kvm_xcrs,
};
use kvm_ioctls::VcpuFd;

use crate::arch::msr::{IA32_TSC, IA32_TSC_DEADLINE};
use crate::arch::platform::{Capabilities, check_tsc, check_xsave};
use crate::arch::{cpuid, msr, raw};
use crate::error::{Error, Result};
use crate::state::{ByteString, DebugRegs, Regs, Sregs, VcpuEvents, VcpuState};

/// Bytes of a local APIC's register page that KVM gives.
pub(crate) const LAPIC_BYTES: usize = 1024;
/// Most extended control registers that KVM transfers.
pub(crate) const MAX_XCRS: usize = 16;

/// Saves vCPU `id`, which must not be running.
pub(crate) fn save(
    id: u32,
    vcpu: &VcpuFd,
    capabilities: &Capabilities,
    msr_indices: &[u32],
) -> Result<VcpuState> {
    let failed = |operation| {
        move |source| Error::Vcpu {
            vcpu: id,
            operation,
            source,
        }
    };
    let mp_state = vcpu.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?.mp_state;
    let regs = get_regs(id, vcpu)?;
    let sregs = get_sregs(id, vcpu, capabilities)?;
    let xsave = raw::get_xsave(vcpu, capabilities.xsave_bytes).map_err(failed("KVM_GET_XSAVE2"))?;
    let xcrs = vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
    let debug_regs = DebugRegs::from(&vcpu.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?);
    let deadline_before = read_deadline(id, vcpu, msr_indices)?;
    let lapic = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    let tsc_khz = vcpu.get_tsc_khz().unwrap_or(0);
    let cpuid = cpuid::get(id, vcpu)?;
    let tsc_offset = raw::tsc_offset(vcpu);
    let mut msrs = msr::read(id, vcpu, msr_indices)?;
    keep_deadline(&mut msrs, deadline_before);
    let events = VcpuEvents::from(&vcpu.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?);
    Ok(VcpuState {
        id,
        mp_state,
        regs,
        sregs,
        xsave: ByteString(xsave),
        xcrs: xcrs_to_map(&xcrs),
        debug_regs,
        lapic: ByteString(lapic.regs.iter().map(|&byte| byte.cast_unsigned()).collect()),
        tsc_khz,
        tsc_offset,
        cpuid,
        msrs,
        events,
    })
}

/// Restores everything of a vCPU but its time stamp counter and its timer deadline.
pub(crate) fn restore(vcpu: &VcpuFd, capabilities: &Capabilities, state: &VcpuState) -> Result<()> {
    let id = state.id;
    let failed = |operation| {
        move |source| Error::Vcpu {
            vcpu: id,
            operation,
            source,
        }
    };
    restore_tsc_frequency(vcpu, capabilities, state)?;
    cpuid::set(id, vcpu, &state.cpuid)?;
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: state.mp_state,
    })
    .map_err(failed("KVM_SET_MP_STATE"))?;
    vcpu.set_regs(&kvm_regs::from(&state.regs))
        .map_err(failed("KVM_SET_REGS"))?;
    set_sregs(id, vcpu, capabilities, &state.sregs)?;
    check_xsave(state.xsave.0.len(), capabilities)?;
    raw::set_xsave(vcpu, capabilities.xsave_bytes, &state.xsave.0).map_err(failed("KVM_SET_XSAVE"))?;
    vcpu.set_xcrs(&map_to_xcrs(&state.xcrs))
        .map_err(failed("KVM_SET_XCRS"))?;
    vcpu.set_debug_regs(&kvm_debugregs::from(&state.debug_regs))
        .map_err(failed("KVM_SET_DEBUGREGS"))?;
    let mut lapic = kvm_lapic_state::default();
    for (to, &from) in lapic.regs.iter_mut().zip(&state.lapic.0) {
        *to = from.cast_signed();
    }
    vcpu.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))?;
    let msrs: Vec<(u32, u64)> = state
        .msrs
        .iter()
        .map(|(&index, &value)| (index, value))
        .filter(|&(index, _)| index != IA32_TSC && index != IA32_TSC_DEADLINE)
        .collect();
    msr::write(id, vcpu, &msrs)?;
    vcpu.set_vcpu_events(&kvm_vcpu_events::from(&state.events))
        .map_err(failed("KVM_SET_VCPU_EVENTS"))
}

/// Gives all vCPUs the offsets to each other that their saved counters have. KVM makes counters that are
/// written at nearly the same time equal by a heuristic; where it lets us, we do not rely on that.
pub(crate) fn settle_tsc_offsets<'a>(vcpus: impl Iterator<Item = (&'a VcpuFd, &'a VcpuState)>) -> Result<()> {
    let mut first = None;
    for (vcpu, state) in vcpus {
        let (Some(offset), Some(&tsc)) = (raw::tsc_offset(vcpu), state.msrs.get(&IA32_TSC)) else {
            return Ok(());
        };
        let &mut (first_offset, first_tsc) = first.get_or_insert((offset, tsc));
        let wanted = tsc.wrapping_sub(first_tsc).wrapping_add(first_offset);
        if wanted != offset {
            raw::set_tsc_offset(vcpu, wanted).map_err(|source| Error::Vcpu {
                vcpu: state.id,
                operation: "KVM_SET_DEVICE_ATTR of the time stamp counter's offset",
                source,
            })?;
        }
    }
    Ok(())
}

/// Restores the deadline of the local APIC timer, after the time stamp counters.
pub(crate) fn restore_deadline(vcpu: &VcpuFd, state: &VcpuState) -> Result<()> {
    match state.msrs.get(&IA32_TSC_DEADLINE) {
        Some(&deadline) => msr::write(state.id, vcpu, &[(IA32_TSC_DEADLINE, deadline)]),
        None => Ok(()),
    }
}

/// Makes the time stamp counters of all vCPUs those of one instant, at which the first was `first_tsc`:
/// they were read one after the other while they went on counting.
///
/// On a host whose own counters are not `stable`, KVM lets the counter of an idle vCPU stand and makes up
/// for it when the vCPU next runs. A restore would make the lag last, so there all are as the furthest.
pub(crate) fn align_tsc(states: &mut [VcpuState], first_tsc: u64, stable: bool) {
    let Some(first) = states.first() else {
        return;
    };
    let (first_offset, first_read) = (first.tsc_offset, first.msrs.get(&IA32_TSC).copied());
    for state in &mut *states {
        let offsets = state.tsc_offset.zip(first_offset);
        if let (Some(tsc), Some(first_read)) = (state.msrs.get_mut(&IA32_TSC), first_read) {
            // Without offsets, all counters are moved by as much, and keep the distances they were read with.
            let from = offsets.map_or(tsc.wrapping_sub(first_read), |(own, first)| {
                own.wrapping_sub(first)
            });
            *tsc = first_tsc.wrapping_add(from);
        }
    }
    if stable {
        return;
    }
    let counters = states.iter().filter_map(|state| state.msrs.get(&IA32_TSC));
    let furthest = counters.copied().max().unwrap_or(first_tsc);
    for tsc in states
        .iter_mut()
        .filter_map(|state| state.msrs.get_mut(&IA32_TSC))
    {
        *tsc = furthest;
    }
}

/// Reads the general purpose registers.
pub(crate) fn get_regs(id: u32, vcpu: &VcpuFd) -> Result<Regs> {
    let regs = vcpu.get_regs().map_err(|source| Error::Vcpu {
        vcpu: id,
        operation: "KVM_GET_REGS",
        source,
    })?;
    Ok(Regs::from(&regs))
}

/// Reads the system registers, with the page directory pointers if KVM gives them.
pub(crate) fn get_sregs(id: u32, vcpu: &VcpuFd, capabilities: &Capabilities) -> Result<Sregs> {
    let failed = |operation| {
        move |source| Error::Vcpu {
            vcpu: id,
            operation,
            source,
        }
    };
    if capabilities.sregs2 {
        return Ok(Sregs::from(
            &raw::get_sregs2(vcpu).map_err(failed("KVM_GET_SREGS2"))?,
        ));
    }
    Ok(Sregs::from(&vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?))
}

/// Writes the system registers. Without KVM_CAP_SREGS2 the processor reloads the page directory pointers
/// from guest memory, which is what it did when they were saved.
pub(crate) fn set_sregs(id: u32, vcpu: &VcpuFd, capabilities: &Capabilities, sregs: &Sregs) -> Result<()> {
    let failed = |operation| {
        move |source| Error::Vcpu {
            vcpu: id,
            operation,
            source,
        }
    };
    if capabilities.sregs2 && sregs.pdptrs.is_some() {
        return raw::set_sregs2(vcpu, &kvm_sregs2::from(sregs)).map_err(failed("KVM_SET_SREGS2"));
    }
    vcpu.set_sregs(&kvm_sregs::from(sregs))
        .map_err(failed("KVM_SET_SREGS"))
}

/// Sets the frequency only if it must change: KVM without KVM_CAP_TSC_CONTROL refuses the call.
fn restore_tsc_frequency(vcpu: &VcpuFd, capabilities: &Capabilities, state: &VcpuState) -> Result<()> {
    if !check_tsc(state.tsc_khz, vcpu, capabilities)? {
        return Ok(());
    }
    vcpu.set_tsc_khz(state.tsc_khz).map_err(|source| Error::Vcpu {
        vcpu: state.id,
        operation: "KVM_SET_TSC_KHZ",
        source,
    })
}

fn read_deadline(id: u32, vcpu: &VcpuFd, msr_indices: &[u32]) -> Result<u64> {
    if !msr_indices.contains(&IA32_TSC_DEADLINE) {
        return Ok(0);
    }
    Ok(msr::read(id, vcpu, &[IA32_TSC_DEADLINE])?
        .get(&IA32_TSC_DEADLINE)
        .copied()
        .unwrap_or(0))
}

/// A timer that expires between the reading of the local APIC and that of the MSRs is in neither: its
/// interrupt was not requested yet, its deadline is 0 already. The deadline from before still has it;
/// restored, it lies in the past and fires at once.
fn keep_deadline(msrs: &mut BTreeMap<u32, u64>, before: u64) {
    if let Some(deadline) = msrs.get_mut(&IA32_TSC_DEADLINE)
        && *deadline == 0
    {
        *deadline = before;
    }
}

fn xcrs_to_map(xcrs: &kvm_xcrs) -> BTreeMap<u32, u64> {
    let count = usize::try_from(xcrs.nr_xcrs).unwrap_or(0);
    xcrs.xcrs
        .iter()
        .take(count)
        .map(|register| (register.xcr, register.value))
        .collect()
}

fn map_to_xcrs(map: &BTreeMap<u32, u64>) -> kvm_xcrs {
    let mut xcrs = kvm_xcrs::default();
    for (to, (&xcr, &value)) in xcrs.xcrs.iter_mut().zip(map) {
        *to = kvm_xcr {
            xcr,
            value,
            ..kvm_xcr::default()
        };
        xcrs.nr_xcrs += 1;
    }
    xcrs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_expires_while_saving_is_kept() {
        let saved = |after, before| {
            let mut msrs = BTreeMap::from([(IA32_TSC_DEADLINE, after)]);
            keep_deadline(&mut msrs, before);
            msrs[&IA32_TSC_DEADLINE]
        };
        assert_eq!(saved(0, 500), 500);
        assert_eq!(saved(700, 500), 700);
        assert_eq!(saved(0, 0), 0, "a timer that is off stays off");
    }

    #[test]
    fn extended_control_registers_survive() {
        let map = BTreeMap::from([(0, 7), (1, 9)]);
        assert_eq!(xcrs_to_map(&map_to_xcrs(&map)), map);
    }
}
