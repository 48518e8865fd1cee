//! Descriptions in files: TOML or JSON, by the ending of the name.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use super::MachineDescription;

/// Reads a description; paths in it are those of this process, as in flags.
///
/// # Errors
/// The file cannot be read, or is not such a description; the error says where.
pub fn read(path: &Path) -> anyhow::Result<MachineDescription> {
    let context = || format!("machine description {}", path.display());
    let text = fs::read_to_string(path).with_context(context)?;
    let description = match path.extension().and_then(|ending| ending.to_str()) {
        Some("toml") => toml::from_str(&text).map_err(|error| toml_error(&text, &error)),
        Some("json") => serde_json::from_str(&text).map_err(Into::into),
        _ => bail!(
            "machine description {}: the name must end in .toml or .json",
            path.display()
        ),
    };
    let description: MachineDescription = description.with_context(context)?;
    description
        .validate()
        .map_err(anyhow::Error::msg)
        .with_context(context)?;
    Ok(description)
}

/// The error on one line, with the place that the library draws a picture of.
fn toml_error(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let message = error.message().replace('\n', " ");
    match error.span().and_then(|span| text.get(..span.start)) {
        None => anyhow::Error::msg(message),
        Some(before) => anyhow::anyhow!("line {}: {message}", before.matches('\n').count() + 1),
    }
}
