//! The init of the Linux test guest.
//!
//! It mounts what every Linux program expects and loads the modules that the initramfs lists. Then it is the oracle of
//! the library's description, until it is told to power off by the line `poweroff` on the console; or, with
//! `vmsnap.run=PROGRAM` on the kernel's command line, it runs that program and powers off when it ends.
#![forbid(unsafe_code)]

mod boot;
mod options;
mod oracle;

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use linux_guest::status::Line;

use options::Options;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(oracle::PEER) {
        return oracle::run_peer();
    }
    let outcome = boot::prepare().and_then(|()| {
        let options = Options::of_this_machine()?;
        match &options.run {
            Some(program) => run_program(program),
            None => oracle::run(&options),
        }
    });
    if let Err(error) = outcome {
        oracle::say(&Line::Failed {
            error: format!("{error:#}"),
        });
    }
    boot::power_off()
}

fn run_program(program: &str) -> Result<()> {
    let status = Command::new(program)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    println!("{program}: {status}");
    Ok(())
}
