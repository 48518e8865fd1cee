//! The two checkers that cargo does not bring: cargo-deny and typos.
//!
//! One that is in `PATH` in the wanted version is used. Otherwise it is installed once per user, below the cache
//! directory, so that a second clone finds it; where that cannot be done, the check is skipped and says so.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell;

/// A checker, its version and how it is installed.
struct Tool {
    name: &'static str,
    version: &'static str,
    install: fn(&Tool, &Path) -> Result<()>,
}

const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    install: install_from_crates,
};
const TYPOS: Tool = Tool {
    name: "typos",
    version: "1.52.0",
    install: install_from_wheel,
};

/// A command that runs cargo-deny.
pub fn cargo_deny() -> Result<Command> {
    CARGO_DENY.command()
}

/// A command that runs typos.
pub fn typos() -> Result<Command> {
    TYPOS.command()
}

impl Tool {
    fn command(&self) -> Result<Command> {
        let place = cache_dir()?.join(format!("{}-{}", self.name, self.version));
        let installed = place.join("bin").join(self.name);
        if self.is_at(Path::new(self.name)) {
            return Ok(shell::command(self.name));
        }
        if !self.is_at(&installed) {
            eprintln!(
                "tools: installing {} {} into {}",
                self.name,
                self.version,
                place.display()
            );
            (self.install)(self, &place)?;
        }
        Ok(shell::command(installed))
    }

    fn is_at(&self, program: &Path) -> bool {
        let output = shell::command(program).arg("--version").output();
        output.is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout)
                .trim_end()
                .ends_with(self.version)
        })
    }
}

/// Builds a tool from source; quickly rather than well, for it runs for a second.
fn install_from_crates(tool: &Tool, place: &Path) -> Result<()> {
    let version = format!("{}@{}", tool.name, tool.version);
    let mut cargo = shell::cargo();
    cargo
        .args([
            "install",
            "--quiet",
            "--locked",
            "--no-default-features",
            "--root",
        ])
        .arg(place)
        .arg(version);
    cargo.env("CARGO_TARGET_DIR", shell::target_dir().join("tools"));
    cargo.envs([
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ]);
    shell::run(&mut cargo)
}

/// Takes the prebuilt program out of a Python wheel.
fn install_from_wheel(tool: &Tool, place: &Path) -> Result<()> {
    let mut python = shell::command("python3");
    python.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--target",
    ]);
    shell::run(python.arg(place).arg(format!("{}=={}", tool.name, tool.version)))
}

/// Where tools are kept for all clones of one user.
fn cache_dir() -> Result<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| value != OsStr::new(""))
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    Ok(cache
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("vmsnap-tools"))
}
