//! Runs the workspace's binaries.

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

/// What a finished command left.
#[derive(Debug)]
pub struct Output {
    /// Exit code; -1 when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Returns the standard output as JSON.
    ///
    /// # Panics
    /// When it is not one JSON document.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}\n{}", self.stdout, self.stderr))
    }

    /// Insists on an exit code and returns the output for more questions.
    ///
    /// # Panics
    /// When the command ended otherwise.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }
}

/// Returns the path of one of the workspace's binaries, built from the source as it stands.
///
/// # Panics
/// When the binaries cannot be built.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(build).join(name)
}

/// Runs one of the workspace's binaries to its end.
///
/// # Panics
/// When it cannot be started.
pub fn run<A: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = A>) -> Output {
    let output = Command::new(binary(name))
        .args(args)
        .output()
        .expect("the binary starts");
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Builds the binaries with the profile of the running test and returns their directory.
fn build() -> PathBuf {
    // The test itself stands in target/PROFILE/deps.
    let test = env::current_exe().expect("the test knows its own path");
    let directory = test
        .ancestors()
        .nth(2)
        .expect("a test stands two levels below its profile")
        .to_owned();
    let profile = match directory.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let status = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--package",
            "snapvm",
            "--package",
            "snaptool",
            "--profile",
            profile,
        ])
        .status()
        .expect("cargo starts");
    assert!(status.success(), "the binaries do not build");
    directory
}
