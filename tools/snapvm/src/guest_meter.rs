//! Reads what the built-in guest says about itself, in time instead of processor ticks.
//!
//! Whether the guest is the built-in one can only be told once its parameters stand in memory: at once when they
//! were loaded with it, a moment after the start when it came from an ELF file, never for another guest. So the
//! question is asked anew until the answer is yes.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use vmm::Machine;
use vmm::builtin::{self, BuiltinError, Mailbox};

use crate::api::{GuestCpu, GuestStatus};

/// How long a reset waits for a guest that makes no progress.
const RESET_PATIENCE: Duration = Duration::from_millis(200);
/// How often it looks.
const RESET_POLL: Duration = Duration::from_micros(200);

/// Reads the built-in guest's figures.
#[derive(Debug, Default)]
pub struct GuestMeter {
    /// Number of vCPUs of the built-in guest, once it is known to be that one.
    cpus: OnceLock<u32>,
}

impl GuestMeter {
    /// Reads the figures of this moment; nothing if the guest is another one.
    #[must_use]
    pub fn read(&self, machine: &Machine) -> Option<GuestStatus> {
        let cpus = self.cpus(machine)?;
        let cpus = (0..cpus)
            .map(|cpu| read_cpu(machine, cpu))
            .collect::<Result<Vec<_>, _>>()
            .ok()?;
        Some(GuestStatus {
            steps: cpus.iter().map(|cpu| cpu.steps).sum(),
            longest_gap_us: cpus.iter().map(|cpu| cpu.longest_gap_us).max().unwrap_or(0),
            bad_stamps: cpus.iter().map(|cpu| cpu.bad_stamps).sum(),
            cpus,
        })
    }

    /// Lets every vCPU measure its longest gap anew; returns the figures before.
    ///
    /// Returns when the vCPUs have begun, so that whatever the caller does next is measured; a guest that makes no
    /// progress begins when it goes on.
    #[must_use]
    pub fn reset(&self, machine: &Machine) -> Option<GuestStatus> {
        let before = self.read(machine)?;
        for cpu in 0..self.cpus(machine)? {
            Mailbox::reset_gap(machine.memory(), cpu).ok()?;
        }
        let deadline = Instant::now() + RESET_PATIENCE;
        for cpu in 0..self.cpus(machine)? {
            // The first update seen may have looked for the request before it was there.
            for _ in 0..2 {
                wait_for_update(machine, cpu, deadline).ok()?;
            }
        }
        Some(before)
    }

    fn cpus(&self, machine: &Machine) -> Option<u32> {
        if let Some(cpus) = self.cpus.get() {
            return Some(*cpus);
        }
        let cpus = builtin::detect(machine.memory())?;
        Some(*self.cpus.get_or_init(|| cpus))
    }
}

/// Waits until a vCPU has written its mailbox once more.
fn wait_for_update(machine: &Machine, cpu: u32, deadline: Instant) -> Result<(), BuiltinError> {
    let seen = Mailbox::read(machine.memory(), cpu)?.tsc;
    while Mailbox::read(machine.memory(), cpu)?.tsc == seen && Instant::now() < deadline {
        thread::sleep(RESET_POLL);
    }
    Ok(())
}

fn read_cpu(machine: &Machine, cpu: u32) -> Result<GuestCpu, BuiltinError> {
    let mailbox = Mailbox::read(machine.memory(), cpu)?;
    Ok(GuestCpu {
        steps: mailbox.step,
        longest_gap_us: ticks_to_us(mailbox.longest_gap, machine.tsc_khz()),
        bad_stamps: mailbox.bad_stamps,
    })
}

/// Ticks of a clock of so many kHz, in microseconds; 0 if the frequency is unknown.
fn ticks_to_us(ticks: u64, khz: u32) -> u64 {
    let us = (u128::from(ticks) * 1000)
        .checked_div(u128::from(khz))
        .unwrap_or(0);
    u64::try_from(us).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_time() {
        assert_eq!(ticks_to_us(2_500_000, 2_500_000), 1000);
        assert_eq!(ticks_to_us(u64::MAX, 1), u64::MAX);
        assert_eq!(ticks_to_us(5, 0), 0);
    }
}
