//! What the clocks of a restored guest must show.

use anyhow::{Result, ensure};

use crate::machine::Said;

/// How far a clock may be off: lines are heard late on a machine that emulates every instruction.
const TOLERANCE_MS: i64 = 5000;

/// Which time a restored guest was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// It goes on where the snapshot left it.
    Continue,
    /// It is the present.
    Advance,
}

/// When something happened, in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub struct Moments {
    /// The snapshot's command was given.
    pub snapshot_ms: u64,
    /// The restore's command was given.
    pub restore_ms: u64,
}

/// Checks what a restored guest said first against what the source said last before the snapshot.
pub fn check(policy: Policy, moments: Moments, before: &Said, restored: &Said) -> Result<()> {
    let (old, new) = (&before.status, &restored.status);
    for (clock, then, now) in [
        ("CLOCK_MONOTONIC", old.monotonic_ms, new.monotonic_ms),
        ("CLOCK_BOOTTIME", old.boottime_ms, new.boottime_ms),
        ("CLOCK_REALTIME", old.realtime_ms, new.realtime_ms),
    ] {
        ensure!(now >= then, "{clock} went back from {then} to {now}");
    }
    let behind = signed(restored.heard_ms) - signed(new.realtime_ms);
    let slept = signed(moments.restore_ms) - signed(moments.snapshot_ms);
    let usual = signed(before.heard_ms) - signed(old.realtime_ms);
    let expected = match policy {
        Policy::Advance => usual,
        Policy::Continue => usual + slept,
    };
    ensure!(
        (behind - expected).abs() <= TOLERANCE_MS,
        "the restored guest's time is {behind} ms behind, not {expected}"
    );
    Ok(())
}

fn signed(millis: u64) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}
