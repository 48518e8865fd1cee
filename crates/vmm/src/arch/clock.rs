//! The guest's time: the paravirtual clock and the time stamp counters, which must agree.
//!
//! Linux compares its clocks, and declares one unstable that drifts from another by half a millisecond. So
//! both are saved as of one instant, and set again as of one: what passes between the setting of the one
//! and of the other is measured and added. Where time is to be made up for, both are advanced, for a guest
//! may keep its time by either.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvm_bindings::{KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::arch::msr::{self, IA32_TSC};
use crate::arch::raw;
use crate::error::{Error, Result};
use crate::state::{Clock, VcpuState};

/// How closely the clocks are to agree, and how often that is tried: a tenth of what Linux tolerates.
const PRECISION: Duration = Duration::from_micros(50);
const ATTEMPTS: usize = 10;

/// Reads the paravirtual clock, and the first vCPU's time stamp counter at the same instant.
pub(crate) fn read(vm: &VmFd, vcpu: &VcpuFd, tsc_khz: u32) -> Result<(Clock, Option<u64>)> {
    let pair = read_pair(vm, vcpu, tsc_khz)?;
    let mut clock = Clock {
        clock_ns: pair.clock.clock,
        flags: pair.clock.flags,
        realtime_ns: pair.clock.realtime,
        host_tsc: pair.clock.host_tsc,
    };
    if clock.flags & KVM_CLOCK_REALTIME == 0 {
        // KVM tells the real time only where its clock follows a stable time stamp counter.
        clock.realtime_ns = nanoseconds(now());
        clock.flags |= KVM_CLOCK_REALTIME;
    }
    Ok((clock, pair.tsc))
}

/// The clock and the counter, read together.
struct Pair {
    clock: kvm_clock_data,
    tsc: Option<u64>,
    /// How long reading them took: the one is of the middle of the other's reading.
    window: Duration,
}

/// Reads clock and counter until that was done without a break, or takes the best of some attempts.
fn read_pair(vm: &VmFd, vcpu: &VcpuFd, tsc_khz: u32) -> Result<Pair> {
    let mut best: Option<Pair> = None;
    for _ in 0..ATTEMPTS {
        let before = read_tsc(vcpu);
        let clock = vm.get_clock().map_err(|source| Error::Kvm {
            operation: "KVM_GET_CLOCK",
            source,
        })?;
        let cycles = before
            .zip(read_tsc(vcpu))
            .map(|(before, after)| after.saturating_sub(before));
        let pair = Pair {
            clock,
            tsc: before
                .zip(cycles)
                .map(|(before, cycles)| before.wrapping_add(cycles / 2)),
            window: duration(cycles.unwrap_or(0), tsc_khz),
        };
        let window = pair.window;
        if best.as_ref().is_none_or(|best| window < best.window) {
            best = Some(pair);
        }
        if window <= PRECISION {
            break;
        }
    }
    best.ok_or(Error::MissingCapability {
        capability: "KVM_CAP_ADJUST_CLOCK",
    })
}

/// Returns how far the guest's time is to be advanced if it is to make up for what passed since the save.
pub(crate) fn since(saved: &Clock) -> Duration {
    if saved.flags & KVM_CLOCK_REALTIME == 0 {
        return Duration::ZERO;
    }
    now().saturating_sub(Duration::from_nanos(saved.realtime_ns))
}

/// Advances saved time stamp counters.
pub(crate) fn advance_tsc(vcpus: &mut [VcpuState], by: Duration) {
    for vcpu in vcpus {
        let cycles = cycles(by, vcpu.tsc_khz);
        if let Some(tsc) = vcpu.msrs.get_mut(&IA32_TSC) {
            *tsc = tsc.wrapping_add(cycles);
        }
    }
}

/// Writes the time stamp counters; returns the host's time at which the first began to count from there.
///
/// KVM takes values that differ by less than a second from what it expects for attempts to make counters
/// equal, and then keeps the first's offset: in a machine just created, even that of zero at its creation.
/// Where it lets us, the first counter's offset is then corrected.
pub(crate) fn write_tsc<'a>(vcpus: impl Iterator<Item = (&'a VcpuFd, &'a VcpuState)>) -> Result<Instant> {
    let mut first = None;
    for (vcpu, state) in vcpus {
        let before = Instant::now();
        let Some(&tsc) = state.msrs.get(&IA32_TSC) else {
            continue;
        };
        msr::write(state.id, vcpu, &[(IA32_TSC, tsc)])?;
        if first.is_none() {
            let started = before + before.elapsed() / 2;
            correct_offset(vcpu, state, tsc, started);
            first = Some(started);
        }
    }
    Ok(first.unwrap_or_else(Instant::now))
}

/// Gives a counter that did not take its value, or at another time, the offset with which it has it.
fn correct_offset(vcpu: &VcpuFd, state: &VcpuState, tsc: u64, started: Instant) {
    for _ in 0..ATTEMPTS {
        let (Some(offset), Some(found)) = (raw::tsc_offset(vcpu), read_tsc(vcpu)) else {
            return;
        };
        let expected = tsc.wrapping_add(cycles(started.elapsed(), state.tsc_khz));
        if expected.abs_diff(found) <= cycles(PRECISION, state.tsc_khz) {
            return;
        }
        let wanted = offset.wrapping_add(expected.wrapping_sub(found));
        if let Err(error) = raw::set_tsc_offset(vcpu, wanted) {
            tracing::warn!(%error, vcpu = state.id, "the time stamp counter is not where it was");
            return;
        }
    }
}

/// Sets the paravirtual clock so that it showed the saved time, advanced, at the instant `started`.
pub(crate) fn write(vm: &VmFd, saved: &Clock, advance: Duration, started: Instant) -> Result<()> {
    let clock = kvm_clock_data {
        clock: saved
            .clock_ns
            .saturating_add(nanoseconds(advance + started.elapsed())),
        ..kvm_clock_data::default()
    };
    vm.set_clock(&clock).map_err(|source| Error::Kvm {
        operation: "KVM_SET_CLOCK",
        source,
    })
}

fn read_tsc(vcpu: &VcpuFd) -> Option<u64> {
    let values = msr::read(0, vcpu, &[IA32_TSC]).ok()?;
    values.get(&IA32_TSC).copied()
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Cycles of a counter in a time; none if its frequency is not known.
fn cycles(time: Duration, khz: u32) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(khz) / 1_000_000).unwrap_or(u64::MAX)
}

/// Time in which a counter counts so many cycles; none if its frequency is not known.
fn duration(cycles: u64, khz: u32) -> Duration {
    let nanoseconds = (u128::from(cycles) * 1_000_000).checked_div(khz.into());
    Duration::from_nanos(u64::try_from(nanoseconds.unwrap_or(0)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_and_time_are_each_others_inverse() {
        for (time, khz, count) in [
            (Duration::from_secs(1), 2_000_000, 2_000_000_000),
            (Duration::from_millis(3), 2_596_132, 7_788_396),
            (
                Duration::from_secs(86_400 * 365),
                5_000_000,
                157_680_000_000_000_000,
            ),
        ] {
            assert_eq!(cycles(time, khz), count);
            assert_eq!(duration(count, khz), time);
        }
    }

    #[test]
    fn an_unknown_frequency_advances_nothing() {
        assert_eq!(cycles(Duration::from_secs(1), 0), 0);
        assert_eq!(duration(1_000_000, 0), Duration::ZERO);
    }

    #[test]
    fn time_is_made_up_for_only_where_the_save_knew_the_real_time() {
        let hour = Duration::from_secs(3600);
        let mut saved = Clock {
            clock_ns: 0,
            flags: KVM_CLOCK_REALTIME,
            realtime_ns: nanoseconds(now() - hour),
            host_tsc: 0,
        };
        assert!(since(&saved) >= hour && since(&saved) < hour * 2);
        saved.realtime_ns = nanoseconds(now() + hour);
        assert_eq!(since(&saved), Duration::ZERO, "time never goes back");
        saved.flags = 0;
        saved.realtime_ns = 0;
        assert_eq!(since(&saved), Duration::ZERO);
    }
}
