//! A `snapvm` process in the foreground, its guest's console at hand.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use linux_guest::status::{Entropy, Line, Status};
use serde_json::Value;

use crate::report::Report;

/// How long anything may take on a machine that emulates every instruction.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Characters of the console that are kept.
const CONSOLE_BYTES: usize = 1 << 20;

/// A line of the guest and when it came.
#[derive(Debug, Clone)]
pub struct Said {
    /// What the guest said of itself.
    pub status: Status,
    /// When it was heard, in milliseconds since 1970.
    pub heard_ms: u64,
}

/// A running machine; killed when dropped.
#[derive(Debug)]
pub struct Machine {
    name: String,
    programs: PathBuf,
    child: Child,
    input: ChildStdin,
    lines: Receiver<(u64, Line)>,
    console: Arc<Mutex<String>>,
    errors: PathBuf,
    socket: PathBuf,
    /// What was said when the kernel noticed to be in a copy.
    pub forks: VecDeque<Entropy>,
    /// What was said last.
    pub last: Option<Said>,
    /// When the process was started.
    pub started: Instant,
}

impl Machine {
    /// Starts `snapvm` with arguments of a `run` or a `restore`; its files lie in `work`, beginning with `name`.
    pub fn start(programs: &Path, work: &Path, name: &str, arguments: &[String]) -> Result<Self> {
        let socket = work.join(format!("{name}.sock"));
        let errors = work.join(format!("{name}.err"));
        let started = Instant::now();
        let mut child = Command::new(programs.join("snapvm"))
            .args(arguments)
            .args(["--serial", "stdio", "--api-sock"])
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors).context("cannot make a log")?)
            .spawn()
            .context("cannot run snapvm")?;
        let output = child.stdout.take().context("its output was piped")?;
        let console = Arc::new(Mutex::new(String::new()));
        let (told, lines) = channel();
        let kept = Arc::clone(&console);
        thread::spawn(move || read_console(output, &kept, &told));
        Ok(Self {
            name: name.to_owned(),
            programs: programs.to_owned(),
            input: child.stdin.take().context("its input was piped")?,
            child,
            lines,
            console,
            errors,
            socket,
            forks: VecDeque::new(),
            last: None,
            started,
        })
    }

    /// Waits for a status that will do.
    pub fn wait_for(&mut self, what: &str, mut will_do: impl FnMut(&Status) -> bool) -> Result<Said> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.next(end.saturating_duration_since(Instant::now()))? {
                None => bail!("{}: waited too long for {what}", self.name),
                Some(said) if will_do(&said.status) => return Ok(said),
                Some(_other) => {}
            }
        }
    }

    /// Waits for a status that the guest says after now.
    pub fn wait_for_news(&mut self) -> Result<Said> {
        while self.next(Duration::ZERO)?.is_some() {}
        self.wait_for("a sign of life", |_status| true)
    }

    /// Waits until the kernel has noticed to be in a copy.
    pub fn wait_for_fork(&mut self) -> Result<Entropy> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(entropy) = self.forks.pop_front() {
                return Ok(entropy);
            }
            ensure!(
                Instant::now() < end,
                "{}: the kernel did not notice to be in a copy",
                self.name
            );
            self.next(Duration::from_secs(1))?;
        }
    }

    /// Returns the next status, if one comes in time. A guest that found anything wrong is an error.
    fn next(&mut self, patience: Duration) -> Result<Option<Said>> {
        let end = Instant::now() + patience;
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok((heard_ms, Line::Status(status))) => {
                    ensure!(
                        status.errors == 0,
                        "{}: the guest found {} things wrong: {}",
                        self.name,
                        status.errors,
                        status.messages.join("; ")
                    );
                    let said = Said {
                        status: *status,
                        heard_ms,
                    };
                    self.last = Some(said.clone());
                    return Ok(Some(said));
                }
                Ok((_, Line::Forked(entropy))) => self.forks.push_back(entropy),
                Ok((_, Line::Failed { error })) => bail!("{}: the guest gave up: {error}", self.name),
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!("{}: snapvm has ended: {status}: {}", self.name, self.errors_end());
                }
            }
        }
    }

    /// Runs a command of `snapvm` against this machine and returns its JSON.
    pub fn control(&self, command: &str, arguments: &[&str]) -> Result<Value> {
        let output = self
            .command(command, arguments)
            .output()
            .context("cannot run snapvm")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "snapvm {command}: {}: {}",
            output.status,
            said.trim()
        );
        serde_json::from_slice(&output.stdout).with_context(|| format!("answer of snapvm {command}"))
    }

    /// Begins a command of `snapvm` against this machine; nobody hears what it says.
    pub fn begin(&self, command: &str, arguments: &[&str]) -> Result<Child> {
        self.command(command, arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run snapvm")
    }

    fn command(&self, command: &str, arguments: &[&str]) -> Command {
        let mut built = Command::new(self.programs.join("snapvm"));
        built
            .args(command.split(' '))
            .args(["--json", "--api-sock"])
            .arg(&self.socket)
            .args(arguments);
        built
    }

    /// Kills the machine, whatever it is doing, and returns what its guest said last.
    pub fn kill(mut self) -> Result<Option<Said>> {
        self.child.kill().context("cannot kill snapvm")?;
        self.child.wait()?;
        // What was on its way is heard until the channel is found closed; that snapvm has ended is no news.
        while let Ok(Some(_said)) = self.next(PATIENCE) {}
        Ok(self.last.take())
    }

    /// Tells the guest to power off; `snapvm` must end well.
    pub fn power_off(mut self) -> Result<()> {
        self.input
            .write_all(b"poweroff\n")
            .context("writing to the guest's console")?;
        self.input.flush()?;
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "snapvm ended: {status}: {}", self.errors_end());
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "{}: the guest does not power off",
                self.name
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the control socket answers.
    pub fn wait_for_socket(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.control("status", &[]).is_err() {
            let ended = self.child.try_wait()?;
            ensure!(
                ended.is_none(),
                "snapvm ended at once: {ended:?}: {}",
                self.errors_end()
            );
            ensure!(Instant::now() < end, "{}: no control socket", self.name);
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Sends this machine's logs along with the report.
    pub fn send_logs(&self, report: &mut Report) -> Result<()> {
        let console = self
            .console
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        report.log(&format!("{}.console.log", self.name), &console)?;
        report.log(&format!("{}.snapvm.log", self.name), &self.errors_end())
    }

    fn errors_end(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.errors).unwrap_or_default()).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _already_reaped = self.child.wait();
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Keeps what a console says, and passes the guest's own lines on.
fn read_console(output: impl std::io::Read, kept: &Mutex<String>, told: &Sender<(u64, Line)>) {
    let mut output = BufReader::new(output);
    let mut bytes = Vec::new();
    while matches!(output.read_until(b'\n', &mut bytes), Ok(1..)) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some(line) = Line::parse(&text) {
            // A machine that nobody waits for is being dropped.
            let _ = told.send((now_ms(), line));
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < CONSOLE_BYTES {
            kept.push_str(&text);
        }
        bytes.clear();
    }
}
