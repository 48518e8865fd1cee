//! Measures.
use anyhow::Result;
use clap::Args;

/// Options.
#[derive(Debug, Args)]
pub struct Options {}

pub fn run(_options: &Options) -> Result<()> {
    Ok(())
}
