//! Saving a machine's state, and bringing it back: the order in which KVM and devices are asked.

use std::fmt::Display;
use std::time::Duration;

use kvm_bindings::KVM_CLOCK_TSC_STABLE;

use super::Machine;
use super::assembly::{Assembly, lock};
use crate::arch::{clock, vcpu_state, vm_state};
use crate::device::SharedDevice;
use crate::error::{Error, Result};
use crate::memory::ranges_of;
use crate::state::{DeviceState, VmSection, VmState};

impl Machine {
    /// Devices first, for completing a request may raise an interrupt; the chips that take it last.
    pub(super) fn read_state(&self) -> Result<VmState> {
        let devices = self.devices.iter().map(save_device).collect::<Result<Vec<_>>>()?;
        let capabilities = &self.around.capabilities;
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        for vcpu in &self.vcpus {
            let vcpu = lock(vcpu);
            vcpus.push(vcpu_state::save(
                vcpu.id,
                &vcpu.fd,
                capabilities,
                &self.msr_indices,
            )?);
        }
        let (clock, tsc) = clock::read(&self.vm, &lock(&self.vcpus[0]).fd, self.tsc_khz)?;
        if let Some(tsc) = tsc {
            let stable = clock.flags & KVM_CLOCK_TSC_STABLE != 0;
            vcpu_state::align_tsc(&mut vcpus, tsc, stable);
        }
        let chips = vm_state::save(&self.vm, clock)?;
        let memory = ranges_of(self.memory());
        let vm = VmSection::new(memory, vcpus.len(), self.device_names.clone(), chips);
        let first = &vcpus[0];
        let platform = capabilities.describe(&first.cpuid, &self.msr_indices, first.tsc_khz);
        Ok(VmState {
            vm,
            vcpus,
            devices,
            platform,
        })
    }
}

fn save_device(device: &SharedDevice) -> Result<DeviceState> {
    let device = lock(device);
    let name = device.name().to_owned();
    match device.save() {
        Ok(state) => Ok(DeviceState {
            name,
            version: device.version(),
            state,
        }),
        Err(source) => Err(Error::Device { name, source }),
    }
}

/// All registers of all vCPUs, then the time stamp counters and their offsets, then the timer deadlines; the
/// chips; and the clock, which follows the counters.
pub(super) fn restore_processors(assembly: &Assembly, state: &VmState, advance_clock: bool) -> Result<()> {
    let vcpus: Vec<_> = assembly.vcpus.iter().map(|vcpu| lock(vcpu)).collect();
    let chips = state.vm.chips();
    let advance = if advance_clock {
        clock::since(&chips.clock)
    } else {
        Duration::ZERO
    };
    let mut saved = state.vcpus.clone();
    clock::advance_tsc(&mut saved, advance);
    let pairs = || vcpus.iter().map(|vcpu| &vcpu.fd).zip(&saved);
    pairs().try_for_each(|(fd, saved)| vcpu_state::restore(fd, &assembly.around.capabilities, saved))?;
    let started = clock::write_tsc(pairs())?;
    vcpu_state::settle_tsc_offsets(pairs())?;
    pairs().try_for_each(|(fd, saved)| vcpu_state::restore_deadline(fd, saved))?;
    vm_state::restore(&assembly.vm, &chips)?;
    clock::write(&assembly.vm, &chips.clock, advance, started)
}

/// The states of all devices, whose machine has its processors and chips: a device may raise an interrupt.
pub(super) fn restore_devices(assembly: &Assembly, saved: &[DeviceState]) -> Result<()> {
    for (device, saved) in assembly.devices.topology.iter().zip(saved) {
        lock(device)
            .restore(saved.version, &saved.state)
            .map_err(|source| Error::Device {
                name: saved.name.clone(),
                source,
            })?;
    }
    Ok(())
}

/// Refuses a state of a machine of another shape.
pub(super) fn check_topology(assembly: &Assembly, state: &VmState) -> Result<()> {
    let compare = |part, saved: String, here: String| {
        if saved == here {
            Ok(())
        } else {
            Err(Error::Topology { part, saved, here })
        }
    };
    compare(
        "memory map",
        list(&state.vm.memory),
        list(&ranges_of(&assembly.around.memory)),
    )?;
    compare(
        "vcpus",
        state.vcpus.len().to_string(),
        assembly.vcpus.len().to_string(),
    )?;
    let saved_names: Vec<_> = state.devices.iter().map(|device| &device.name).collect();
    compare("devices", list(&saved_names), list(&assembly.devices.names()))
}

/// The items in one line.
pub(super) fn list<T: Display>(items: &[T]) -> String {
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
