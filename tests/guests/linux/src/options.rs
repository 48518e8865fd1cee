//! What the guest is asked to do, by `vmsnap.NAME=VALUE` on the kernel's command line.

use std::fs;

use anyhow::{Context, Result};

/// The options, with their defaults.
#[derive(Debug, Clone)]
pub struct Options {
    /// `vmsnap.run`: a program to run in place of the oracle.
    pub run: Option<String>,
    /// `vmsnap.seed`: decides all content.
    pub seed: u64,
    /// `vmsnap.memory_mib`: size of the buffer that is written and checked.
    pub memory_mib: u64,
    /// `vmsnap.pages_per_second`: the pace of all writers together.
    pub pages_per_second: u64,
    /// `vmsnap.vsock`: whether the host sends a stream by vsock.
    pub vsock: bool,
}

impl Options {
    /// Reads the command line of this machine.
    pub fn of_this_machine() -> Result<Self> {
        let line = fs::read_to_string("/proc/cmdline").context("the kernel's command line")?;
        Self::parse(&line)
    }

    fn parse(line: &str) -> Result<Self> {
        let mut options = Self {
            run: None,
            seed: 1,
            memory_mib: 32,
            pages_per_second: 2000,
            vsock: false,
        };
        let ours = line
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("vmsnap.")?.split_once('='));
        for (name, value) in ours {
            let number = || {
                value
                    .parse::<u64>()
                    .with_context(|| format!("vmsnap.{name}={value}"))
            };
            match name {
                "run" => options.run = Some(value.to_owned()),
                "seed" => options.seed = number()?,
                "memory_mib" => options.memory_mib = number()?,
                "pages_per_second" => options.pages_per_second = number()?.max(1),
                "vsock" => options.vsock = number()? != 0,
                _ => {}
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_words_only() {
        let options =
            Options::parse("console=ttyS0 vmsnap.seed=5 quiet vmsnap.vsock=1\n").expect("a command line");
        assert_eq!((options.seed, options.vsock, options.memory_mib), (5, true, 32));
    }

    #[test]
    fn refuses_what_is_no_number() {
        Options::parse("vmsnap.seed=five").expect_err("five is no number");
    }
}
