//! Values typed on the command line: sizes, durations, labels, devices and where a guest's text goes.
//!
//! Sizes are binary, as in every other virtual machine monitor: `512M` is 512 MiB. What a value means to the
//! machine or to a snapshot is decided elsewhere; here it is only read, or refused with a reason.

pub mod devices;
mod list;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Reads a size such as `65536`, `64K`, `512M` or `1GiB`.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| "expected a number such as 64K, 512M or 1G".to_owned())?;
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("unknown unit {suffix:?}, expected K, M, G or T")),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "too large".to_owned())
}

/// Reads a duration such as `250ms` or `1s`; a plain `0` needs no unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// A label of a snapshot, typed as `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// What stands before the first equals sign; never empty.
    pub key: String,
    /// All that follows it.
    pub value: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("expected KEY=VALUE".to_owned()),
        }
    }
}

/// What belongs to a named device, typed as `ID=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The device; never empty.
    pub id: String,
    /// What it gets; never empty.
    pub value: String,
}

impl FromStr for Assignment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((id, value)) if !id.is_empty() && !value.is_empty() => Ok(Self {
                id: id.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("expected the id of a device, an equals sign and what the device gets".to_owned()),
        }
    }
}

/// Collects what belongs to named devices; `flag` is where it was typed.
///
/// # Errors
/// A device stands twice.
pub fn by_id<T: From<String>>(flag: &str, assignments: &[Assignment]) -> anyhow::Result<BTreeMap<String, T>> {
    let mut found = BTreeMap::new();
    for Assignment { id, value } in assignments {
        let former = found.insert(id.clone(), T::from(value.clone()));
        anyhow::ensure!(former.is_none(), "{flag} {id} stands twice");
    }
    Ok(found)
}

/// Where the text of a guest's serial port or console goes; written `stdio`, `null` or `file:PATH`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Terminal {
    /// Standard input and output of `snapvm`.
    #[default]
    Stdio,
    /// Appended to a file; there is no input.
    File(PathBuf),
    /// Thrown away; there is no input.
    Null,
}

impl FromStr for Terminal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stdio" => Ok(Self::Stdio),
            "null" => Ok(Self::Null),
            _ => match text.strip_prefix("file:") {
                Some(path) if !path.is_empty() => Ok(Self::File(PathBuf::from(path))),
                _ => Err("expected stdio, null or file:PATH".to_owned()),
            },
        }
    }
}

impl fmt::Display for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Null => f.write_str("null"),
        }
    }
}

impl TryFrom<String> for Terminal {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Terminal> for String {
    fn from(terminal: Terminal) -> Self {
        terminal.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [
            ("4096", 4096),
            ("64K", 65536),
            ("512M", 512 << 20),
            ("1G", 1 << 30),
            ("1gib", 1 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_sizes_that_mean_nothing() {
        for text in ["", "M", "1X", "1.5G", "-1", "99999999999999999999", "99999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn zero_needs_no_unit_but_other_durations_do() {
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(duration("250").is_err());
    }

    #[test]
    fn a_label_splits_at_the_first_equals_sign() {
        let label: Label = "why=a=b".parse().unwrap();
        assert_eq!((label.key.as_str(), label.value.as_str()), ("why", "a=b"));
        assert!("=x".parse::<Label>().is_err());
        assert!("x".parse::<Label>().is_err());
    }

    #[test]
    fn serial_names_its_destination() {
        assert_eq!("file:a.log".parse(), Ok(Terminal::File("a.log".into())));
        assert_eq!("stdio".parse(), Ok(Terminal::Stdio));
        assert!("file:".parse::<Terminal>().is_err());
        assert!("tty".parse::<Terminal>().is_err());
    }
}
