//! Conversion between KVM's structures and ours, field by field.
//!
//! KVM's structures are the kernel's binary interface; ours are the saved state's schema. They agree in
//! most names, so a table of names makes both directions and no field can be forgotten in one of them:
//! our structures are built without defaults.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_pic_state, kvm_pit_channel_state, kvm_regs, kvm_segment,
    kvm_sregs, kvm_sregs2, kvm_vcpu_events,
};

use crate::state::{
    CpuidLeaf, DebugRegs, DescriptorTable, Pic, PitChannel, Regs, Segment, Sregs, VcpuEvents,
};

/// KVM_SREGS2_FLAGS_PDPTRS_VALID: the page directory pointers mean something.
const PDPTRS_VALID: u64 = 1;

macro_rules! same_fields {
    ($kvm:ident <=> $ours:ident { $($field:ident),+ $(,)? }) => {
        impl From<&$kvm> for $ours {
            fn from(kvm: &$kvm) -> Self {
                Self { $($field: kvm.$field.into()),+ }
            }
        }

        #[allow(clippy::needless_update, reason = "only some of KVM's structures have padding")]
        impl From<&$ours> for $kvm {
            fn from(ours: &$ours) -> Self {
                Self { $($field: ours.$field.into(),)+ ..Self::default() }
            }
        }
    };
}

macro_rules! by_value {
    ($($kvm:ident <=> $ours:ident),+ $(,)?) => {
        $(
            impl From<$kvm> for $ours {
                fn from(kvm: $kvm) -> Self {
                    Self::from(&kvm)
                }
            }

            impl From<$ours> for $kvm {
                fn from(ours: $ours) -> Self {
                    Self::from(&ours)
                }
            }
        )+
    };
}

same_fields!(kvm_regs <=> Regs {
    rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags,
});
same_fields!(kvm_segment <=> Segment {
    base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable,
});
same_fields!(kvm_dtable <=> DescriptorTable { base, limit });
same_fields!(kvm_debugregs <=> DebugRegs { db, dr6, dr7 });
same_fields!(kvm_cpuid_entry2 <=> CpuidLeaf { function, index, flags, eax, ebx, ecx, edx });
same_fields!(kvm_pit_channel_state <=> PitChannel {
    count, latched_count, count_latched, status_latched, status, read_state, write_state, write_latch,
    rw_mode, mode, bcd, gate, count_load_time,
});
same_fields!(kvm_pic_state <=> Pic {
    last_irr, irr, imr, isr, priority_add, irq_base, read_reg_select, poll, special_mask, init_state,
    auto_eoi, rotate_on_auto_eoi, special_fully_nested_mode, init4, elcr, elcr_mask,
});
by_value!(kvm_segment <=> Segment, kvm_dtable <=> DescriptorTable, kvm_pit_channel_state <=> PitChannel);

macro_rules! sregs_from {
    ($kvm:expr, $pdptrs:expr) => {
        Self {
            cs: $kvm.cs.into(),
            ds: $kvm.ds.into(),
            es: $kvm.es.into(),
            fs: $kvm.fs.into(),
            gs: $kvm.gs.into(),
            ss: $kvm.ss.into(),
            tr: $kvm.tr.into(),
            ldt: $kvm.ldt.into(),
            gdt: $kvm.gdt.into(),
            idt: $kvm.idt.into(),
            cr0: $kvm.cr0,
            cr2: $kvm.cr2,
            cr3: $kvm.cr3,
            cr4: $kvm.cr4,
            cr8: $kvm.cr8,
            efer: $kvm.efer,
            apic_base: $kvm.apic_base,
            pdptrs: $pdptrs,
        }
    };
}

impl From<&kvm_sregs2> for Sregs {
    fn from(kvm: &kvm_sregs2) -> Self {
        sregs_from!(kvm, (kvm.flags & PDPTRS_VALID != 0).then_some(kvm.pdptrs))
    }
}

/// KVM's older structure also carries the vector of an interrupt under way; the saved state has that
/// in its [`VcpuEvents`].
impl From<&kvm_sregs> for Sregs {
    fn from(kvm: &kvm_sregs) -> Self {
        sregs_from!(kvm, None)
    }
}

macro_rules! kvm_sregs_from {
    ($ours:expr, $($extra:tt)+) => {
        Self {
            cs: $ours.cs.into(),
            ds: $ours.ds.into(),
            es: $ours.es.into(),
            fs: $ours.fs.into(),
            gs: $ours.gs.into(),
            ss: $ours.ss.into(),
            tr: $ours.tr.into(),
            ldt: $ours.ldt.into(),
            gdt: $ours.gdt.into(),
            idt: $ours.idt.into(),
            cr0: $ours.cr0,
            cr2: $ours.cr2,
            cr3: $ours.cr3,
            cr4: $ours.cr4,
            cr8: $ours.cr8,
            efer: $ours.efer,
            apic_base: $ours.apic_base,
            $($extra)+
        }
    };
}

impl From<&Sregs> for kvm_sregs2 {
    fn from(ours: &Sregs) -> Self {
        let flags = if ours.pdptrs.is_some() { PDPTRS_VALID } else { 0 };
        kvm_sregs_from!(ours, flags, pdptrs: ours.pdptrs.unwrap_or_default())
    }
}

impl From<&Sregs> for kvm_sregs {
    fn from(ours: &Sregs) -> Self {
        kvm_sregs_from!(ours, interrupt_bitmap: [0; 4])
    }
}

impl From<&kvm_vcpu_events> for VcpuEvents {
    fn from(kvm: &kvm_vcpu_events) -> Self {
        Self {
            flags: kvm.flags,
            exception_injected: kvm.exception.injected,
            exception_nr: kvm.exception.nr,
            exception_has_error_code: kvm.exception.has_error_code,
            exception_pending: kvm.exception.pending,
            exception_error_code: kvm.exception.error_code,
            exception_has_payload: kvm.exception_has_payload,
            exception_payload: kvm.exception_payload,
            interrupt_injected: kvm.interrupt.injected,
            interrupt_nr: kvm.interrupt.nr,
            interrupt_soft: kvm.interrupt.soft,
            interrupt_shadow: kvm.interrupt.shadow,
            nmi_injected: kvm.nmi.injected,
            nmi_pending: kvm.nmi.pending,
            nmi_masked: kvm.nmi.masked,
            sipi_vector: kvm.sipi_vector,
            smm: kvm.smi.smm,
            smi_pending: kvm.smi.pending,
            smm_inside_nmi: kvm.smi.smm_inside_nmi,
            latched_init: kvm.smi.latched_init,
            triple_fault_pending: kvm.triple_fault.pending,
        }
    }
}

impl From<&VcpuEvents> for kvm_vcpu_events {
    fn from(ours: &VcpuEvents) -> Self {
        let mut kvm = Self {
            flags: ours.flags,
            sipi_vector: ours.sipi_vector,
            exception_has_payload: ours.exception_has_payload,
            exception_payload: ours.exception_payload,
            ..Self::default()
        };
        kvm.exception.injected = ours.exception_injected;
        kvm.exception.nr = ours.exception_nr;
        kvm.exception.has_error_code = ours.exception_has_error_code;
        kvm.exception.pending = ours.exception_pending;
        kvm.exception.error_code = ours.exception_error_code;
        kvm.interrupt.injected = ours.interrupt_injected;
        kvm.interrupt.nr = ours.interrupt_nr;
        kvm.interrupt.soft = ours.interrupt_soft;
        kvm.interrupt.shadow = ours.interrupt_shadow;
        kvm.nmi.injected = ours.nmi_injected;
        kvm.nmi.pending = ours.nmi_pending;
        kvm.nmi.masked = ours.nmi_masked;
        kvm.smi.smm = ours.smm;
        kvm.smi.pending = ours.smi_pending;
        kvm.smi.smm_inside_nmi = ours.smm_inside_nmi;
        kvm.smi.latched_init = ours.latched_init;
        kvm.triple_fault.pending = ours.triple_fault_pending;
        kvm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of an integer field that differs from its neighbours'.
    fn distinct(n: u8) -> Segment {
        let b = u64::from(n) * 16;
        let byte = |i: u8| n.wrapping_mul(16).wrapping_add(i);
        Segment {
            base: b,
            limit: u32::from(n) + 1,
            selector: u16::from(n) + 2,
            type_: byte(3),
            present: byte(4),
            dpl: byte(5),
            db: byte(6),
            s: byte(7),
            l: byte(8),
            g: byte(9),
            avl: byte(10),
            unusable: byte(11),
        }
    }

    fn sregs() -> Sregs {
        Sregs {
            cs: distinct(0),
            ds: distinct(1),
            es: distinct(2),
            fs: distinct(3),
            gs: distinct(4),
            ss: distinct(5),
            tr: distinct(6),
            ldt: distinct(7),
            gdt: DescriptorTable { base: 1, limit: 2 },
            idt: DescriptorTable { base: 3, limit: 4 },
            cr0: 5,
            cr2: 6,
            cr3: 7,
            cr4: 8,
            cr8: 9,
            efer: 10,
            apic_base: 11,
            pdptrs: Some([12, 13, 14, 15]),
        }
    }

    #[test]
    fn system_registers_survive_both_structures() {
        let with_pointers = sregs();
        assert_eq!(Sregs::from(&kvm_sregs2::from(&with_pointers)), with_pointers);
        let without = Sregs {
            pdptrs: None,
            ..with_pointers
        };
        assert_eq!(Sregs::from(&kvm_sregs2::from(&without)), without);
        assert_eq!(Sregs::from(&kvm_sregs::from(&without)), without);
    }

    #[test]
    fn events_survive() {
        let events = VcpuEvents {
            flags: 1,
            exception_injected: 2,
            exception_nr: 3,
            exception_has_error_code: 4,
            exception_pending: 5,
            exception_error_code: 6,
            exception_has_payload: 7,
            exception_payload: 8,
            interrupt_injected: 9,
            interrupt_nr: 10,
            interrupt_soft: 11,
            interrupt_shadow: 12,
            nmi_injected: 13,
            nmi_pending: 14,
            nmi_masked: 15,
            sipi_vector: 16,
            smm: 17,
            smi_pending: 18,
            smm_inside_nmi: 19,
            latched_init: 20,
            triple_fault_pending: 21,
        };
        assert_eq!(VcpuEvents::from(&kvm_vcpu_events::from(&events)), events);
    }
}
