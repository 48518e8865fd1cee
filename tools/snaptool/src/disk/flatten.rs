//! `snaptool disk flatten`: an image that needs its backing files no more.

use std::num::NonZeroU64;
use std::sync::Arc;

use anyhow::{Context, ensure};
use qcow2::flatten::{FlattenOptions, FlattenReport};
use qcow2::{Image, ImageFormat, ImageOptions};
use serde_json::json;

use super::{image, steps};
use crate::Outcome;
use crate::cli::disk::FlattenArgs;
use crate::output::{Output, size};
use crate::progress::Progress;

/// Runs the command.
pub fn run(args: &FlattenArgs) -> anyhow::Result<Outcome> {
    let path = &args.image.path;
    ensure!(
        image::format(path, args.image.format)? == ImageFormat::Qcow2,
        "{}: a raw file has no backing file",
        path.display()
    );
    let report = flatten(args).with_context(|| path.display().to_string())?;
    let mut output = Output::new();
    if args.json {
        output.json(&json!({ "file": path.display().to_string(), "copied_bytes": report.copied_bytes }))?;
    } else {
        let copied = size(report.copied_bytes);
        output.fact(
            &path.display().to_string(),
            format_args!("stands alone, {copied} copied"),
        )?;
    }
    output.finish()?;
    Ok(Outcome::Good)
}

fn flatten(args: &FlattenArgs) -> anyhow::Result<FlattenReport> {
    let image = Image::open_chain(&args.image.path, &ImageOptions::default())?;
    let options = FlattenOptions {
        bytes_per_second: args.rate.and_then(|rate| NonZeroU64::new(rate.as_u64())),
    };
    let report = {
        let progress = Progress::new("flatten");
        let mut step = steps(&progress);
        qcow2::flatten::flatten(&image, &options, &mut |state| {
            step(state.done_bytes, state.total_bytes)
        })?
    };
    if let Some(image) = Arc::into_inner(image) {
        image.close()?;
    }
    Ok(report)
}
