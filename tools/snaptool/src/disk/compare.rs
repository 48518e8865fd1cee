//! `snaptool disk compare`: whether two chains hold the same disk.
//!
//! The exit codes are those of `qemu-img compare`.

use qcow2::compare::{Compare, Comparison};
use serde_json::json;

use super::image::{self, Sharing};
use super::steps;
use crate::Outcome;
use crate::cli::disk::CompareArgs;
use crate::output::{Output, size};
use crate::progress::Progress;

/// Runs the command.
pub fn run(args: &CompareArgs) -> anyhow::Result<Outcome> {
    let sharing = Sharing::forced(args.force_share);
    let first = image::open_chain(&args.first, image::format(&args.first, args.format)?, sharing)?;
    let second = image::open_chain(
        &args.second,
        image::format(&args.second, args.second_format)?,
        sharing,
    )?;
    let options = Compare {
        strict_size: args.strict,
    };
    let comparison = {
        let progress = Progress::new("compare");
        qcow2::compare::compare(&first, &second, options, &mut steps(&progress))?
    };
    let (first_bytes, second_bytes) = (image::len_bytes(&first)?, image::len_bytes(&second)?);
    let (same, offset) = match comparison {
        Comparison::Identical => (true, None),
        Comparison::ContentDiffers { offset } => (false, Some(offset)),
        Comparison::SizeDiffers { .. } => (false, None),
    };
    let mut output = Output::new();
    if args.json {
        output.json(&json!({
            "first": args.first.display().to_string(),
            "second": args.second.display().to_string(),
            "same": same,
            "first_difference": offset,
            "first_bytes": first_bytes,
            "second_bytes": second_bytes,
        }))?;
    } else {
        if first_bytes != second_bytes {
            output.fact(
                "lengths",
                format_args!("{} and {}", size(first_bytes), size(second_bytes)),
            )?;
        }
        match (same, offset) {
            (true, _) => output.fact("disks", "the same")?,
            (false, Some(offset)) => output.fact("disks", format_args!("differ at {offset:#x}"))?,
            (false, None) => output.fact("disks", "differ in length")?,
        }
    }
    output.finish()?;
    Ok(if same { Outcome::Good } else { Outcome::No })
}
