//! Running commands: shown as a user would type them, then run, then judged by their exit status.
//!
//! Commands run at the workspace root. A check that answers "no" is told apart from one that could not be made by
//! the [`SaidNo`] in its error.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::interrupt;

/// A check was made and failed; its message says which.
#[derive(Debug)]
pub struct SaidNo(pub String);

impl fmt::Display for SaidNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SaidNo {}

/// The workspace's root directory.
pub fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package
        .ancestors()
        .nth(2)
        .expect("tools/xtask lies two levels below the root")
}

/// The directory that cargo builds into.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// A command that runs at the workspace root, without standard input.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// The cargo that runs this program.
pub fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A command's line as one would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let mut line = String::new();
    for (position, word) in words.enumerate() {
        let word = word.to_string_lossy();
        let word = if position == 0 { file_name(&word) } else { &word };
        let plain = !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_./:=,+@".contains(c));
        if position > 0 {
            line.push(' ');
        }
        if plain {
            line.push_str(word);
        } else {
            line.push_str(&format!("'{word}'"));
        }
    }
    line
}

/// Prints a command's line and runs it; its output goes where ours goes.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", line(command));
    let status = wait(&mut spawn(command)?)?;
    judge(command, status)
}

/// Runs a command silently and returns its standard output; its standard error is part of the failure.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", line(command)))?;
    interrupt::check()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(anyhow!(SaidNo(format!(
            "{}: {}: {}",
            line(command),
            output.status,
            said.trim()
        ))));
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {}", line(command)))
}

/// Prints a command's line, runs it, and gives each line of its standard output to `look` as it comes.
pub fn watch(command: &mut Command, mut look: impl FnMut(&str)) -> Result<ExitStatus> {
    eprintln!("$ {}", line(command));
    let mut child = spawn(command.stdout(Stdio::piped()))?;
    let output = child.stdout.take().expect("standard output was piped");
    for text in BufReader::new(output).split(b'\n') {
        let text = text.context("cannot read a command's output")?;
        look(&String::from_utf8_lossy(&text));
    }
    wait(&mut child)
}

/// Waits for a child; kills it when an interrupt comes first.
pub fn wait(child: &mut Child) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            interrupt::check()?;
            return Ok(status);
        }
        if let Err(interrupted) = interrupt::sleep(Duration::from_millis(10)) {
            // It may have ended by itself meanwhile: then there is nothing to kill.
            let _ = child.kill();
            child.wait()?;
            return Err(interrupted);
        }
    }
}

/// Starts a command.
pub fn spawn(command: &mut Command) -> Result<Child> {
    command
        .spawn()
        .with_context(|| format!("cannot run {}", line(command)))
}

/// Turns an exit status into success or [`SaidNo`].
pub fn judge(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!(SaidNo(format!("{}: {status}", line(command))));
    }
    Ok(())
}

/// The full path of a program that `PATH` finds.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_a_command_as_it_would_be_typed() {
        let mut command = Command::new("/usr/bin/zstd");
        command.args(["-1", "-T0", "a file"]);
        assert_eq!(line(&command), "zstd -1 -T0 'a file'");
    }

    #[test]
    fn a_failed_command_said_no() {
        let error = run(&mut command("false")).expect_err("false fails");
        assert!(error.is::<SaidNo>());
    }

    #[test]
    fn a_command_that_does_not_exist_did_not_say_no() {
        let error = run(&mut command("no-such-program-here")).expect_err("it does not exist");
        assert!(!error.is::<SaidNo>());
    }
}
