//! What is x86-64 about the machine: processor identification, registers, boot state, and the conversion
//! between KVM's structures and the saved state.

pub(crate) mod boot;
pub(crate) mod clock;
mod convert;
pub(crate) mod cpuid;
pub(crate) mod features;
pub(crate) mod msr;
pub(crate) mod platform;
mod raw;
mod run_union;
pub(crate) mod vcpu_state;
pub(crate) mod vm_state;

pub(crate) use run_union::internal_error;
