//! What this host and its KVM offer, and whether that is enough for a saved guest.

use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use crate::arch::{cpuid, features};
use crate::error::{Error, Result};
use crate::state::{CpuidLeaf, PlatformState};

/// Frequencies of the time stamp counter that differ by no more than this count as equal, as KVM's own
/// tolerance has it: parts per million.
const TSC_TOLERANCE_PPM: u64 = 250;

/// Capabilities without which no machine can be run or saved.
const REQUIRED: [(Cap, &str); 14] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// The KVM interface that this crate is written for; it has not changed since 2007.
const KVM_API_VERSION: i32 = 12;

/// Opens KVM.
pub(crate) fn open_kvm() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|error| Error::KvmUnavailable(error.into()))?;
    if kvm.get_api_version() != KVM_API_VERSION {
        return Err(Error::MissingCapability {
            capability: "API version 12",
        });
    }
    Ok(kvm)
}

/// What KVM offers to one VM.
#[derive(Clone, Debug)]
pub(crate) struct Capabilities {
    /// The frequency of a vCPU's time stamp counter can be chosen.
    pub(crate) tsc_control: bool,
    /// System registers come with the page directory pointers.
    pub(crate) sregs2: bool,
    /// Bytes of a vCPU's XSAVE area, a multiple of four.
    pub(crate) xsave_bytes: usize,
    api_version: u32,
    names: Vec<String>,
}

impl Capabilities {
    /// Asks KVM, and refuses one that cannot run a machine.
    pub(crate) fn query(kvm: &Kvm, vm: &VmFd) -> Result<Self> {
        if let Some(&(_, capability)) = REQUIRED.iter().find(|&&(cap, _)| !vm.check_extension(cap)) {
            return Err(Error::MissingCapability { capability });
        }
        let mut names: Vec<String> = REQUIRED.iter().map(|&(_, name)| name.to_owned()).collect();
        let mut optional = |name: &str, number: u32| {
            let value = vm.check_extension_raw(number.into());
            if value > 0 {
                names.push(name.to_owned());
            }
            value
        };
        let tsc_control = optional("KVM_CAP_TSC_CONTROL", kvm_bindings::KVM_CAP_TSC_CONTROL) > 0;
        let sregs2 = optional("KVM_CAP_SREGS2", kvm_bindings::KVM_CAP_SREGS2) > 0;
        let xsave2 = optional("KVM_CAP_XSAVE2", kvm_bindings::KVM_CAP_XSAVE2);
        optional(
            "KVM_CAP_TSC_DEADLINE_TIMER",
            kvm_bindings::KVM_CAP_TSC_DEADLINE_TIMER,
        );
        optional("KVM_CAP_KVMCLOCK_CTRL", kvm_bindings::KVM_CAP_KVMCLOCK_CTRL);
        names.sort_unstable();
        Ok(Self {
            tsc_control,
            sregs2,
            xsave_bytes: usize::try_from(xsave2).unwrap_or(0).max(4096).next_multiple_of(4),
            api_version: u32::try_from(kvm.get_api_version()).unwrap_or(0),
            names,
        })
    }

    /// Describes the platform that a guest with this CPUID sees.
    pub(crate) fn describe(&self, cpuid: &[CpuidLeaf], msr_indices: &[u32], tsc_khz: u32) -> PlatformState {
        let (vendor, family, model, stepping) = cpuid::signature(cpuid);
        PlatformState {
            vendor,
            family,
            model,
            stepping,
            features: features::names(cpuid),
            cpuid: cpuid.to_vec(),
            xsave_bytes: u32::try_from(self.xsave_bytes).unwrap_or(u32::MAX),
            msr_indices: msr_indices.to_vec(),
            tsc_khz,
            kvm_api_version: self.api_version,
            kvm_capabilities: self.names.clone(),
        }
    }
}

impl PlatformState {
    /// Checks that this host can run the saved guest, before anything of it is restored.
    ///
    /// # Errors
    /// The host's processor is by another vendor or lacks features, which are named; or KVM is not usable.
    pub fn check_host(&self) -> Result<()> {
        let kvm = open_kvm()?;
        let vm = kvm.create_vm().map_err(|source| Error::Kvm {
            operation: "KVM_CREATE_VM",
            source,
        })?;
        let capabilities = Capabilities::query(&kvm, &vm)?;
        let failed = |source| Error::Vcpu {
            vcpu: 0,
            operation: "KVM_CREATE_VCPU",
            source,
        };
        let vcpu = vm.create_vcpu(0).map_err(failed)?;
        check_processor(&self.cpuid, &cpuid::shown(&cpuid::supported(&kvm)?, &vcpu)?)?;
        check_xsave(
            usize::try_from(self.xsave_bytes).unwrap_or(usize::MAX),
            &capabilities,
        )?;
        check_tsc(self.tsc_khz, &vcpu, &capabilities).map(|_| ())
    }
}

/// Refuses a host that has no room for a vCPU's saved extended registers.
pub(crate) fn check_xsave(saved_bytes: usize, capabilities: &Capabilities) -> Result<()> {
    let host_bytes = capabilities.xsave_bytes;
    if saved_bytes <= host_bytes {
        Ok(())
    } else {
        Err(Error::XsaveTooLarge {
            saved_bytes,
            host_bytes,
        })
    }
}

/// Tells whether the frequency of the time stamp counter must be set for a guest; refuses a host where it
/// must, but cannot.
pub(crate) fn check_tsc(guest_khz: u32, vcpu: &VcpuFd, capabilities: &Capabilities) -> Result<bool> {
    let host_khz = vcpu.get_tsc_khz().unwrap_or(0);
    let differs = tsc_differs(guest_khz, host_khz);
    if differs && !capabilities.tsc_control {
        return Err(Error::TscFrequency { guest_khz, host_khz });
    }
    Ok(differs)
}

/// Refuses a host whose processor is of another vendor or lacks a feature that a guest has seen.
pub(crate) fn check_processor(guest: &[CpuidLeaf], host: &[CpuidLeaf]) -> Result<()> {
    let (guest_vendor, ..) = cpuid::signature(guest);
    let (host_vendor, ..) = cpuid::signature(host);
    if guest_vendor != host_vendor {
        return Err(Error::WrongVendor {
            guest: guest_vendor,
            host: host_vendor,
        });
    }
    let missing = features::missing(guest, host);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::MissingFeatures { missing })
    }
}

/// Returns whether a guest's time stamp counter would run at another speed than it is used to.
fn tsc_differs(guest_khz: u32, host_khz: u32) -> bool {
    let (guest, host) = (u64::from(guest_khz), u64::from(host_khz));
    guest != 0 && host != 0 && guest.abs_diff(host) * 1_000_000 > host * TSC_TOLERANCE_PPM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_within_the_tolerance_are_equal() {
        assert!(!tsc_differs(2_000_000, 2_000_000));
        assert!(!tsc_differs(2_000_500, 2_000_000));
        assert!(tsc_differs(2_000_501, 2_000_000));
        assert!(tsc_differs(1_999_000, 2_000_000));
        assert!(
            !tsc_differs(0, 2_000_000),
            "an unknown frequency cannot be compared"
        );
    }

    #[test]
    fn another_vendor_is_refused_before_features_are_looked_at() {
        let of = |ebx| {
            [CpuidLeaf {
                ebx,
                ..CpuidLeaf::default()
            }]
        };
        let result = check_processor(&of(0x6874_7541), &of(0x756e_6547));
        assert!(matches!(result, Err(Error::WrongVendor { .. })), "{result:?}");
    }
}
