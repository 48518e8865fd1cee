//! `snaptool disk create`: a new image, empty or as an overlay.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use qcow2::{Access, Backing, CreateOptions, FileStorage, ImageFormat};
use serde_json::json;

use super::image::{self, Sharing};
use crate::Outcome;
use crate::cli::disk::CreateArgs;
use crate::output::{Output, size};

/// Runs the command.
pub fn run(args: &CreateArgs) -> anyhow::Result<Outcome> {
    let options = options(args)?;
    create(&args.path, &options).with_context(|| args.path.display().to_string())?;
    let mut output = Output::new();
    if args.json {
        output.json(&json!({
            "file": args.path.display().to_string(),
            "virtual_size_bytes": options.virtual_size_bytes,
            "cluster_bytes": 1u64 << options.cluster_bits,
        }))?;
    } else {
        output.fact(
            &args.path.display().to_string(),
            format_args!("created, {}", size(options.virtual_size_bytes)),
        )?;
    }
    output.finish()?;
    Ok(Outcome::Good)
}

fn options(args: &CreateArgs) -> anyhow::Result<CreateOptions> {
    let cluster_bytes = args.cluster_size.as_u64();
    ensure!(
        cluster_bytes.is_power_of_two(),
        "--cluster-size {cluster_bytes}: not a power of two"
    );
    let backing = match (&args.backing, args.backing_format) {
        (Some(name), Some(format)) => Some((name, ImageFormat::from(format))),
        _ => None,
    };
    let virtual_size_bytes = match (args.size, backing) {
        (Some(size), _) => size.as_u64(),
        (None, Some((name, format))) => len_of_backing(&args.path, name, format)?,
        (None, None) => bail!("a size or a backing file is needed"),
    };
    if let Some((name, format)) = backing {
        // An overlay over nothing is of no use, and found out late.
        len_of_backing(&args.path, name, format)?;
    }
    Ok(CreateOptions {
        cluster_bits: cluster_bytes.trailing_zeros(),
        refcount_bits: args.refcount_bits,
        backing: backing.map(|(name, format)| Backing::new(name, format)),
        ..CreateOptions::new(virtual_size_bytes)
    })
}

/// The length of the disk that a backing file holds, seen from the directory of the image.
fn len_of_backing(image: &Path, name: &Path, format: ImageFormat) -> anyhow::Result<u64> {
    let path: PathBuf = image.parent().unwrap_or(Path::new("")).join(name);
    let chain = image::open_chain(&path, format, Sharing::Forced)?;
    image::len_bytes(&chain).with_context(|| path.display().to_string())
}

/// Makes the image; it has its name only when it is whole and durable.
fn create(path: &Path, options: &CreateOptions) -> anyhow::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new()
        .prefix(".snaptool-")
        .tempfile_in(directory)?;
    let storage = FileStorage::from_file(file.as_file().try_clone()?, Access::ReadWrite);
    qcow2::create(&storage, options)?;
    file.persist_noclobber(path)?;
    Ok(File::open(directory)?.sync_all()?)
}
