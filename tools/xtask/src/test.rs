//! Everything a change must pass: the lints, every test, the examples that are checks.
//!
//! Tests that cannot run on this machine say `SKIPPED:` and return; libtest hides what a passed test printed, so it
//! is asked to show it, and the lines are collected for the summary at the end. What a failed test said is repeated
//! there too: of a long log, often only the end is kept.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::failures::Failures;
use crate::setup::Need;
use crate::shell::{self, SaidNo};
use crate::{lint, setup, vectors};

/// Options of `cargo xtask test`.
#[derive(Debug, Args)]
pub struct Options {
    /// Leave out the lints.
    #[arg(long)]
    no_lint: bool,
}

/// Examples that prove what they show and fail if they cannot; the others measure, or want arguments.
const EXAMPLES: &[(&str, &str)] = &[("memsnap", "process_memory")];

/// What the test runs have said so far.
#[derive(Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    skipped: BTreeSet<String>,
    failures: Failures,
}

/// Runs all checks and prints a summary.
pub fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    setup::run(Need::Checks)?;
    let mut tally = Tally::default();
    if !options.no_lint {
        tally.skipped.extend(lint::check_all()?);
    }
    eprintln!("\n== tests");
    let tests = [
        "test",
        "--workspace",
        "--locked",
        "--no-fail-fast",
        "--",
        "--show-output",
    ];
    let status = shell::watch(shell::cargo().args(tests), |line| {
        println!("{line}");
        tally.read(line);
    })?;
    eprintln!("\n== vectors");
    let vectors = vectors::run();
    eprintln!("\n== examples");
    let examples = examples(&mut tally);
    println!("\nSummary after {} s", started.elapsed().as_secs());
    for skipped in &tally.skipped {
        println!("  skipped: {skipped}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        tally.passed,
        tally.failed,
        tally.skipped.len() as u64 + tally.ignored
    );
    print!("{}", tally.failures);
    vectors?;
    examples?;
    if !status.success() {
        bail!(SaidNo(format!("tests: {status}")));
    }
    Ok(())
}

/// Runs the examples that are checks.
fn examples(tally: &mut Tally) -> Result<()> {
    for (package, example) in EXAMPLES {
        let what = [
            "run",
            "--quiet",
            "--locked",
            "--package",
            package,
            "--example",
            example,
        ];
        let mut command = shell::cargo();
        let status = shell::watch(command.args(what), |line| {
            println!("{line}");
            tally.read(line);
        })?;
        shell::judge(&command, status)?;
        tally.passed += 1;
    }
    Ok(())
}

impl Tally {
    /// Takes in one line of a test run.
    fn read(&mut self, line: &str) {
        self.failures.read(line);
        if let Some(skipped) = line.trim_start().strip_prefix("SKIPPED: ") {
            self.skipped.insert(skipped.to_owned());
        }
        let Some(counts) = line.strip_prefix("test result: ") else {
            return;
        };
        for (count, word) in counts.split("; ").filter_map(count_and_word) {
            match word {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

/// Reads "12 passed", also out of "ok. 12 passed".
fn count_and_word(part: &str) -> Option<(u64, &str)> {
    let (count, word) = part.rsplit_once(' ')?;
    let count = count.rsplit(' ').next()?.parse().ok()?;
    Some((count, word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_the_results_of_several_runs() {
        let mut tally = Tally::default();
        tally.read(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s",
        );
        tally.read(
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s",
        );
        assert_eq!((tally.passed, tally.failed, tally.ignored), (13, 2, 1));
    }

    #[test]
    fn names_each_skipped_test_once() {
        let mut tally = Tally::default();
        tally.read("SKIPPED: a_test: /dev/kvm: No such file or directory");
        tally.read("SKIPPED: a_test: /dev/kvm: No such file or directory");
        tally.read("running 1 test");
        assert_eq!(tally.skipped.len(), 1);
    }
}
