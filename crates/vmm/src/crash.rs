//! The account of a vCPU that cannot go on, as complete as it can still be had.

use kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON;
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
};
use vm_memory::{Bytes, GuestAddress};

use crate::arch::{self, cpuid, vcpu_state};
use crate::run_state::{CrashReport, StopReason};
use crate::vcpu::{Surroundings, Vcpu};

/// Longest x86 instruction in bytes.
const MAX_INSTRUCTION_BYTES: u64 = 15;

/// Writes the report of `vcpu`, which has just left the guest.
pub(crate) fn report(vcpu: &mut Vcpu, around: &Surroundings, what: String) -> CrashReport {
    let internal = arch::internal_error(&mut vcpu.fd);
    let mut report = CrashReport {
        vcpu: vcpu.id,
        what,
        ..CrashReport::default()
    };
    report.regs = vcpu_state::get_regs(vcpu.id, &vcpu.fd).ok();
    report.sregs = vcpu_state::get_sregs(vcpu.id, &vcpu.fd, &around.capabilities).ok();
    report.instruction = instruction_bytes(vcpu, around, &report);
    if let Some(internal) = internal {
        report.what = format!("{}: {}", report.what, suberror_name(internal.suberror));
        report.suberror = Some(internal.suberror);
        report.data = internal.data;
        if report.instruction.is_empty() {
            report.instruction = internal.instruction;
        }
        if internal.suberror == KVM_INTERNAL_ERROR_EMULATION && !cpuid::host_has_virtualization() {
            report.hint = Some(
                "this host's processor shows neither VMX nor SVM, so KVM executes guests in its instruction \
                 emulator, which lacks SSE, AVX, XSAVE and IRET in protected mode: unmodified kernels cannot run here",
            );
        }
    }
    report
}

/// The reason to stop after a panic on a vCPU thread: a mistake of ours, told like a crash of the guest.
pub(crate) fn panicked() -> StopReason {
    let what = "a device of the machine panicked".to_owned();
    StopReason::Crashed(Box::new(CrashReport {
        what,
        ..CrashReport::default()
    }))
}

fn suberror_name(suberror: u32) -> &'static str {
    match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "emulation failure",
        KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
        KVM_INTERNAL_ERROR_DELIVERY_EV => "delivery of an event failed",
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "unexpected exit reason",
        _ => "unknown",
    }
}

/// The bytes at the instruction pointer, as far as its page is mapped by the guest and is memory.
fn instruction_bytes(vcpu: &Vcpu, around: &Surroundings, report: &CrashReport) -> Vec<u8> {
    let (Some(regs), Some(sregs)) = (&report.regs, &report.sregs) else {
        return Vec::new();
    };
    let long_mode = sregs.cs.l != 0;
    let linear = if long_mode {
        regs.rip
    } else {
        sregs.cs.base.wrapping_add(regs.rip) & 0xffff_ffff
    };
    let mut bytes = Vec::new();
    for distance in 0..MAX_INSTRUCTION_BYTES {
        let Ok(translation) = vcpu.fd.translate_gva(linear.wrapping_add(distance)) else {
            break;
        };
        let byte = around
            .memory
            .read_obj::<u8>(GuestAddress(translation.physical_address));
        match byte {
            Ok(byte) if translation.valid != 0 => bytes.push(byte),
            _ => break,
        }
    }
    bytes
}
