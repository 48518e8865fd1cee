//! Saving and restoring what all vCPUs share: timer, clock, interrupt controllers.

use kvm_bindings::{kvm_ioapic_state, kvm_pic_state, kvm_pit_channel_state, kvm_pit_state2};
use kvm_ioctls::VmFd;

use crate::arch::raw;
use crate::error::{Error, Result};
use crate::state::{Clock, IoApic, Pic, Pit, PitChannel};

/// The chips and clock of a VM.
#[derive(Clone, Debug)]
pub(crate) struct Chips {
    pub(crate) pit: Pit,
    pub(crate) clock: Clock,
    pub(crate) pics: [Pic; 2],
    pub(crate) ioapic: IoApic,
}

/// Reads the chips beside the clock; no vCPU may be running.
pub(crate) fn save(vm: &VmFd, clock: Clock) -> Result<Chips> {
    let failed = |operation| move |source| Error::Kvm { operation, source };
    let pit = vm.get_pit2().map_err(failed("KVM_GET_PIT2"))?;
    let pics = raw::get_pics(vm).map_err(failed("KVM_GET_IRQCHIP"))?;
    let (ioapic, redirection) = raw::get_ioapic(vm).map_err(failed("KVM_GET_IRQCHIP"))?;
    Ok(Chips {
        pit: Pit {
            channels: pit.channels.map(PitChannel::from),
            flags: pit.flags,
        },
        clock,
        pics: [Pic::from(&pics[0]), Pic::from(&pics[1])],
        ioapic: IoApic {
            base_address: ioapic.base_address,
            ioregsel: ioapic.ioregsel,
            id: ioapic.id,
            irr: ioapic.irr,
            redirection,
        },
    })
}

/// Masks every input of the 8259 interrupt controllers, as firmware leaves them. A guest that uses them
/// initialises them first; one that does not, for it uses the I/O APIC, is spared their interrupts, which
/// would come with the vectors of exceptions.
pub(crate) fn mask_pics(vm: &VmFd) -> Result<()> {
    let failed = |operation| move |source| Error::Kvm { operation, source };
    let mut pics = raw::get_pics(vm).map_err(failed("KVM_GET_IRQCHIP"))?;
    pics.iter_mut().for_each(|pic| pic.imr = 0xff);
    raw::set_pics(vm, pics).map_err(failed("KVM_SET_IRQCHIP"))
}

/// Writes the interrupt controllers and the timer, before any vCPU runs. The clock is written by itself.
///
/// The timer comes after the interrupt controllers. It ticks as soon as it is written, and KVM holds its next
/// tick back until the last one is acknowledged: a tick that the controllers' state then overwrote would
/// never be acknowledged, and the guest would never see another.
pub(crate) fn restore(vm: &VmFd, chips: &Chips) -> Result<()> {
    let failed = |operation| move |source| Error::Kvm { operation, source };
    let pics = [
        kvm_pic_state::from(&chips.pics[0]),
        kvm_pic_state::from(&chips.pics[1]),
    ];
    raw::set_pics(vm, pics).map_err(failed("KVM_SET_IRQCHIP"))?;
    let ioapic = kvm_ioapic_state {
        base_address: chips.ioapic.base_address,
        ioregsel: chips.ioapic.ioregsel,
        id: chips.ioapic.id,
        irr: chips.ioapic.irr,
        ..kvm_ioapic_state::default()
    };
    raw::set_ioapic(vm, ioapic, chips.ioapic.redirection).map_err(failed("KVM_SET_IRQCHIP"))?;
    let pit = kvm_pit_state2 {
        channels: chips.pit.channels.clone().map(kvm_pit_channel_state::from),
        flags: chips.pit.flags,
        ..kvm_pit_state2::default()
    };
    vm.set_pit2(&pit).map_err(failed("KVM_SET_PIT2"))
}
