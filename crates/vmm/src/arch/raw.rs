//! KVM calls that `kvm-ioctls` lacks or cannot make safe: the XSAVE area of the size that the VM has,
//! SREGS2, the offset of the time stamp counter, and the union inside the interrupt controllers' state.
//!
//! Each function is safe to call: what the kernel demands of sizes and pointers is met here.

#![expect(
    unsafe_code,
    reason = "ioctls on structures whose size only this module knows"
)]

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVMIO, Xsave, kvm_device_attr,
    kvm_ioapic_state, kvm_irqchip, kvm_pic_state, kvm_sregs2,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{errno, ioctl_ior_nr, ioctl_iow_nr};

ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// Bytes of the part of an XSAVE area that every KVM has.
pub(super) const XSAVE_BASE_BYTES: usize = 4096;

/// The attribute of a vCPU that is the offset of its time stamp counter.
const TSC_OFFSET_ATTR: (u32, u64) = (
    kvm_bindings::KVM_VCPU_TSC_CTRL,
    kvm_bindings::KVM_VCPU_TSC_OFFSET as u64,
);

/// Reads the XSAVE area, `bytes` long: what KVM_CAP_XSAVE2 says, at least 4096.
pub(super) fn get_xsave(vcpu: &VcpuFd, bytes: usize) -> Result<Vec<u8>, errno::Error> {
    let mut area = allocate(bytes)?;
    // SAFETY:
    // - `area` is as long as KVM_CAP_XSAVE2 says for this VM (`bytes`, rounded up to words).
    // - No extended feature is enabled for the process after that was asked: this crate never asks for one.
    unsafe { vcpu.get_xsave2(&mut area) }?;
    let fam = area.as_fam_struct_ref();
    let mut out: Vec<u8> = fam
        .xsave
        .region
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    out.extend(area.as_slice().iter().flat_map(|word| word.to_le_bytes()));
    Ok(out)
}

/// Writes the XSAVE area. A shorter one than KVM's `bytes` is extended with zeros, which is the initial
/// state of the components that it lacks.
pub(super) fn set_xsave(vcpu: &VcpuFd, bytes: usize, saved: &[u8]) -> Result<(), errno::Error> {
    let mut area = allocate(bytes)?;
    let mut words = saved
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().unwrap_or_default()));
    // SAFETY: the length of the flexible array is not changed, only words of the fixed part are.
    let fam = unsafe { area.as_mut_fam_struct() };
    for (to, from) in fam.xsave.region.iter_mut().zip(&mut words) {
        *to = from;
    }
    for (to, from) in area.as_mut_slice().iter_mut().zip(words) {
        *to = from;
    }
    // SAFETY: as in `get_xsave`: the area is as long as this VM's KVM reads.
    unsafe { vcpu.set_xsave2(&area) }
}

fn allocate(bytes: usize) -> Result<Xsave, errno::Error> {
    let extra_words = bytes.saturating_sub(XSAVE_BASE_BYTES).div_ceil(4);
    Xsave::new(extra_words).map_err(|_| errno::Error::new(libc::ENOMEM))
}

/// Reads the system registers with the page directory pointers.
pub(super) fn get_sregs2(vcpu: &VcpuFd) -> Result<kvm_sregs2, errno::Error> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: `sregs` is the structure whose size the ioctl number carries, and outlives the call.
    let result = unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) };
    if result == 0 {
        Ok(sregs)
    } else {
        Err(errno::Error::last())
    }
}

/// Writes the system registers with the page directory pointers.
pub(super) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> Result<(), errno::Error> {
    // SAFETY: `sregs` is the structure whose size the ioctl number carries, and is only read.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) };
    if result == 0 {
        Ok(())
    } else {
        Err(errno::Error::last())
    }
}

/// Reads guest minus host time stamp counter; `None` if this KVM does not tell.
pub(super) fn tsc_offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0u64;
    let (group, attr) = TSC_OFFSET_ATTR;
    let request = kvm_device_attr {
        flags: 0,
        group,
        attr,
        addr: &raw mut offset as u64,
    };
    // SAFETY:
    // - `request` is the structure whose size the ioctl number carries.
    // - The kernel writes eight bytes at `addr`, which is `offset`, alive and not otherwise used here.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &request) };
    (result == 0).then_some(offset)
}

/// Sets guest minus host time stamp counter.
pub(super) fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), errno::Error> {
    let (group, attr) = TSC_OFFSET_ATTR;
    let request = kvm_device_attr {
        flags: 0,
        group,
        attr,
        addr: &raw const offset as u64,
    };
    // SAFETY:
    // - `request` is the structure whose size the ioctl number carries.
    // - The kernel reads eight bytes at `addr`, which is `offset`, alive through the call.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &request) };
    if result == 0 {
        Ok(())
    } else {
        Err(errno::Error::last())
    }
}

/// Reads both 8259 controllers, primary first.
pub(super) fn get_pics(vm: &VmFd) -> Result<[kvm_pic_state; 2], errno::Error> {
    let mut pics = [kvm_pic_state::default(); 2];
    for (pic, chip_id) in pics
        .iter_mut()
        .zip([KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE])
    {
        let mut chip = kvm_irqchip {
            chip_id,
            ..kvm_irqchip::default()
        };
        vm.get_irqchip(&mut chip)?;
        // SAFETY: for these chip ids the kernel fills `pic`, and every bit pattern of it is valid.
        *pic = unsafe { chip.chip.pic };
    }
    Ok(pics)
}

/// Writes both 8259 controllers, primary first.
pub(super) fn set_pics(vm: &VmFd, pics: [kvm_pic_state; 2]) -> Result<(), errno::Error> {
    for (pic, chip_id) in pics
        .into_iter()
        .zip([KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE])
    {
        let mut chip = kvm_irqchip {
            chip_id,
            ..kvm_irqchip::default()
        };
        chip.chip.pic = pic;
        vm.set_irqchip(&chip)?;
    }
    Ok(())
}

/// Reads the I/O APIC and its redirection table.
pub(super) fn get_ioapic(vm: &VmFd) -> Result<(kvm_ioapic_state, [u64; 24]), errno::Error> {
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..kvm_irqchip::default()
    };
    vm.get_irqchip(&mut chip)?;
    // SAFETY: for this chip id the kernel fills `ioapic`, and every bit pattern of it is valid.
    let ioapic = unsafe { chip.chip.ioapic };
    let mut redirection = [0; 24];
    for (bits, entry) in redirection.iter_mut().zip(&ioapic.redirtbl) {
        // SAFETY: both members of the union are plain integers of the same 64 bits.
        *bits = unsafe { entry.bits };
    }
    Ok((ioapic, redirection))
}

/// Writes the I/O APIC, with `redirection` in the place of its table.
pub(super) fn set_ioapic(
    vm: &VmFd,
    mut ioapic: kvm_ioapic_state,
    redirection: [u64; 24],
) -> Result<(), errno::Error> {
    for (entry, bits) in ioapic.redirtbl.iter_mut().zip(redirection) {
        entry.bits = bits;
    }
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..kvm_irqchip::default()
    };
    chip.chip.ioapic = ioapic;
    vm.set_irqchip(&chip)
}
