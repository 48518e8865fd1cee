//! A machine run by the real `snapvm`, and plain HTTP to its socket.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const SNAPVM: &str = env!("CARGO_BIN_EXE_snapvm");
/// How long a machine may take to come up or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A `snapvm run` as a child process; killed when dropped.
pub struct Vm {
    child: Child,
    directory: TempDir,
}

impl Vm {
    /// Boots the built-in guest and waits until it writes memory.
    pub fn builtin(args: &[&str]) -> Self {
        let vm = Self::start([&["--builtin"], args].concat(), TempDir::new().unwrap());
        vm.wait_until("the guest's first steps", || {
            vm.request("GET", "/v1/guest", "").1["steps"].as_u64() > Some(0)
        });
        vm
    }

    /// Boots a guest that is not the built-in one: it halts at once.
    pub fn other_guest() -> Self {
        let directory = TempDir::new().unwrap();
        let kernel = directory.path().join("guest.elf");
        let made = Command::new(SNAPVM)
            .arg("builtin-elf")
            .arg(&kernel)
            .status()
            .unwrap();
        assert!(made.success());
        let mut image = fs::read(&kernel).unwrap();
        // The first segment begins on the second page: `cli; hlt; jmp -4`, and nothing behind it.
        image[4096..].fill(0);
        image[4096..4100].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfc]);
        fs::write(&kernel, image).unwrap();
        Self::start([OsStr::new("--kernel"), kernel.as_os_str()], directory)
    }

    /// Boots the machine of a description, which has a serial port that needs nothing.
    pub fn by_config(name: &str, text: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let config = directory.path().join(name);
        fs::write(&config, text).unwrap();
        Self::spawn(
            [OsStr::new("run"), OsStr::new("--config"), config.as_os_str()],
            directory,
        )
    }

    /// Starts a process that waits for its machine.
    pub fn without_machine() -> Self {
        let vm = Self::spawn(["serve"], TempDir::new().unwrap());
        // Who answers also heeds signals.
        assert_eq!(vm.request("GET", "/v1/status", "").0, 404);
        vm
    }

    /// Brings a machine back.
    pub fn restored(snapshot: &Path, args: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let args = args.iter().map(OsStr::new);
        let command = [
            OsStr::new("restore"),
            snapshot.as_os_str(),
            OsStr::new("--serial"),
            OsStr::new("null"),
        ];
        Self::spawn(command.into_iter().chain(args), directory)
    }

    /// Runs `snapvm restore` on something that it must refuse; returns its exit code and standard error.
    pub fn fails_to_restore(snapshot: &Path, args: &[&str]) -> (i32, String) {
        let mut command = Command::new(SNAPVM);
        let output = command.arg("restore").arg(snapshot).args(args).output().unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    fn start<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>, directory: TempDir) -> Self {
        let serial = format!("file:{}", directory.path().join("serial.log").display());
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        let command = ["run".into(), "--serial".into(), serial.into()];
        Self::spawn(command.into_iter().chain(args), directory)
    }

    fn spawn<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>, directory: TempDir) -> Self {
        let mut command = Command::new(SNAPVM);
        command.args(args);
        command.arg("--api-sock").arg(directory.path().join("vm.sock"));
        let child = command
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let vm = Self { child, directory };
        vm.wait_until("the socket", || UnixStream::connect(vm.socket()).is_ok());
        vm
    }

    /// Runs `snapvm run` with a socket that it must not get; returns its exit code and standard error.
    pub fn fails_to_start(args: &[&str], socket: &Path) -> (i32, String) {
        let mut command = Command::new(SNAPVM);
        let output = command
            .arg("run")
            .args(args)
            .arg("--api-sock")
            .arg(socket)
            .output()
            .unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    pub fn socket(&self) -> PathBuf {
        self.path("vm.sock")
    }

    /// A path in the directory of this machine.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// One request; returns status and JSON body.
    pub fn request(&self, method: &str, route: &str, body: &str) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let len = body.len();
        let head = format!(
            "{method} {route} HTTP/1.1\r\nHost: vm\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .expect("an answer has a head and a body");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(
            head.to_lowercase().contains("content-type: application/json"),
            "{head}"
        );
        (
            status,
            serde_json::from_str(body).unwrap_or_else(|error| panic!("not JSON ({error}): {body}")),
        )
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let status = Command::new("kill")
            .arg(self.child.id().to_string())
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for the end of the process; returns its exit code.
    pub fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "snapvm does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "waited too long for {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
