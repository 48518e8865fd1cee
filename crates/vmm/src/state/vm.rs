//! The state that all vCPUs share: memory map, interrupt controllers, timer, clock.

use serde::{Deserialize, Serialize};

use crate::arch::vm_state::Chips;
use crate::memory::MemoryRange;

/// What all vCPUs share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSection {
    /// Guest memory, in address order.
    pub memory: Vec<MemoryRange>,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Names of the devices, in topology order.
    pub devices: Vec<String>,
    /// The 8254 timer.
    pub pit: Pit,
    /// The paravirtual clock.
    pub clock: Clock,
    /// The two 8259 interrupt controllers, primary first.
    pub pics: [Pic; 2],
    /// The I/O APIC.
    pub ioapic: IoApic,
}

impl VmSection {
    pub(crate) fn new(memory: Vec<MemoryRange>, cpus: usize, devices: Vec<String>, chips: Chips) -> Self {
        let Chips {
            pit,
            clock,
            pics,
            ioapic,
        } = chips;
        Self {
            memory,
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            devices,
            pit,
            clock,
            pics,
            ioapic,
        }
    }

    pub(crate) fn chips(&self) -> Chips {
        Chips {
            pit: self.pit.clone(),
            clock: self.clock.clone(),
            pics: self.pics.clone(),
            ioapic: self.ioapic.clone(),
        }
    }
}

/// The 8254 programmable interval timer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pit {
    /// The three counters.
    pub channels: [PitChannel; 3],
    /// KVM_PIT_FLAGS bits: 1 HPET legacy mode, 2 speaker data on.
    pub flags: u32,
}

/// One counter of the 8254.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PitChannel {
    /// Reload value, 65536 for a written 0.
    pub count: u32,
    /// Count held by a latch command.
    pub latched_count: u16,
    /// Not zero while a count is latched.
    pub count_latched: u8,
    /// Not zero while a status is latched.
    pub status_latched: u8,
    /// Latched status byte.
    pub status: u8,
    /// Which byte is read next.
    pub read_state: u8,
    /// Which byte is written next.
    pub write_state: u8,
    /// Low byte of a count that is being written.
    pub write_latch: u8,
    /// Access mode: 1 low byte, 2 high byte, 3 both.
    pub rw_mode: u8,
    /// Counting mode, 0 to 5.
    pub mode: u8,
    /// Not zero if the counter counts in BCD.
    pub bcd: u8,
    /// Level of the gate input.
    pub gate: u8,
    /// Host monotonic time in ns at which the count was loaded; not comparable between hosts.
    pub count_load_time: i64,
}

/// The paravirtual clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    /// Nanoseconds since the machine was created.
    pub clock_ns: u64,
    /// KVM_CLOCK flags that were valid when saved.
    pub flags: u32,
    /// Host real time in ns since 1970 at the same instant; 0 if unknown.
    pub realtime_ns: u64,
    /// Host time stamp counter at the same instant; 0 if unknown.
    pub host_tsc: u64,
}

/// One 8259 interrupt controller, as KVM names its registers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the fields are the chip's registers by their names in its data sheet"
)]
pub struct Pic {
    pub last_irr: u8,
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    pub priority_add: u8,
    pub irq_base: u8,
    pub read_reg_select: u8,
    pub poll: u8,
    pub special_mask: u8,
    pub init_state: u8,
    pub auto_eoi: u8,
    pub rotate_on_auto_eoi: u8,
    pub special_fully_nested_mode: u8,
    pub init4: u8,
    pub elcr: u8,
    pub elcr_mask: u8,
}

/// The I/O APIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoApic {
    /// Guest physical address of its registers.
    pub base_address: u64,
    /// Register selected.
    pub ioregsel: u32,
    /// APIC id.
    pub id: u32,
    /// Levels of its inputs that are asserted.
    pub irr: u32,
    /// Redirection table, 24 entries of 64 bits.
    pub redirection: [u64; 24],
}
