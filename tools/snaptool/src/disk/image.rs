//! Opens images as a command was told to.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use qcow2::{Access, Cache, Chain, ChainLayer, FileStorage, ImageFormat, Metadata, Storage};

use crate::cli::disk::{FormatName, ImageArgs};

/// Whether other programs may have the image open for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// They may not: the file is locked as QEMU does.
    Locked,
    /// They may: nothing is locked, and what is read may be half written.
    Forced,
}

impl Sharing {
    /// As `--force-share` says.
    pub fn forced(force_share: bool) -> Self {
        if force_share { Self::Forced } else { Self::Locked }
    }
}

/// Returns the format that was stated, or that the name of the file states.
pub fn format(path: &Path, stated: Option<FormatName>) -> anyhow::Result<ImageFormat> {
    if let Some(stated) = stated {
        return Ok(stated.into());
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("qcow2") => Ok(ImageFormat::Qcow2),
        Some("raw" | "img") => Ok(ImageFormat::Raw),
        _ => bail!(
            "{}: the name does not tell the format; state it with --format",
            path.display()
        ),
    }
}

/// Opens an image and everything below it for reading.
///
/// # Errors
/// A layer cannot be opened.
pub fn open_chain(path: &Path, format: ImageFormat, sharing: Sharing) -> anyhow::Result<Chain> {
    Ok(match sharing {
        Sharing::Locked => Chain::open(path, format, Access::ReadOnly, Cache::Writeback)?,
        Sharing::Forced => Chain::open_shared(path, format)?,
    })
}

/// Opens an image for reading, and what is below it as far as that can be done.
///
/// # Errors
/// The image itself cannot be opened.
pub fn open_top(
    path: &Path,
    format: ImageFormat,
    sharing: Sharing,
) -> anyhow::Result<(Chain, Option<anyhow::Error>)> {
    open_chain(path, format, sharing)
        .map(|chain| (chain, None))
        .or_else(|error| {
            let top = open_storage(path, Access::ReadOnly, sharing)
                .and_then(|storage| Ok(ChainLayer::new(path.to_owned(), format, storage)?))
                .with_context(|| path.display().to_string())?;
            Ok((Chain { layers: vec![top] }, Some(error)))
        })
}

/// Returns the length of the disk that a chain holds.
pub fn len_bytes(chain: &Chain) -> anyhow::Result<u64> {
    let top = chain.layers.first().context("a chain has an image")?;
    match &top.header {
        Some(header) => Ok(header.virtual_size_bytes),
        None => Ok(top.storage.len()?),
    }
}

/// Opens the metadata of a qcow2 image.
pub fn open_metadata(image: &ImageArgs, access: Access, sharing: Sharing) -> anyhow::Result<Metadata> {
    let path = &image.path;
    ensure!(
        format(path, image.format)? == ImageFormat::Qcow2,
        "{}: a raw file has no metadata",
        path.display()
    );
    let open = || anyhow::Ok(Metadata::open(Arc::new(open_storage(path, access, sharing)?))?);
    open().with_context(|| path.display().to_string())
}

/// Opens one file.
pub fn open_storage(path: &Path, access: Access, sharing: Sharing) -> anyhow::Result<FileStorage> {
    match sharing {
        Sharing::Locked => Ok(FileStorage::open(path, access, Cache::Writeback)?),
        Sharing::Forced => Ok(FileStorage::from_file(File::open(path)?, access)),
    }
}

impl From<FormatName> for ImageFormat {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Raw => Self::Raw,
            FormatName::Qcow2 => Self::Qcow2,
        }
    }
}
