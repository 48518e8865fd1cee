//! Machines run by the real `snapvm`, driven as a user would: commands for deeds, the control socket for looking.
//!
//! A [`Workshop`] is the directory in which the commands are typed, so that their lines stay short; it is removed
//! at the end. A [`Machine`] is one `snapvm` in the foreground of a child process; dropping it ends the process.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::{interrupt, shell};

/// How long a machine may take to come up, or the guest to make its first steps.
const PATIENCE: Duration = Duration::from_secs(120);

/// A temporary directory in which the project's binaries are run.
#[derive(Debug)]
pub struct Workshop {
    directory: TempDir,
    binaries: PathBuf,
}

impl Workshop {
    /// Builds the binaries with optimisation and opens a directory, below `parent` if one is given.
    pub fn open(parent: Option<&Path>) -> Result<Self> {
        shell::run(shell::cargo().args([
            "build",
            "--release",
            "--locked",
            "-p",
            "snapvm",
            "-p",
            "snaptool",
        ]))?;
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("vmsnap-");
        let directory = match parent {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        };
        let directory = directory.context("cannot make a temporary directory")?;
        Ok(Self {
            directory,
            binaries: shell::target_dir().join("release"),
        })
    }

    /// The path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command typed in the directory, its words separated by spaces.
    pub fn command(&self, typed: &str) -> Command {
        let mut words = typed.split_whitespace();
        let program = words.next().unwrap_or_default();
        let ours = self.binaries.join(program);
        let mut command = Command::new(if ours.is_file() {
            ours
        } else {
            PathBuf::from(program)
        });
        command
            .args(words)
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }
}

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    process: Child,
    socket: PathBuf,
}

/// What the built-in guest had done at an instant.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    at: Instant,
    steps: u64,
}

impl Machine {
    /// Types a `snapvm run` or `snapvm restore` with the socket `NAME.sock` and waits until the socket answers.
    pub fn start(workshop: &Workshop, name: &str, typed: &str) -> Result<Self> {
        let mut command = workshop.command(typed);
        command.args([
            "--api-sock",
            &format!("{name}.sock"),
            "--serial",
            &format!("file:{name}.log"),
        ]);
        eprintln!("$ {} &", shell::line(&command));
        let process = shell::spawn(&mut command)?;
        let mut machine = Self {
            process,
            socket: workshop.path(&format!("{name}.sock")),
        };
        machine.wait_until("the machine to come up", |machine| {
            Ok(machine.get("/v1/status").is_ok().then_some(()))
        })?;
        Ok(machine)
    }

    /// Waits until the built-in guest has made steps, so that its memory is populated.
    pub fn wait_for_steps(&mut self) -> Result<()> {
        self.wait_until("the guest's first steps", |machine| {
            Ok((machine.look()?.steps > 0).then_some(()))
        })
    }

    /// What the guest has done so far.
    pub fn look(&self) -> Result<Look> {
        let guest = self.get("/v1/guest")?;
        Ok(Look {
            at: Instant::now(),
            steps: number(&guest, "steps")?,
        })
    }

    /// Lets the guest run for `time` and returns the pages per second that it wrote.
    pub fn rate_over(&self, time: Duration) -> Result<f64> {
        let from = self.look()?;
        interrupt::sleep(time)?;
        Ok(from.rate_to(self.look()?))
    }

    /// Begins to measure the guest's longest gap anew.
    pub fn reset_longest_gap(&self) -> Result<()> {
        self.request("PUT", "/v1/guest/longest-gap").map(|_guest| ())
    }

    /// The longest time since the last reset in which the guest did nothing.
    pub fn longest_gap(&self) -> Result<Duration> {
        Ok(Duration::from_micros(number(
            &self.get("/v1/guest")?,
            "longest_gap_us",
        )?))
    }

    /// Answer to a GET on the control socket.
    pub fn get(&self, route: &str) -> Result<Value> {
        self.request("GET", route)
    }

    /// Ends the machine in an orderly way.
    pub fn shut_down(mut self) -> Result<()> {
        self.request("PUT", "/v1/shutdown")?;
        shell::wait(&mut self.process).map(|_status| ())
    }

    fn wait_until<T>(&mut self, what: &str, mut probe: impl FnMut(&Self) -> Result<Option<T>>) -> Result<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = probe(self)? {
                return Ok(found);
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("snapvm ended while waiting for {what}: {status}");
            }
            if Instant::now() > end {
                bail!("waited too long for {what}");
            }
            interrupt::sleep(Duration::from_millis(10))?;
        }
    }

    /// One HTTP request on the control socket; looking is too frequent for a process each time.
    fn request(&self, method: &str, route: &str) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.socket).context("the control socket")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "{method} {route} HTTP/1.1\r\nHost: vm\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .with_context(|| format!("{method} {route}"))?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("half an answer on the control socket")?;
        if head.split(' ').nth(1) != Some("200") {
            return Err(anyhow!("{method} {route}: {body}"));
        }
        serde_json::from_str(body).with_context(|| format!("answer to {method} {route}"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already; there is nothing to do about any other failure here.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Look {
    /// Pages per second written from this look to a later one.
    pub fn rate_to(self, later: Self) -> f64 {
        later.steps.saturating_sub(self.steps) as f64 / later.at.duration_since(self.at).as_secs_f64()
    }
}

/// A whole number at a path of keys separated by dots.
pub fn number(value: &Value, path: &str) -> Result<u64> {
    let found = path.split('.').try_fold(value, |value, key| value.get(key));
    found
        .and_then(Value::as_u64)
        .with_context(|| format!("no number {path} in {value}"))
}
