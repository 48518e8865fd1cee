//! A second process: numbers go to it through one pipe and come back scrambled through another.

use std::io::{Read, Write, stdin, stdout};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use linux_guest::content::mix;

use super::health::Health;

/// First argument of the second process.
pub const PEER: &str = "pipe-peer";

const BREATH: Duration = Duration::from_millis(100);

/// Exchanges numbers with a second process without end.
pub fn exchange(health: &Health) -> Result<()> {
    let mut peer = Command::new("/proc/self/exe")
        .arg(PEER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a second process")?;
    let mut to = peer.stdin.take().context("its input")?;
    let mut from = peer.stdout.take().context("its output")?;
    for number in 0_u64.. {
        to.write_all(&number.to_le_bytes()).context("writing to it")?;
        let mut answer = [0; 8];
        from.read_exact(&mut answer).context("reading from it")?;
        ensure!(
            u64::from_le_bytes(answer) == mix(number),
            "it answered {number} wrongly"
        );
        health.exchanges.store(number + 1, Relaxed);
        thread::sleep(BREATH);
    }
    Ok(())
}

/// The second process: answers numbers, which must come in order.
pub fn run_peer() -> ExitCode {
    let mut number = [0; 8];
    for expected in 0_u64.. {
        let asked = stdin().read_exact(&mut number).is_ok() && u64::from_le_bytes(number) == expected;
        let mut out = stdout();
        let answer = mix(expected).to_le_bytes();
        if !asked || out.write_all(&answer).and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    ExitCode::FAILURE
}
