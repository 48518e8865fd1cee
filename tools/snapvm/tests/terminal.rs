//! The guest's serial port on a terminal, and on a pipe.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A machine whose standard input is a terminal.
struct OnTerminal {
    child: Child,
    /// What a person types goes in here.
    keyboard: File,
    /// The machine's side of the terminal, for looking at its modes.
    terminal: File,
    _directory: TempDir,
}

impl OnTerminal {
    fn start(test: &str) -> Option<Self> {
        if !Path::new("/dev/kvm").exists() {
            eprintln!("SKIPPED: {test}: there is no /dev/kvm");
            return None;
        }
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap().into_string().unwrap();
        let terminal = File::options().read(true).write(true).open(name).unwrap();
        let directory = TempDir::new().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_snapvm"))
            .args(["run", "--builtin", "--memory", "64M", "--api-sock"])
            .arg(directory.path().join("vm.sock"))
            .stdin(terminal.try_clone().unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let machine = Self {
            child,
            keyboard: File::from(keyboard),
            terminal,
            _directory: directory,
        };
        machine.wait_until("raw mode", |machine| !machine.is_cooked());
        Some(machine)
    }

    /// Whether the terminal edits lines and turns Ctrl-C into a signal.
    fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ISIG)
    }

    fn type_keys(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    fn wait_until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "waited too long for {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end; returns the exit code and all of standard error.
    fn end(mut self) -> (Option<i32>, String, bool) {
        let mut stderr = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        let code = self.child.wait().unwrap().code();
        let cooked = self.is_cooked();
        (code, stderr, cooked)
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn keys_of_our_own_help_and_end_the_machine_and_the_terminal_is_as_before() {
    let Some(mut machine) = OnTerminal::start("keys_of_our_own_help_and_end_the_machine") else {
        return;
    };
    // Far more than the guest's port and our queue take: keys of our own work all the same.
    machine.type_keys(&[b'a'; 3000]);
    machine.type_keys(&[b'b'; 3000]);
    machine.type_keys(b"\x03\x01h\x01x");
    let (code, stderr, cooked) = machine.end();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("Ctrl-A x  end the machine"), "{stderr}");
    assert!(cooked, "the terminal was left in raw mode");
}

#[test]
fn a_signal_gives_the_terminal_back() {
    for signal in ["TERM", "HUP", "INT", "QUIT"] {
        let Some(machine) = OnTerminal::start("a_signal_gives_the_terminal_back") else {
            return;
        };
        let id = machine.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", signal, &id])
                .status()
                .unwrap()
                .success()
        );
        let (code, stderr, cooked) = machine.end();
        assert_eq!(code, Some(0), "{signal}: {stderr}");
        assert!(cooked, "{signal}: the terminal was left in raw mode");
    }
}
