//! The console device: lines written without end to a host that takes them.

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::health::Health;

/// Where the kernel puts the first console device.
const DEVICE: &str = "/dev/hvc0";

const BREATH: Duration = Duration::from_millis(500);

/// Writes lines to the console device, if there is one.
pub fn write(health: &Health) -> Result<()> {
    let Ok(mut device) = OpenOptions::new().write(true).open(DEVICE) else {
        return Ok(());
    };
    for line in 1_u64.. {
        writeln!(device, "line {line}").with_context(|| format!("writing line {line}"))?;
        health.console_lines.store(line, Relaxed);
        thread::sleep(BREATH);
    }
    Ok(())
}
