//! What a run of the suite left, and the verdict on it.
//!
//! The verdict is written for a log of which only the end is at hand: the ends of the logs come first, the reasons last.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::plan::{Entry, Step};

/// Lines of each log that a verdict shows.
const LOG_LINES: usize = 15;

/// Characters of a line that a verdict shows; a guest's status is longer and says nothing more in its rest.
const LINE_CHARACTERS: usize = 300;

/// What a run left.
#[derive(Debug)]
pub struct Ran {
    /// Every step that was taken.
    pub steps: Vec<Step>,
    /// Whether the suite came to its end.
    pub finished: bool,
    /// How long it was given if it was ended for taking too long.
    pub cut_off: Option<Duration>,
    /// Where everything is kept.
    pub directory: PathBuf,
    /// The logs that were sent along with failures, by name.
    logs: Vec<(String, String)>,
}

impl Ran {
    /// Reads the entries of `report`, and keeps the logs among them as files of their own in `directory`.
    ///
    /// # Errors
    /// When a log cannot be written.
    pub fn collect(directory: PathBuf, report: &Path, cut_off: Option<Duration>) -> Result<Self> {
        let mut ran = Self {
            steps: Vec::new(),
            finished: false,
            cut_off,
            directory,
            logs: Vec::new(),
        };
        let text = fs::read(report).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        for entry in text
            .lines()
            .filter_map(|line| serde_json::from_str(line.trim()).ok())
        {
            match entry {
                Entry::Step(step) => ran.steps.push(step),
                Entry::Log { name, text } => {
                    let name = name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
                    fs::write(ran.directory.join(&name), &text).context("cannot keep a log")?;
                    ran.logs.push((name, text));
                }
                Entry::Finished => ran.finished = cut_off.is_none(),
            }
        }
        Ok(ran)
    }

    /// Says why the run failed, with the ends of the logs before the reasons; `None` when it went well.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let mut reasons: Vec<String> = self.steps.iter().filter_map(reason).collect();
        if !self.finished {
            reasons.push(self.stopped());
        }
        if reasons.is_empty() {
            return None;
        }
        let mut text = format!("logs are in {}\n", self.directory.display());
        for (name, log) in &self.logs {
            show_end(&mut text, name, log);
        }
        for name in ["qemu.log", "console.log"] {
            let log = fs::read(self.directory.join(name)).unwrap_or_default();
            show_end(&mut text, name, &String::from_utf8_lossy(&log));
        }
        for reason in reasons {
            text.push_str(&format!("FAILED: {reason}\n"));
        }
        Some(text)
    }

    /// Says how far a suite came that did not come to its end.
    fn stopped(&self) -> String {
        let last = self.steps.last().map_or_else(
            || "no step was taken".to_owned(),
            |step| format!("the last step was {}: {}", step.scenario, step.step),
        );
        match self.cut_off {
            Some(limit) => format!("the suite was not at its end after {} s; {last}", limit.as_secs()),
            None => format!("the suite, or the machine below it, ended early; {last}"),
        }
    }
}

/// Why a step failed, if it did.
fn reason(step: &Step) -> Option<String> {
    let error = step.error.as_ref()?;
    Some(format!(
        "{}: {}, after {:.1} s: {error}",
        step.scenario, step.step, step.seconds
    ))
}

/// Adds the last lines of a log, unless it is empty.
fn show_end(text: &mut String, name: &str, log: &str) {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return;
    }
    // Writing to a string cannot fail.
    let _ = writeln!(text, "the end of {name}:");
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        let short: String = line.chars().take(LINE_CHARACTERS).collect();
        let _ = writeln!(text, "    {short}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, error: Option<&str>) -> Entry {
        Entry::Step(Step {
            scenario: "a guest".to_owned(),
            step: name.to_owned(),
            error: error.map(str::to_owned),
            seconds: 1.0,
            figures: Default::default(),
            facts: Default::default(),
        })
    }

    /// What is left of a run with these entries.
    fn ran(entries: &[Entry], cut_off: Option<Duration>) -> (tempfile::TempDir, Ran) {
        let directory = tempfile::tempdir().expect("a directory");
        let report = directory.path().join("report.jsonl");
        let lines: Vec<String> = entries
            .iter()
            .map(|entry| serde_json::to_string(entry).expect("an entry is JSON"))
            .collect();
        fs::write(&report, lines.join("\n")).expect("a report");
        let ran = Ran::collect(directory.path().to_owned(), &report, cut_off).expect("logs can be kept");
        (directory, ran)
    }

    #[test]
    fn the_last_line_is_the_reason() {
        let log = Entry::Log {
            name: "source.snapvm.log".to_owned(),
            text: "first\nlast\n".to_owned(),
        };
        let failed = step("snapshot 2", Some("no space"));
        let (_directory, ran) = ran(&[step("boot", None), failed, log, Entry::Finished], None);
        let failure = ran.failure().expect("a step failed");
        let last = failure.lines().last().expect("a line");
        assert_eq!(last, "FAILED: a guest: snapshot 2, after 1.0 s: no space");
        assert!(
            failure.contains("the end of source.snapvm.log:\n    first\n    last\n"),
            "{failure}"
        );
    }

    #[test]
    fn a_suite_that_was_cut_off_says_how_far_it_came() {
        let (_directory, ran) = ran(&[step("boot", None)], Some(Duration::from_secs(60)));
        let failure = ran.failure().expect("it has not finished");
        assert!(
            failure.contains("not at its end after 60 s; the last step was a guest: boot"),
            "{failure}"
        );
    }

    #[test]
    fn a_run_in_which_all_went_well_is_no_failure() {
        let (_directory, ran) = ran(&[step("boot", None), Entry::Finished], None);
        assert_eq!(ran.failure(), None);
    }
}
