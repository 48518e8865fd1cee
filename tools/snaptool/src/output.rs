//! Standard output: facts for people, one per line with the key first, or JSON for programs.
//!
//! Colours and their absence (NO_COLOR, pipes) are anstream's business. Text that comes from a
//! snapshot file is untrusted and goes through [`printable`] before it reaches a terminal.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, BufWriter, StdoutLock, Write};

use anstream::AutoStream;
use anstyle::Style;
use bytesize::ByteSize;
use serde::Serialize;
use snapfile::diff::GuestRange;
use snapfile::{PAGE_SIZE, SectionKind};

const KEY: Style = Style::new().bold();

/// Buffered standard output; [`Output::finish`] must be called at the end.
pub struct Output(BufWriter<AutoStream<StdoutLock<'static>>>);

impl Output {
    /// Takes standard output.
    pub fn new() -> Self {
        Self(BufWriter::new(AutoStream::auto(io::stdout().lock())))
    }

    /// Prints `key: value`.
    pub fn fact(&mut self, key: &str, value: impl Display) -> io::Result<()> {
        writeln!(self.0, "{KEY}{}:{KEY:#} {value}", printable(key))
    }

    /// Prints a line as it is.
    pub fn line(&mut self, line: impl Display) -> io::Result<()> {
        writeln!(self.0, "{line}")
    }

    /// Prints an object over several lines.
    pub fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.0, value)?;
        writeln!(self.0)
    }

    /// Prints an object on one line.
    pub fn json_line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, value)?;
        writeln!(self.0)
    }

    /// Writes out what is buffered.
    pub fn finish(mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Escapes control characters, so that a file cannot drive the terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    Cow::Owned(text.chars().map(escape).collect())
}

/// Bytes for people: `1.5 GiB`.
pub fn size(bytes: u64) -> impl Display {
    ByteSize(bytes).display().iec()
}

/// Part of a whole for people: `12.5 %`.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    #[expect(clippy::cast_precision_loss, reason = "a rounded figure for people")]
    let ratio = part as f64 * 100.0 / whole as f64;
    format!("{ratio:.1} %")
}

/// The kind of a section, also in JSON; one that is not known by its code.
pub fn section_kind(kind: SectionKind) -> String {
    match kind {
        SectionKind::Unknown(code) => format!("kind {code}"),
        known => known.name().to_owned(),
    }
}

/// A range of guest memory for people: `0x1000-0x1fff`.
pub fn addresses(range: &GuestRange) -> String {
    let last = range
        .guest_address
        .saturating_add(range.len_bytes)
        .saturating_sub(1);
    format!("{:#x}-{last:#x}", range.guest_address)
}

/// The guest pages of a range: `page 3`, or `pages 3072-3327`.
pub fn pages(range: &GuestRange) -> String {
    let first = range.guest_address / PAGE_SIZE;
    let last = range
        .guest_address
        .saturating_add(range.len_bytes)
        .saturating_sub(1)
        / PAGE_SIZE;
    if first == last {
        format!("page {first}")
    } else {
        format!("pages {first}-{last}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_file_cannot_drive_the_terminal() {
        assert_eq!(printable("vcpu/0"), "vcpu/0");
        assert_eq!(printable("\x1b[2Jx\n"), "\\u{1b}[2Jx\\n");
    }

    #[test]
    fn ranges_name_their_last_page_and_address() {
        let range = GuestRange {
            guest_address: 0xc0_0000,
            len_bytes: 0x10_0000,
        };
        assert_eq!(pages(&range), "pages 3072-3327");
        assert_eq!(addresses(&range), "0xc00000-0xcfffff");
        assert_eq!(
            pages(&GuestRange {
                guest_address: 0x3000,
                len_bytes: 0x1000
            }),
            "page 3"
        );
    }
}
