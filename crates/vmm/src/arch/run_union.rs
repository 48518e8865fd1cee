//! What KVM leaves in the shared run structure about an internal error.

#![expect(
    unsafe_code,
    reason = "the run structure is a union that the exit reason discriminates"
)]

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, KVM_INTERNAL_ERROR_EMULATION};
use kvm_ioctls::VcpuFd;

/// Set in the flags of an emulation failure if the instruction's bytes are given.
const INSTRUCTION_BYTES_VALID: u64 = 1;

/// KVM's own account of an internal error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InternalError {
    pub(crate) suberror: u32,
    pub(crate) data: Vec<u64>,
    pub(crate) instruction: Vec<u8>,
}

/// Reads the account that belongs to the last exit; `None` if that was no internal error.
pub(crate) fn internal_error(vcpu: &mut VcpuFd) -> Option<InternalError> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: the exit reason says that `internal` is the member that the kernel filled; it is plain integers.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = usize::try_from(internal.ndata)
        .unwrap_or(0)
        .min(internal.data.len());
    let data: Vec<u64> = internal.data.into_iter().take(count).collect();
    let mut error = InternalError {
        suberror: internal.suberror,
        data,
        instruction: Vec::new(),
    };
    // The flags are the first word of the data, the size and bytes of the instruction the next two.
    if error.suberror == KVM_INTERNAL_ERROR_EMULATION
        && let [flags, first, second, ..] = error.data[..]
        && flags & INSTRUCTION_BYTES_VALID != 0
    {
        let packed = [first.to_le_bytes(), second.to_le_bytes()].concat();
        if let Some((&size, bytes)) = packed.split_first() {
            error.instruction = bytes.iter().copied().take(usize::from(size)).collect();
        }
    }
    Some(error)
}
