//! The state of one vCPU.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::state::ByteString;

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// Number of the vCPU, which is its local APIC id.
    pub id: u32,
    /// KVM_MP_STATE number: 0 runnable, 1 waiting for INIT, 2 INIT received, 3 halted, 4 SIPI received.
    pub mp_state: u32,
    /// General purpose registers.
    pub regs: Regs,
    /// Segments, control registers and tables.
    pub sregs: Sregs,
    /// Extended state area in the standard (not compacted) XSAVE format: x87, SSE, AVX and beyond.
    pub xsave: ByteString,
    /// Extended control registers by number; 0 is XCR0.
    pub xcrs: BTreeMap<u32, u64>,
    /// Debug registers.
    pub debug_regs: DebugRegs,
    /// The register page of the local APIC, 1024 bytes.
    pub lapic: ByteString,
    /// Frequency of the time stamp counter in kHz.
    pub tsc_khz: u32,
    /// Difference between the guest's and the host's time stamp counter, where KVM tells it.
    pub tsc_offset: Option<u64>,
    /// CPUID as this vCPU sees it.
    pub cpuid: Vec<CpuidLeaf>,
    /// Model specific registers by index.
    pub msrs: BTreeMap<u32, u64>,
    /// Exceptions and interrupts under way.
    pub events: VcpuEvents,
}

/// General purpose registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the fields are the architecture's registers by their names"
)]
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// Segments, control registers and tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the fields are the architecture's registers by their names"
)]
pub struct Sregs {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
    /// The four page directory pointers, where PAE paging without long mode has loaded them.
    pub pdptrs: Option<[u64; 4]>,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the fields are those of a segment descriptor by their names"
)]
pub struct Segment {
    pub base: u64,
    pub limit: u32,
    pub selector: u16,
    #[serde(rename = "type")]
    pub type_: u8,
    pub present: u8,
    pub dpl: u8,
    pub db: u8,
    pub s: u8,
    pub l: u8,
    pub g: u8,
    pub avl: u8,
    pub unusable: u8,
}

/// The register of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescriptorTable {
    /// Linear address of the table.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

/// Debug registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebugRegs {
    /// DR0 to DR3, the breakpoint addresses.
    pub db: [u64; 4],
    /// DR6, the status.
    pub dr6: u64,
    /// DR7, the control.
    pub dr7: u64,
}

/// One answer of the CPUID instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the fields are the instruction's registers by their names"
)]
pub struct CpuidLeaf {
    /// Leaf, the value of EAX before.
    pub function: u32,
    /// Subleaf, the value of ECX before.
    pub index: u32,
    /// KVM_CPUID_FLAG bits; 1 means that the subleaf is significant.
    pub flags: u32,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Exceptions and interrupts under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuEvents {
    /// Which of the optional fields are valid: KVM_VCPUEVENT_VALID bits.
    pub flags: u32,
    /// Not zero if an exception is being delivered.
    pub exception_injected: u8,
    /// Vector of the exception.
    pub exception_nr: u8,
    /// Not zero if the exception has an error code.
    pub exception_has_error_code: u8,
    /// Not zero if an exception is queued.
    pub exception_pending: u8,
    /// Error code of the exception.
    pub exception_error_code: u32,
    /// Not zero if the exception has a payload.
    pub exception_has_payload: u8,
    /// Payload of the exception: CR2 or DR6 to be.
    pub exception_payload: u64,
    /// Not zero if an interrupt is being delivered.
    pub interrupt_injected: u8,
    /// Vector of the interrupt.
    pub interrupt_nr: u8,
    /// Not zero if it is a software interrupt.
    pub interrupt_soft: u8,
    /// Interrupt shadow: 1 after MOV SS, 2 after STI.
    pub interrupt_shadow: u8,
    /// Not zero if an NMI is being delivered.
    pub nmi_injected: u8,
    /// Number of NMIs queued.
    pub nmi_pending: u8,
    /// Not zero while NMIs are masked.
    pub nmi_masked: u8,
    /// Vector of the start-up IPI that was received.
    pub sipi_vector: u32,
    /// Not zero in system management mode.
    pub smm: u8,
    /// Not zero if an SMI is queued.
    pub smi_pending: u8,
    /// Not zero if the SMI arrived inside an NMI.
    pub smm_inside_nmi: u8,
    /// Not zero if an INIT arrived in system management mode.
    pub latched_init: u8,
    /// Not zero if a triple fault is queued.
    pub triple_fault_pending: u8,
}
