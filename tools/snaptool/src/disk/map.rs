//! `snaptool disk map`: where the content of a disk lies.

use qcow2::map::Extent;
use serde::Serialize;

use super::image::{self, Sharing};
use super::range;
use crate::Outcome;
use crate::cli::disk::MapArgs;
use crate::interrupt;
use crate::output::{Output, printable, size};

/// A range of the disk, with the fields of `qemu-img map --output=json`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    start: u64,
    length: u64,
    /// Layers above the one that says what the range holds.
    depth: u64,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    /// Where the data is in the file, if it is there as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
}

/// Runs the command.
pub fn run(args: &MapArgs) -> anyhow::Result<Outcome> {
    let format = image::format(&args.image.path, args.image.format)?;
    let chain = image::open_chain(&args.image.path, format, Sharing::forced(args.force_share))?;
    let files: Vec<String> = chain
        .layers
        .iter()
        .map(|layer| layer.path.display().to_string())
        .collect();
    let mut output = Output::new();
    let mut separator = "[";
    qcow2::map::map(&chain, &mut |extent| {
        if interrupt::check().is_err() {
            return Err(qcow2::Error::Cancelled);
        }
        let line = line(extent, &files);
        if args.json {
            output.line(separator)?;
            separator = ",";
            output.json_line(&line)?;
        } else {
            print(&line, &mut output)?;
        }
        Ok(())
    })?;
    if args.json {
        output.line(if separator == "[" { "[]" } else { "]" })?;
    }
    output.finish()?;
    Ok(Outcome::Good)
}

fn line<'a>(extent: &Extent, files: &'a [String]) -> Line<'a> {
    Line {
        start: extent.start,
        length: extent.length,
        depth: extent.depth,
        present: extent.present,
        zero: extent.zero,
        data: extent.data,
        compressed: extent.compressed,
        offset: extent.offset,
        file: extent
            .present
            .then(|| files.get(extent.layer).map(String::as_str))
            .flatten(),
    }
}

fn print(line: &Line<'_>, output: &mut Output) -> std::io::Result<()> {
    let what = match (line.data, line.zero, line.compressed) {
        (true, _, true) => "compressed",
        (true, _, false) => "data",
        (false, true, _) => "zeros",
        (false, false, _) => "nothing",
    };
    let file = line
        .file
        .map_or(String::new(), |file| format!(" in {}", printable(file)));
    let offset = line
        .offset
        .map_or(String::new(), |offset| format!(" at {offset:#x}"));
    output.fact(
        &range(line.start, line.length),
        format_args!("{}, {what}{file}{offset}", size(line.length)),
    )
}
