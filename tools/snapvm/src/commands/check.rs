//! `snapvm check`: holds every page of a snapshot against what the built-in guest must have written.

use crate::cli::CheckArgs;
use crate::outcome::Outcome;
use crate::output::{Facts, print_json};

/// `snapvm check`.
pub fn run(args: &CheckArgs) -> anyhow::Result<Outcome> {
    let report = snapshot::check(&args.file, args.threads.unwrap_or(0))?;
    if args.json {
        print_json(&report)?;
    } else {
        let mut facts = Facts::default();
        facts.add("file", args.file.display());
        facts.add("pages checked", report.pages_checked);
        facts.add("not checkable", report.pages_excluded);
        for (cpu, step) in report.steps.iter().enumerate() {
            facts.add("capture point", format!("vCPU {cpu} at step {step}"));
        }
        match report.mismatch_count {
            0 => facts.add("result", "every page is as of the capture point"),
            count => facts.add("result", format!("{count} pages differ")),
        };
        for mismatch in &report.mismatches {
            facts.add("differs", mismatch);
        }
        facts.print()?;
    }
    Ok(if report.mismatch_count == 0 {
        Outcome::Good
    } else {
        Outcome::No
    })
}
