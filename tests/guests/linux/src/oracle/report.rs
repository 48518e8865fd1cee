//! The line that tells every other second how all is, and the one thing that the guest listens to.

use std::io::{BufRead, Write, stdin, stdout};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use linux_guest::status::{Line, Status};
use rustix::time::{ClockId, clock_gettime};

use super::entropy;
use super::health::Health;

/// Each byte of a line costs the machine several exits.
const PERIOD: Duration = Duration::from_secs(2);

/// Says a line on the console, in one piece.
pub fn say(line: &Line) {
    let text = serde_json::to_string(line).expect("a status is JSON");
    // A console that is gone cannot be told so.
    let _ = stdout().lock().write_all(format!("\n{text}\n").as_bytes());
}

/// Reports until the console says `poweroff`.
pub fn until_told(health: &Health) -> Result<()> {
    let user_space_ms = millis(ClockId::Monotonic)?;
    let (told, hear) = channel();
    thread::spawn(move || {
        let lines = stdin().lock().lines().map_while(Result::ok);
        for _order in lines.filter(|line| line.trim() == "poweroff") {
            // Nobody hears any more when the machine is being switched off.
            let _ = told.send(());
        }
        loop {
            // The other end must not take the end of input for an order.
            thread::park();
        }
    });
    for sequence in 0.. {
        say(&Line::Status(Box::new(Status {
            sequence,
            cpus: thread::available_parallelism().map_or(1, usize::from),
            realtime_ms: millis(ClockId::Realtime)?,
            monotonic_ms: millis(ClockId::Monotonic)?,
            boottime_ms: millis(ClockId::Boottime)?,
            user_space_ms,
            entropy: entropy::read(),
            ..health.status()
        })));
        match hear.recv_timeout(PERIOD) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(())
}

fn millis(clock: ClockId) -> Result<u64> {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).context("a clock before 1970")?;
    Ok(seconds * 1000 + u64::try_from(time.tv_nsec)? / 1_000_000)
}
