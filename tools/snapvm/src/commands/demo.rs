//! stub
use crate::cli::DemoArgs;
use crate::outcome::Outcome;
/// stub
pub fn run(_args: &DemoArgs) -> anyhow::Result<Outcome> {
    Ok(Outcome::Good)
}
