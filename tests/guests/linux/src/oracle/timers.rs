//! Timers on every processor: none may expire early, and time never goes back, on whichever processor it is read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use super::Start;
use super::health::Health;

const NAP: Duration = Duration::from_millis(100);
const PERIOD: Duration = Duration::from_millis(100);

/// Starts a sleeper on each processor and one periodic timer.
pub fn start(start: Start<'_>) {
    let latest = Arc::new(AtomicU64::new(0));
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    for cpu in 0..cpus {
        let latest = Arc::clone(&latest);
        start(
            "timers",
            Box::new(move |health| sleep_for_ever(cpu, &latest, health)),
        );
    }
    start("timerfd", Box::new(periodic));
}

/// CLOCK_MONOTONIC in nanoseconds.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Sleeps again and again on one processor; `latest` is the latest time that any processor has seen.
fn sleep_for_ever(cpu: usize, latest: &AtomicU64, health: &Health) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).with_context(|| format!("moving to processor {cpu}"))?;
    let nap = u64::try_from(NAP.as_nanos())?;
    loop {
        let seen = latest.load(Ordering::SeqCst);
        let before = now();
        if before < seen {
            health.error(format!(
                "time went back by {} ns on processor {cpu}",
                seen - before
            ));
        }
        latest.fetch_max(before, Ordering::SeqCst);
        thread::sleep(NAP);
        let slept = now().saturating_sub(before);
        if slept < nap {
            health.error(format!("a sleep of {nap} ns on processor {cpu} took {slept} ns"));
        }
        health
            .timer_late_us
            .fetch_max(slept.saturating_sub(nap) / 1000, Ordering::Relaxed);
        health.timer_ticks.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counts the expirations of a periodic timer against the clock: not one early, not one lost.
fn periodic(health: &Health) -> Result<()> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty())?;
    let period = Timespec {
        tv_sec: 0,
        tv_nsec: i64::try_from(PERIOD.as_nanos())?,
    };
    let nanos = u64::try_from(PERIOD.as_nanos())?;
    let before = now();
    let each = Itimerspec {
        it_interval: period,
        it_value: period,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &each)?;
    let after = now();
    let mut expired = 0;
    loop {
        let mut count = [0; 8];
        let early = (now() - before) / nanos;
        rustix::io::read(&timer, &mut count)?;
        expired += u64::from_le_bytes(count);
        let (most, least) = ((now() - before) / nanos, early.min((now() - after) / nanos));
        if expired > most || expired + 1 < least {
            health.error(format!("a timer expired {expired} times, not {least} to {most}"));
        }
        health.timer_ticks.fetch_add(1, Ordering::Relaxed);
    }
}
