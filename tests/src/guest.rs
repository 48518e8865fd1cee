//! A machine run by `snapvm` as a child process.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::run::{Output, binary, run};

/// How long anything that should happen promptly may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A `snapvm run` or `snapvm restore` in the background; killed when dropped.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    socket: PathBuf,
    serial: PathBuf,
}

impl Guest {
    /// Boots the built-in guest with further arguments of `snapvm run`, its files in `directory`.
    ///
    /// # Panics
    /// When the machine does not come up.
    #[must_use]
    pub fn run_builtin(directory: &Path, args: &[&str]) -> Self {
        Self::spawn(directory, "vm", [&["run", "--builtin"][..], args].concat())
    }

    /// Runs `snapvm` with these arguments (a `run` or a `restore`), `name` naming its socket and serial log.
    ///
    /// # Panics
    /// When the machine does not come up.
    #[must_use]
    pub fn spawn<A: AsRef<OsStr>>(directory: &Path, name: &str, args: impl IntoIterator<Item = A>) -> Self {
        let socket = directory.join(format!("{name}.sock"));
        let serial = directory.join(format!("{name}.log"));
        let mut command = Command::new(binary("snapvm"));
        command.args(args).arg("--api-sock").arg(&socket);
        command.arg("--serial").arg(format!("file:{}", serial.display()));
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("snapvm starts");
        let mut guest = Self {
            child,
            socket,
            serial,
        };
        guest.wait_for("the control socket", |guest| {
            let ended = guest.child.try_wait().expect("the child can be asked");
            assert!(ended.is_none(), "snapvm ended at once: {ended:?}");
            UnixStream::connect(&guest.socket).is_ok().then_some(())
        });
        guest
    }

    /// Runs a command of `snapvm` against this machine.
    pub fn control(&self, command: &str, args: &[&str]) -> Output {
        let socket = self.socket.to_str().expect("test paths are UTF-8");
        run("snapvm", [&[command, "--api-sock", socket][..], args].concat())
    }

    /// Takes a snapshot into `file`, which must succeed, and returns its report.
    pub fn snapshot(&self, file: &Path, args: &[&str]) -> Value {
        let file = file.to_str().expect("test paths are UTF-8");
        self.control("snapshot", &[&[file, "--json"], args].concat())
            .expect_code(0)
            .json()
    }

    /// Returns the machine's status.
    #[must_use]
    pub fn status(&self) -> Value {
        self.control("status", &["--json"]).expect_code(0).json()
    }

    /// Returns the state of the machine's processors: `running`, `paused` or `stopped`.
    #[must_use]
    pub fn state(&self) -> String {
        self.status()["state"]
            .as_str()
            .expect("the status has a state")
            .to_owned()
    }

    /// Returns the steps that the built-in guest has made on all its processors.
    #[must_use]
    pub fn steps(&self) -> u64 {
        let status = self.status();
        let cpus = status["guest"]["cpus"]
            .as_array()
            .unwrap_or_else(|| panic!("no guest in {status}"));
        cpus.iter()
            .map(|cpu| cpu["steps"].as_u64().expect("a step counter"))
            .sum()
    }

    /// Waits until the built-in guest has made this many steps more.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn wait_for_steps(&mut self, more: u64) {
        let target = self.steps() + more;
        self.wait_for("the guest's steps", |guest| {
            (guest.steps() >= target).then_some(())
        });
    }

    /// Returns what the guest has written to its serial port.
    #[must_use]
    pub fn serial(&self) -> String {
        // The control socket is there before the machine, and so before its log.
        String::from_utf8_lossy(&fs::read(&self.serial).unwrap_or_default()).into_owned()
    }

    /// Returns the identifier of the process that runs the machine.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks `probe` again and again until it has an answer.
    ///
    /// # Panics
    /// When there is none in reasonable time.
    pub fn wait_for<T>(&mut self, what: &str, mut probe: impl FnMut(&mut Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = probe(self) {
                return answer;
            }
            assert!(Instant::now() < deadline, "waited too long for {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _already_reaped = self.child.wait();
    }
}
