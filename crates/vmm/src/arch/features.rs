//! Processor features by name: what a guest has seen and what a host lacks.
//!
//! A feature is one bit of one register of one CPUID leaf. The names are those of `/proc/cpuinfo` where it
//! has one. A bit without a name counts as well, under its position, so that a processor newer than this
//! table is still compared bit for bit.

use crate::state::CpuidLeaf;

/// A register of a CPUID answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

/// A register of flags: leaf, subleaf, register, the names of its bits from bit 0 (empty: none), and the
/// bits that are no feature of the host: they mirror a control register or are ours to choose.
struct FlagWord {
    function: u32,
    index: u32,
    register: Register,
    ignored: u32,
    names: &'static str,
}

/// MONITOR, TSC_DEADLINE, OSXSAVE, HYPERVISOR.
const IGNORED_1_ECX: u32 = 1 << 3 | 1 << 24 | 1 << 27 | 1 << 31;
/// APIC (mirrors the enable bit of the APIC base), HTT.
const IGNORED_1_EDX: u32 = 1 << 9 | 1 << 28;
/// OSPKE.
const IGNORED_7_ECX: u32 = 1 << 4;
/// CMP_LEGACY, TOPOEXT.
const IGNORED_80000001_ECX: u32 = 1 << 1 | 1 << 22;

const FLAG_WORDS: [FlagWord; 13] = [
    FlagWord {
        function: 1,
        index: 0,
        register: Ecx,
        ignored: IGNORED_1_ECX,
        names: "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca \
                sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    },
    FlagWord {
        function: 1,
        index: 0,
        register: Edx,
        ignored: IGNORED_1_EDX,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi \
                mmx fxsr sse sse2 ss ht tm ia64 pbe",
    },
    FlagWord {
        function: 7,
        index: 0,
        register: Ebx,
        ignored: 0,
        names: "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds \
                mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel_pt avx512pf \
                avx512er avx512cd sha_ni avx512bw avx512vl",
    },
    FlagWord {
        function: 7,
        index: 0,
        register: Ecx,
        ignored: IGNORED_7_ECX,
        names: "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
                avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri \
                movdir64b enqcmd sgx_lc pks",
    },
    FlagWord {
        function: 7,
        index: 0,
        register: Edx,
        ignored: 0,
        names: "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear \
                rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 \
                avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities \
                spec_ctrl_ssbd",
    },
    FlagWord {
        function: 7,
        index: 1,
        register: Eax,
        ignored: 0,
        names: "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - fred \
                lkgs wrmsrns nmi_src amx_fp16 hreset avx_ifma - - lam - - - - -",
    },
    FlagWord {
        function: 7,
        index: 1,
        register: Edx,
        ignored: 0,
        names: "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchi - - uiret_uif \
                cet_sss avx10 - - - - - - - - - - - -",
    },
    FlagWord {
        function: 0xd,
        index: 1,
        register: Eax,
        ignored: 0,
        names: "xsaveopt xsavec xgetbv1 xsaves xfd - - - - - - - - - - - - - - - - - - - - - - - - - - -",
    },
    FlagWord {
        function: 0x8000_0001,
        index: 0,
        register: Ecx,
        ignored: IGNORED_80000001_ECX,
        names: "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit \
                wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc \
                mwaitx - -",
    },
    FlagWord {
        function: 0x8000_0001,
        index: 0,
        register: Edx,
        // The low half repeats leaf 1 where AMD defines it at all.
        ignored: 0x0183_f3ff,
        names: "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext \
                3dnow",
    },
    FlagWord {
        function: 0x8000_0007,
        index: 0,
        register: Edx,
        ignored: 0,
        names: "ts fid vid ttp thermal_control stc 100mhzsteps hwpstate constant_tsc cpb aperfmperf proc_feedback acc_power - - - \
                - - - - - - - - - - - - - - - -",
    },
    FlagWord {
        function: 0x8000_0008,
        index: 0,
        register: Ebx,
        ignored: 0,
        names: "clzero irperf xsaveerptr invlpgb rdpru - mba - mcommit wbnoinvd - - ibpb int_wbinvd ibrs stibp \
                ibrs_always_on stibp_always_on ibrs_preferred ibrs_same_mode efer_lmsle_unsupported - - ppin ssbd \
                virt_ssbd ssb_no cppc psfd btc_no ibpb_ret -",
    },
    FlagWord {
        function: 0x4000_0001,
        index: 0,
        register: Eax,
        // KVM_FEATURE_CLOCKSOURCE_STABLE_BIT (24) tells about the host's clock, not about an ability.
        ignored: 1 << 24,
        names: "kvmclock kvm_nop_io_delay kvm_mmu kvmclock2 kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - \
                kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield \
                kvm_asyncpf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control - - - - - - \
                kvmclock_stable - - - - - - -",
    },
];

impl FlagWord {
    fn value(&self, leaves: &[CpuidLeaf]) -> u32 {
        let leaf = leaves
            .iter()
            .find(|leaf| leaf.function == self.function && leaf.index == self.index);
        leaf.map_or(0, |leaf| match self.register {
            Eax => leaf.eax,
            Ebx => leaf.ebx,
            Ecx => leaf.ecx,
            Edx => leaf.edx,
        })
    }

    /// Keeps only the bits of `mask`.
    fn restrict(&self, leaves: &mut [CpuidLeaf], mask: u32) {
        let own = |leaf: &&mut CpuidLeaf| leaf.function == self.function && leaf.index == self.index;
        if let Some(leaf) = leaves.iter_mut().find(own) {
            match self.register {
                Eax => leaf.eax &= mask,
                Ebx => leaf.ebx &= mask,
                Ecx => leaf.ecx &= mask,
                Edx => leaf.edx &= mask,
            }
        }
    }

    /// The bits whose names are among `names`, which spaces separate.
    fn bits_of(&self, names: &str) -> u32 {
        let bits = self.names.split_ascii_whitespace().enumerate();
        bits.filter(|(_, name)| names.split_ascii_whitespace().any(|wanted| wanted == *name))
            .fold(0, |mask, (bit, _)| mask | 1 << bit)
    }

    fn name(&self, bit: usize) -> String {
        match self.names.split_ascii_whitespace().nth(bit) {
            Some(name) if name != "-" => name.to_owned(),
            _ => {
                let register = format!("{:?}", self.register).to_ascii_lowercase();
                format!("cpuid_{:x}_{:x}_{register}_bit_{bit}", self.function, self.index)
            }
        }
    }

    fn names_of(&self, bits: u32) -> impl Iterator<Item = String> {
        (0..32)
            .filter(move |bit| bits & (1 << bit) != 0)
            .map(|bit| self.name(bit))
    }
}

/// Returns the names of the features that CPUID shows, sorted.
pub(crate) fn names(leaves: &[CpuidLeaf]) -> Vec<String> {
    let mut names: Vec<String> = FLAG_WORDS
        .iter()
        .flat_map(|word| word.names_of(word.value(leaves) & !word.ignored))
        .collect();
    names.sort_unstable();
    names
}

/// Returns the names of the features that `guest` shows and `host` lacks, in the order of the leaves.
pub(crate) fn missing(guest: &[CpuidLeaf], host: &[CpuidLeaf]) -> Vec<String> {
    FLAG_WORDS
        .iter()
        .flat_map(|word| word.names_of(word.value(guest) & !word.value(host) & !word.ignored))
        .collect()
}

/// Returns those of the given features that CPUID does not show, in the order of the leaves.
pub(crate) fn lacking(leaves: &[CpuidLeaf], wanted: &str) -> Vec<String> {
    FLAG_WORDS
        .iter()
        .flat_map(|word| word.names_of(word.bits_of(wanted) & !word.value(leaves)))
        .collect()
}

/// Hides the given features.
pub(crate) fn hide(leaves: &mut [CpuidLeaf], names: &str) {
    for word in &FLAG_WORDS {
        word.restrict(leaves, !word.bits_of(names));
    }
}

/// Hides all features but the given ones, named or not.
pub(crate) fn keep_only(leaves: &mut [CpuidLeaf], names: &str) {
    for word in &FLAG_WORDS {
        word.restrict(leaves, word.bits_of(names));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(function: u32, index: u32, ebx: u32) -> Vec<CpuidLeaf> {
        vec![CpuidLeaf {
            function,
            index,
            ebx,
            ..CpuidLeaf::default()
        }]
    }

    #[test]
    fn every_word_has_thirty_two_names_and_no_name_comes_twice() {
        let mut all = Vec::new();
        for word in &FLAG_WORDS {
            let names: Vec<_> = word.names.split_ascii_whitespace().collect();
            assert_eq!(
                names.len(),
                32,
                "leaf {:x}.{} {:?}",
                word.function,
                word.index,
                word.register
            );
            all.extend(names.into_iter().filter(|&name| name != "-"));
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn names_well_known_bits() {
        let cases = [
            (with(7, 0, 1 << 16), "avx512f"),
            (with(7, 0, 1 << 5), "avx2"),
            (with(7, 0, 1 << 29), "sha_ni"),
        ];
        for (leaves, name) in cases {
            assert_eq!(names(&leaves), [name]);
        }
    }

    #[test]
    fn a_missing_feature_is_named_and_a_superfluous_one_is_not() {
        let (guest, host) = (with(7, 0, 0b1001 << 16), with(7, 0, 0b0110 << 16));
        assert_eq!(missing(&guest, &host), ["avx512f", "adx"]);
        assert_eq!(missing(&guest, &[]), ["avx512f", "adx"]);
        assert!(missing(&[], &host).is_empty());
    }

    #[test]
    fn a_bit_without_a_name_is_told_by_its_position() {
        assert_eq!(
            missing(&with(0x8000_0008, 0, 1 << 31), &[]),
            ["cpuid_80000008_0_ebx_bit_31"]
        );
    }

    #[test]
    fn bits_that_mirror_guest_state_are_no_features() {
        let guest = [CpuidLeaf {
            function: 1,
            ecx: 1 << 27 | 1 << 31,
            edx: 1 << 9,
            ..CpuidLeaf::default()
        }];
        assert!(missing(&guest, &[]).is_empty());
    }
}
