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
    let usual = signed(before.heard_ms) - signed(old.realtime_ms);
    let slept = match policy {
        Policy::Advance => 0..=0,
        // It began to run at some time between the command and its first line.
        Policy::Continue => {
            let least = signed(moments.restore_ms) - signed(moments.snapshot_ms);
            least..=least + signed(restored.heard_ms) - signed(moments.restore_ms)
        }
    };
    let least = usual + slept.start() - TOLERANCE_MS;
    let most = usual + slept.end() + TOLERANCE_MS;
    ensure!(
        (least..=most).contains(&behind),
        "the restored guest's time is {behind} ms behind, not {least} to {most}"
    );
    Ok(())
}

fn signed(millis: u64) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}
