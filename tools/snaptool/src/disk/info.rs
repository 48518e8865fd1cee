//! `snaptool disk info`: an image and its backing chain.

use std::path::Path;

use anyhow::Context;
use qcow2::{ChainLayer, ImageFormat, ImageInfo, Metadata, Storage};
use serde::Serialize;

use super::image::{self, Sharing};
use super::snapshot;
use crate::Outcome;
use crate::cli::disk::InfoArgs;
use crate::output::{Output, printable, size};

/// One image of the chain, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Layer {
    file: String,
    format: ImageFormat,
    /// Length of the file, holes included.
    file_bytes: u64,
    /// What it takes on the medium.
    allocated_bytes: u64,
    virtual_size_bytes: u64,
    /// What a qcow2 image says of itself.
    qcow2: Option<ImageInfo>,
}

/// The answer, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Report {
    /// The image first, then its backing file, and so on down.
    layers: Vec<Layer>,
    /// Why the chain cannot be followed to its end.
    incomplete: Option<String>,
}

/// Runs the command.
pub fn run(args: &InfoArgs) -> anyhow::Result<Outcome> {
    let path = &args.image.path;
    let format = image::format(path, args.image.format)?;
    let (chain, end) = image::open_top(path, format, Sharing::forced(args.force_share))?;
    let layers = chain.layers.iter().map(describe).collect::<anyhow::Result<_>>()?;
    let incomplete = end.map(|error| format!("{error:#}"));
    let report = Report { layers, incomplete };
    let mut output = Output::new();
    if args.json {
        output.json(&report)?;
    } else {
        print(&report, &mut output)?;
    }
    output.finish()?;
    Ok(Outcome::Good)
}

fn describe(layer: &ChainLayer) -> anyhow::Result<Layer> {
    let describe = || -> anyhow::Result<Layer> {
        let qcow2 = match layer.format {
            ImageFormat::Raw => None,
            ImageFormat::Qcow2 => Some(qcow2::info(&Metadata::open(layer.storage.clone())?)?),
        };
        let file_bytes = layer.storage.len()?;
        Ok(Layer {
            file: layer.path.display().to_string(),
            format: layer.format,
            file_bytes,
            allocated_bytes: allocated(&layer.path)?,
            virtual_size_bytes: qcow2.as_ref().map_or(file_bytes, |info| info.virtual_size_bytes),
            qcow2,
        })
    };
    describe().with_context(|| layer.path.display().to_string())
}

fn allocated(path: &Path) -> std::io::Result<u64> {
    // Blocks are of 512 bytes whatever the file system.
    std::fs::metadata(path).map(|data| std::os::unix::fs::MetadataExt::blocks(&data).saturating_mul(512))
}

fn print(report: &Report, output: &mut Output) -> std::io::Result<()> {
    for (depth, layer) in report.layers.iter().enumerate() {
        if depth > 0 {
            output.line("")?;
        }
        output.fact(
            if depth == 0 { "image" } else { "backing file" },
            printable(&layer.file),
        )?;
        output.fact("format", layer.format)?;
        output.fact("virtual size", size(layer.virtual_size_bytes))?;
        output.fact(
            "file",
            format_args!(
                "{}, {} of it on the medium",
                size(layer.file_bytes),
                size(layer.allocated_bytes)
            ),
        )?;
        if let Some(info) = &layer.qcow2 {
            print_qcow2(info, output)?;
        }
    }
    if let Some(why) = &report.incomplete {
        output.line("")?;
        output.fact("backing file", format_args!("not readable: {}", printable(why)))?;
    }
    Ok(())
}

fn print_qcow2(info: &ImageInfo, output: &mut Output) -> std::io::Result<()> {
    output.fact("qcow2 version", info.version)?;
    output.fact("cluster", size(info.cluster_bytes))?;
    output.fact("refcounts", format_args!("{} bits", info.refcount_bits))?;
    output.fact("compression", info.compression)?;
    if info.lazy_refcounts {
        output.fact("lazy refcounts", "yes")?;
    }
    if info.dirty {
        output.fact("state", "dirty: its refcounts may be wrong until it is repaired")?;
    }
    if info.corrupt {
        output.fact(
            "state",
            "marked corrupt: it may only be read until it is repaired",
        )?;
    }
    if let Some(backing) = &info.backing {
        let format = backing.format.as_deref().unwrap_or("not stated");
        output.fact(
            "names as backing file",
            format_args!("{}, format {}", printable(&backing.name), printable(format)),
        )?;
        for snapshot in &backing.frozen_for {
            output.fact(
                "backing file is needed by",
                printable(&snapshot.display().to_string()),
            )?;
        }
    }
    if let Some(bitmaps) = info.bitmaps {
        let state = if bitmaps.consistent { "" } else { ", out of date" };
        output.fact("bitmaps", format_args!("{}{state}", bitmaps.count))?;
    }
    for extension in &info.unknown_extensions {
        output.fact(
            "unknown extension",
            format_args!("{:#010x}, {} bytes", extension.kind, extension.len_bytes),
        )?;
    }
    for entry in &info.snapshots {
        output.fact("snapshot", snapshot::describe(entry))?;
    }
    Ok(())
}
