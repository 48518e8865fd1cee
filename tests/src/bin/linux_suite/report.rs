//! The report: one entry per step, written at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::plan::{Entry, Step};

/// Bytes of the end of a log that are kept.
const LOG_BYTES: usize = 200_000;

/// Writes entries as they are made.
#[derive(Debug)]
pub struct Report {
    file: File,
    scenario: String,
}

/// What a step has seen besides whether it went well.
#[derive(Debug, Default)]
pub struct Seen {
    figures: BTreeMap<String, f64>,
    facts: BTreeMap<String, String>,
}

impl Seen {
    /// Writes down a time.
    pub fn time(&mut self, name: &str, time: Duration) {
        self.figures
            .insert(format!("{name}_ms"), time.as_secs_f64() * 1e3);
    }

    /// Writes down a number.
    pub fn number(&mut self, name: &str, number: f64) {
        self.figures.insert(name.to_owned(), number);
    }

    /// Returns a number that was written down, or a time in milliseconds.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied()
    }

    /// Writes down a fact.
    pub fn fact(&mut self, name: &str, fact: impl Into<String>) {
        self.facts.insert(name.to_owned(), fact.into());
    }
}

impl Report {
    /// Opens the place that entries go to: a file, or a port of the machine.
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = File::options();
        let file = options.create(true).append(true).open(path);
        Ok(Self {
            file: file.with_context(|| format!("cannot write to {}", path.display()))?,
            scenario: String::new(),
        })
    }

    /// Begins a scenario, of which the following steps are.
    pub fn scenario(&mut self, name: &str) {
        name.clone_into(&mut self.scenario);
        println!("== {name}");
    }

    /// Takes a step and writes down how it went.
    pub fn step<T>(&mut self, name: &str, take: impl FnOnce(&mut Seen) -> Result<T>) -> Result<T> {
        let (began, mut seen) = (Instant::now(), Seen::default());
        let outcome = take(&mut seen);
        let step = Step {
            scenario: self.scenario.clone(),
            step: name.to_owned(),
            error: outcome.as_ref().err().map(|error| format!("{error:#}")),
            seconds: began.elapsed().as_secs_f64(),
            figures: seen.figures,
            facts: seen.facts,
        };
        println!(
            "{name}: {:.1} s {:?} {:?} {}",
            step.seconds,
            step.figures,
            step.facts,
            step.error.as_deref().unwrap_or("ok")
        );
        self.write(&Entry::Step(step))?;
        outcome
    }

    /// Sends along the end of a log.
    pub fn log(&mut self, name: &str, text: &str) -> Result<()> {
        let mut from = text.len().saturating_sub(LOG_BYTES);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        let name = format!("{}-{name}", self.scenario);
        self.write(&Entry::Log {
            name,
            text: text[from..].to_owned(),
        })
    }

    /// Says that nothing comes any more.
    pub fn finish(&mut self) -> Result<()> {
        self.write(&Entry::Finished)
    }

    fn write(&mut self, entry: &Entry) -> Result<()> {
        let mut line = serde_json::to_vec(entry).context("an entry")?;
        line.push(b'\n');
        self.file.write_all(&line).context("cannot write an entry")
    }
}
