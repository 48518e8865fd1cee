//! QEMU with an outer kernel: started, waited for with a hard limit, and ended whatever happens.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Name of the program.
pub const QEMU: &str = "qemu-system-x86_64";

/// What the outer kernel is told. A panic ends QEMU; the time stamp counter, which is the real one, is to be trusted,
/// as it is on hardware: KVM bases the clock of its guests on it only then.
///
/// The timer ticks periodically. Emulating VMRUN and #VMEXIT, QEMU changes the word of pending interrupts without the
/// lock under which a device raises one, and an interrupt may be forgotten until the next one is raised (seen with QEMU
/// 10.0.2: a timer interrupt pending in the local APIC, the processor halted with interrupts on). A timer that is set
/// for one shot at a time would then never be set again, and the machine would stand still for ever.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet tsc=reliable clocksource=tsc nohz=off highres=off \
                       vmsnap.run=/suite/linux_suite";

/// The outer machine. It has one processor: with two that execute guests at once, QEMU's nested paging loses track
/// now and then, and a guest or the outer kernel dies of faults that cannot be (seen with QEMU 10.0.2).
const MACHINE: &str =
    "-accel tcg -cpu max,+svm,+npt,la57=off -smp 1 -m 4G -display none -monitor none -no-reboot -nodefaults";

/// Where the machine's two serial ports and QEMU's own words go.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// The console.
    pub console: &'a Path,
    /// The entries of the suite.
    pub report: &'a Path,
    /// What QEMU says.
    pub qemu: &'a Path,
}

/// Whether QEMU can be run.
pub fn is_here() -> bool {
    let asked = Command::new(QEMU)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

/// Boots an outer kernel and waits until it has powered off; `false` when it took too long.
pub fn run(image: &Path, initrd: &Path, outputs: &Outputs<'_>, limit: Duration) -> Result<bool> {
    let said = File::create(outputs.qemu).context("cannot make a log file")?;
    let child = Command::new(QEMU)
        .args(MACHINE.split(' '))
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", CMDLINE])
        .arg("-serial")
        .arg(format!("file:{}", outputs.console.display()))
        .arg("-serial")
        .arg(format!("file:{}", outputs.report.display()))
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said)
        .spawn()
        .with_context(|| format!("cannot run {QEMU}"))?;
    Running(child).wait(limit)
}

/// A child process that does not outlive its owner.
pub struct Running(pub Child);

impl Running {
    /// Waits for the child; `false` when it took longer than `limit`.
    pub fn wait(mut self, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if self.0.try_wait()?.is_some() {
                return Ok(true);
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(false)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _already_reaped = self.0.wait();
    }
}
