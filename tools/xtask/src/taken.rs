//! One snapshot taken by the real command while its guest is watched: what it cost, and what the guest felt.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::machine::{Machine, Workshop, number};
use crate::{interrupt, shell};

/// What a snapshot cost. Times of the snapshot are its own report's; the guest's are the guest's own.
#[derive(Debug, Clone)]
pub struct Taken {
    /// How long the guest was held.
    pub pause: Duration,
    /// From the command to the instant that the snapshot shows.
    pub to_capture_point: Duration,
    /// From the command until the file was complete and durable.
    pub total: Duration,
    /// Longest time in which the guest did nothing, from before the command until after its end.
    pub longest_gap: Duration,
    /// Pages per second that the guest wrote between command and completion.
    pub rate_during: f64,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// The command's whole report.
    pub report: Value,
}

/// Types a `snapvm snapshot`, asks `watch` to look every `interval`, and returns what was measured.
pub fn take(
    workshop: &Workshop,
    machine: &Machine,
    typed: &str,
    interval: Duration,
    mut watch: impl FnMut(&Machine) -> Result<()>,
) -> Result<Taken> {
    let mut command = workshop.command(typed);
    eprintln!("$ {}", shell::line(&command));
    // The error output is kept for a failure: on a terminal the command would draw its own progress over ours.
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    machine.reset_longest_gap()?;
    let before = machine.look()?;
    let mut process = shell::spawn(&mut command)?;
    let mut looked = Instant::now();
    let status = loop {
        if let Some(status) = process.try_wait()? {
            break status;
        }
        let due = looked.elapsed() >= interval;
        let went_on = interrupt::sleep(Duration::from_millis(2))
            .and_then(|()| if due { watch(machine) } else { Ok(()) });
        if let Err(error) = went_on {
            // It may have ended by itself meanwhile: then there is nothing to kill.
            let _ = process.kill();
            process.wait()?;
            return Err(error);
        }
        if due {
            looked = Instant::now();
        }
    };
    let rate_during = before.rate_to(machine.look()?);
    let output = process.wait_with_output()?;
    shell::judge(&command, status)
        .with_context(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())?;
    let report = machine.get("/v1/status")?["snapshot"]["report"].take();
    let time = |path| number(&report, path).map(Duration::from_micros);
    Ok(Taken {
        pause: time("statistics.downtime_us")?,
        to_capture_point: time("statistics.command_to_capture_point_us")?,
        total: time("total_us")?,
        longest_gap: machine.longest_gap()?,
        rate_during,
        memory_bytes: number(&report, "statistics.capture.memory_bytes")?,
        file_bytes: number(&report, "file_bytes")?,
        report,
    })
}

/// A time in milliseconds, to three digits that count.
pub fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1e3;
    match millis {
        ..10.0 => format!("{millis:.2} ms"),
        10.0..100.0 => format!("{millis:.1} ms"),
        _ => format!("{millis:.0} ms"),
    }
}

/// A size in MiB.
pub fn mebibytes(bytes: f64) -> String {
    format!("{:.0} MiB", bytes / f64::from(1 << 20))
}

/// Pages per second, in thousands where there are thousands.
pub fn pages_per_second(rate: f64) -> String {
    if rate < 1000.0 {
        format!("{rate:.0}/s")
    } else {
        format!("{:.1} k/s", rate / 1e3)
    }
}

/// Bytes per second, as GB/s of guest memory.
pub fn throughput(bytes: u64, time: Duration) -> String {
    format!("{:.2} GB/s", bytes as f64 / time.as_secs_f64() / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_show_three_digits() {
        for (micros, text) in [(1_234, "1.23 ms"), (12_340, "12.3 ms"), (1_234_000, "1234 ms")] {
            assert_eq!(millis(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn throughput_counts_decimal_gigabytes() {
        assert_eq!(throughput(3_000_000_000, Duration::from_secs(2)), "1.50 GB/s");
    }
}
