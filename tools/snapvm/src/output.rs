//! What a command prints on standard output: one fact per line, or one JSON object.

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;

/// The reader of standard output is gone; the rest is not wanted.
#[derive(Debug)]
pub struct OutputClosed;

impl std::fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for OutputClosed {}

/// Facts in the order in which they are printed, each a name and a value.
#[derive(Debug, Default)]
pub struct Facts(Vec<(&'static str, String)>);

impl Facts {
    /// Adds a fact.
    pub fn add(&mut self, name: &'static str, value: impl ToString) -> &mut Self {
        self.0.push((name, value.to_string()));
        self
    }

    /// Prints the facts with their values aligned.
    pub fn print(&self) -> anyhow::Result<()> {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let text: String = self
            .0
            .iter()
            .map(|(name, value)| format!("{name:width$}  {value}\n"))
            .collect();
        print(&text)
    }
}

/// Prints one JSON object.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("writing JSON")?;
    text.push('\n');
    print(&text)
}

/// Prints text as it is.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
        result => result.context("writing to standard output"),
    }
}

/// A size for people, such as `512.0 MiB`.
pub fn human_bytes(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// A time for people, such as `1.25 ms`.
pub fn human_us(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{}.{:02} ms", us / 1_000, us % 1_000 / 10),
        _ => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_two_digits_behind_the_point() {
        for (us, text) in [
            (999, "999 us"),
            (1_250, "1.25 ms"),
            (12_005, "12.00 ms"),
            (3_050_000, "3.05 s"),
        ] {
            assert_eq!(human_us(us), text);
        }
    }

    #[test]
    fn sizes_are_binary() {
        assert_eq!(human_bytes(512 << 20), "512.0 MiB");
    }
}
