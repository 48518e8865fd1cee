//! How a command ends: its exit code and the one line on standard error that explains it.
//!
//! Three codes, as grep has: 0 good, 1 "no" (a difference was found, the snapshot was given up), 2 could not do
//! it. A reader that closed the pipe is no failure: the rest of the output is simply not wanted.

use std::process::ExitCode;

use crate::output::OutputClosed;

/// What a command found, when nothing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or the answer is yes.
    Good,
    /// The answer is no.
    No,
}

/// Turns the result of a command into its exit code, explaining a failure on standard error.
pub fn conclude(result: anyhow::Result<Outcome>) -> ExitCode {
    match result {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Err(error) if error.is::<OutputClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("snapvm: {}", one_line(&error));
            ExitCode::from(2)
        }
    }
}

/// The error and its causes on one line, joined with colons.
pub fn one_line(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context;

    use super::*;

    #[test]
    fn causes_are_joined_on_one_line() {
        let error = Err::<(), _>(io::Error::other("no space"))
            .context("writing out.vmsnap")
            .unwrap_err();
        assert_eq!(one_line(&error), "writing out.vmsnap: no space");
    }
}
