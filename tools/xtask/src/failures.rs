//! What failed tests have said, picked out of the output of libtest.
//!
//! libtest prints, under `failures:`, a block for each failed test that begins with `---- NAME stdout ----`, and after
//! the blocks the bare names under `failures:` once more. Blocks of tests that passed stand under `successes:`.

use std::collections::VecDeque;
use std::fmt;

/// Lines kept of the end of each block.
const LINES: usize = 60;

/// The blocks of failed tests.
#[derive(Debug, Default)]
pub struct Failures {
    blocks: Vec<Block>,
    section: Section,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Section {
    #[default]
    Elsewhere,
    /// Under `failures:`, before the first block: also the list of bare names.
    Heading,
    /// In the last block.
    Block,
    /// In the last block, behind its message.
    Backtrace,
}

#[derive(Debug)]
struct Block {
    name: String,
    lines: VecDeque<String>,
}

impl Failures {
    /// Takes in one line of a test run.
    pub fn read(&mut self, line: &str) {
        let heading = line
            .strip_prefix("---- ")
            .and_then(|line| line.strip_suffix(" stdout ----"));
        match (line, heading) {
            ("failures:", _) => self.section = Section::Heading,
            ("successes:", _) => self.section = Section::Elsewhere,
            _ if line.starts_with("test result: ") => self.section = Section::Elsewhere,
            (_, Some(name)) if self.section != Section::Elsewhere => {
                self.blocks.push(Block {
                    name: name.to_owned(),
                    lines: VecDeque::new(),
                });
                self.section = Section::Block;
            }
            ("stack backtrace:", _) if self.section == Section::Block => self.section = Section::Backtrace,
            _ if self.section == Section::Block => self.keep(line),
            _ => {}
        }
    }

    fn keep(&mut self, line: &str) {
        let Some(block) = self.blocks.last_mut() else {
            return;
        };
        if block.lines.len() == LINES {
            block.lines.pop_front();
        }
        if !line.trim().is_empty() {
            block.lines.push_back(line.to_owned());
        }
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for block in &self.blocks {
            writeln!(f, "\nfailed: {}", block.name)?;
            for line in &block.lines {
                writeln!(f, "    {line}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
test good ... ok
test bad ... FAILED

successes:

---- good stdout ----
fine

successes:
    good

failures:

---- bad stdout ----
before
thread 'bad' panicked at tests/bad.rs:1:1:
the reason
stack backtrace:
   0: panic

failures:
    bad

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s
";

    #[test]
    fn repeats_what_a_failed_test_said_without_its_backtrace() {
        let mut failures = Failures::default();
        for line in OUTPUT.lines() {
            failures.read(line);
        }
        let expected =
            "\nfailed: bad\n    before\n    thread 'bad' panicked at tests/bad.rs:1:1:\n    the reason\n";
        assert_eq!(failures.to_string(), expected);
    }

    #[test]
    fn keeps_the_end_of_a_long_block() {
        let mut failures = Failures::default();
        failures.read("failures:");
        failures.read("---- long stdout ----");
        for number in 0..1000 {
            failures.read(&number.to_string());
        }
        let text = failures.to_string();
        assert!(text.ends_with("    999\n"), "{text}");
        assert_eq!(text.lines().count(), LINES + 2);
    }

    #[test]
    fn a_run_in_which_all_passed_adds_nothing() {
        let mut failures = Failures::default();
        failures.read("successes:");
        failures.read("---- good stdout ----");
        failures.read("fine");
        assert_eq!(failures.to_string(), "");
    }
}
