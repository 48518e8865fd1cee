//! The two guests of the demonstration: a KVM machine, and memory of this process.

use std::path::Path;

use snapshot::{
    CheckReport, PlainMemory, RestoreOptions, SaveControl, SaveOptions, SaveReport, Subject, restore, save,
};
use vmm::builtin::BuiltinOptions;
use vmm::{Kernel, Machine, MachineConfig, create_guest_memory};

use crate::guest_meter::GuestMeter;

/// Something that writes memory in an order that can be recomputed, and that can be saved.
pub trait Guest: Sync + Sized {
    /// What it is, for people.
    const WHAT: &'static str;

    /// Brings one back from a file, running.
    fn restore(path: &Path) -> anyhow::Result<Self>;

    /// Recomputes every page of a file.
    fn check(path: &Path) -> anyhow::Result<CheckReport>;

    /// Takes a snapshot.
    fn save(
        &self,
        path: &Path,
        options: &SaveOptions,
        control: &SaveControl,
    ) -> Result<SaveReport, snapshot::Error>;

    /// Pages written so far.
    fn steps(&self) -> u64;

    /// Begins to measure the longest gap anew.
    fn begin_gap(&self);

    /// Longest time without progress since then.
    fn longest_gap_us(&self) -> u64;

    /// Whether it found memory other than it had written it.
    fn found_damage(&self) -> bool;
}

/// The built-in guest on a KVM machine.
#[derive(Debug)]
pub struct MachineGuest {
    machine: Machine,
    meter: GuestMeter,
}

impl MachineGuest {
    /// Boots it.
    pub fn start(memory_bytes: u64, cpus: u32) -> anyhow::Result<Self> {
        let config = MachineConfig {
            memory_bytes,
            cpus,
            transparent_huge_pages: true,
            kernel: Some(Kernel::Builtin(BuiltinOptions::default())),
            ..MachineConfig::default()
        };
        let machine = Machine::boot(&config, create_guest_memory(&config)?)?;
        machine.resume()?;
        Ok(Self {
            machine,
            meter: GuestMeter::default(),
        })
    }
}

impl Guest for MachineGuest {
    const WHAT: &'static str = "a KVM guest";

    fn restore(path: &Path) -> anyhow::Result<Self> {
        let (machine, _) = restore(path, &RestoreOptions::default())?;
        Ok(Self {
            machine,
            meter: GuestMeter::default(),
        })
    }

    fn check(path: &Path) -> anyhow::Result<CheckReport> {
        Ok(snapshot::check(path, 0)?)
    }

    fn save(
        &self,
        path: &Path,
        options: &SaveOptions,
        control: &SaveControl,
    ) -> Result<SaveReport, snapshot::Error> {
        save(&self.machine, path, options, control)
    }

    fn steps(&self) -> u64 {
        self.meter.read(&self.machine).map_or(0, |guest| guest.steps)
    }

    fn begin_gap(&self) {
        // The figures before are of no interest here.
        let _ = self.meter.reset(&self.machine);
    }

    fn longest_gap_us(&self) -> u64 {
        self.meter
            .read(&self.machine)
            .map_or(0, |guest| guest.longest_gap_us)
    }

    fn found_damage(&self) -> bool {
        self.meter
            .read(&self.machine)
            .is_none_or(|guest| guest.bad_stamps > 0)
    }
}

/// Memory of this process, with a writer thread for each processor.
#[derive(Debug)]
pub struct PlainGuest(PlainMemory);

impl PlainGuest {
    /// Maps the memory and lets the writers run.
    pub fn start(memory_bytes: u64, cpus: u32) -> anyhow::Result<Self> {
        let memory = PlainMemory::new(memory_bytes, usize::try_from(cpus)?)?;
        memory.resume()?;
        Ok(Self(memory))
    }
}

impl Guest for PlainGuest {
    const WHAT: &'static str = "memory of this process";

    fn restore(path: &Path) -> anyhow::Result<Self> {
        let memory = PlainMemory::restore(path)?;
        memory.resume()?;
        Ok(Self(memory))
    }

    fn check(path: &Path) -> anyhow::Result<CheckReport> {
        Ok(PlainMemory::check(path)?)
    }

    fn save(
        &self,
        path: &Path,
        options: &SaveOptions,
        control: &SaveControl,
    ) -> Result<SaveReport, snapshot::Error> {
        save(&self.0, path, options, control)
    }

    fn steps(&self) -> u64 {
        self.0.steps()
    }

    fn begin_gap(&self) {
        // The figure before is of no interest here.
        let _ = self.0.take_longest_gap_us();
    }

    fn longest_gap_us(&self) -> u64 {
        self.0.take_longest_gap_us()
    }

    fn found_damage(&self) -> bool {
        false
    }
}
