//! The checks that run nothing: format, clippy, documentation, crate arrows, dependencies, spelling.
//!
//! All of them run, also after one has said no, so that one run shows everything there is to mend. A check that
//! cannot be made on this machine is skipped with a line that begins with `SKIPPED:`.

use std::net::{TcpStream, ToSocketAddrs};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::setup::Need;
use crate::shell::{self, SaidNo};
use crate::{arrows, setup, tools};

/// A named check.
type Check = (&'static str, fn(&mut Vec<String>) -> Result<()>);

const CHECKS: &[Check] = &[
    ("format", |_| {
        shell::run(shell::cargo().args(["fmt", "--all", "--check"]))
    }),
    ("clippy", |_| clippy()),
    ("documentation", |_| documentation()),
    ("crate arrows", |_| arrows::run()),
    ("ASCII source", |_| ascii()),
    ("dependencies", dependencies),
    ("advisories", advisories),
    ("spelling", spelling),
];

/// Runs every check and prints what was skipped.
pub fn run() -> Result<()> {
    setup::run(Need::Checks)?;
    check_all().map(|_skipped| ())
}

/// Runs every check; returns what was skipped and why.
pub fn check_all() -> Result<Vec<String>> {
    let mut skipped = Vec::new();
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        eprintln!("\n== {name}");
        if let Err(error) = check(&mut skipped) {
            if !error.is::<SaidNo>() {
                return Err(error.context(*name));
            }
            eprintln!("{name}: {error:#}");
            failed.push(*name);
        }
    }
    if !failed.is_empty() {
        bail!(SaidNo(format!("lints: {} said no", failed.join(", "))));
    }
    eprintln!("\nlints: {} checks, none said no", CHECKS.len());
    Ok(skipped)
}

fn clippy() -> Result<()> {
    let what = [
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    shell::run(shell::cargo().args(what))
}

fn documentation() -> Result<()> {
    let what = ["doc", "--quiet", "--workspace", "--no-deps", "--locked"];
    shell::run(shell::cargo().env("RUSTDOCFLAGS", "-D warnings").args(what))
}

/// Source is ASCII: what one sees is what the compiler reads.
fn ascii() -> Result<()> {
    let listed = shell::capture(shell::command("git").args(["ls-files", "*.rs", "*.S", "*.toml"]))?;
    let mut wrong = Vec::new();
    for name in listed.lines() {
        let bytes = std::fs::read(shell::root().join(name)).unwrap_or_default();
        if let Some(at) = bytes.iter().position(|byte| !byte.is_ascii()) {
            let line = bytes.iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
            wrong.push(format!("{name}:{line}"));
        }
    }
    if !wrong.is_empty() {
        bail!(SaidNo(format!("not ASCII: {}", wrong.join(", "))));
    }
    Ok(())
}

fn dependencies(skipped: &mut Vec<String>) -> Result<()> {
    let Some(mut deny) = deny(skipped, "dependencies") else {
        return Ok(());
    };
    shell::run(deny.args(["check", "licenses", "bans", "sources"]))
}

/// Known vulnerabilities; the database is a git repository elsewhere.
fn advisories(skipped: &mut Vec<String>) -> Result<()> {
    let host = ("github.com", 443);
    let mut addresses = host.to_socket_addrs().into_iter().flatten();
    let reached =
        addresses.any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok());
    if !reached {
        skip(
            skipped,
            "advisories: the advisory database cannot be reached from here".to_owned(),
        );
        return Ok(());
    }
    let Some(mut deny) = deny(skipped, "advisories") else {
        return Ok(());
    };
    shell::run(deny.args(["check", "advisories"]))
}

fn spelling(skipped: &mut Vec<String>) -> Result<()> {
    match tools::typos() {
        Ok(mut typos) => shell::run(typos.args(["--config", ".typos.toml"])),
        Err(error) => {
            skip(skipped, format!("spelling: typos cannot be installed: {error:#}"));
            Ok(())
        }
    }
}

/// A command that runs cargo-deny with our rules; none when it cannot be had, which is noted.
fn deny(skipped: &mut Vec<String>, check: &str) -> Option<Command> {
    match tools::cargo_deny() {
        Ok(mut deny) => {
            deny.args(["--config", ".cargo/deny.toml"]);
            Some(deny)
        }
        Err(error) => {
            skip(
                skipped,
                format!("{check}: cargo-deny cannot be installed: {error:#}"),
            );
            None
        }
    }
}

fn skip(skipped: &mut Vec<String>, what: String) {
    eprintln!("SKIPPED: {what}");
    skipped.push(what);
}
