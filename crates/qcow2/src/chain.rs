//! The chain of backing files below an image.
//!
//! Names are relative to the image that states them, formats are stated and never guessed from content that a
//! guest may have written, and a chain ends: no file is below itself, and the depth has a limit. The images
//! below the top are opened for reading only.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{ChainError, Error, Result};
use crate::header::{Backing, Header};
use crate::limits::MAX_CHAIN_DEPTH;
use crate::storage::{Access, Cache, FileStorage};

/// How the bytes of a disk are in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Byte for byte.
    Raw,
    /// As a qcow2 image.
    Qcow2,
}

impl ImageFormat {
    /// Returns the name, the one that QEMU uses, too.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// Returns the format of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "raw" => Some(Self::Raw),
            "qcow2" => Some(Self::Qcow2),
            _ => None,
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// An image and everything below it, from the top down.
#[derive(Debug)]
pub struct Chain {
    /// The layers; never empty.
    pub layers: Vec<ChainLayer>,
}

/// One image of a chain.
#[derive(Clone, Debug)]
pub struct ChainLayer {
    /// Its file, as the image above names it, made relative to what that image's path is relative to.
    pub path: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Its file, open and locked.
    pub storage: Arc<FileStorage>,
    /// Its header where it is a qcow2 image.
    pub header: Option<Header>,
}

impl Chain {
    /// Opens the image at `path` for `access`, and all below it for reading.
    ///
    /// # Errors
    /// A file cannot be opened, is in use, or is refused; a format is not stated; the chain loops or is too deep.
    pub fn open(path: &Path, format: ImageFormat, access: Access, cache: Cache) -> Result<Self> {
        Self::open_with(path, format, access, |path, access| {
            FileStorage::open(path, access, cache)
        })
    }

    /// Opens the image at `path` and all below it for reading, even while another program writes to them.
    ///
    /// What is read may then be neither the one state nor the other, and looks corrupt at times.
    ///
    /// # Errors
    /// As [`Chain::open`], except that nothing is in use.
    pub fn open_shared(path: &Path, format: ImageFormat) -> Result<Self> {
        Self::open_with(path, format, Access::ReadOnly, |path, access| {
            Ok(FileStorage::from_file(File::open(path)?, access))
        })
    }

    fn open_with(
        path: &Path,
        format: ImageFormat,
        access: Access,
        open: impl Fn(&Path, Access) -> Result<FileStorage>,
    ) -> Result<Self> {
        let mut layers = Vec::new();
        let mut seen = HashSet::new();
        let mut next = Some((path.to_owned(), format, access));
        while let Some((path, format, access)) = next {
            if layers.len() == MAX_CHAIN_DEPTH {
                return Err(ChainError::TooDeep.into());
            }
            // Before it is opened: our own lock on the layer above would be in the way.
            let identity = std::fs::metadata(&path).map_err(|error| in_layer(&path, error.into()))?;
            if !seen.insert((identity.dev(), identity.ino())) {
                return Err(ChainError::Loop { path }.into());
            }
            let layer = open(&path, access)
                .and_then(|storage| ChainLayer::new(path.clone(), format, storage))
                .map_err(|error| in_layer(&path, error))?;
            next = match layer.header.as_ref().and_then(Header::backing) {
                Some(backing) => {
                    let (below, format) = resolve(&path, &backing)?;
                    Some((below, format, Access::ReadOnly))
                }
                None => None,
            };
            layers.push(layer);
        }
        Ok(Self { layers })
    }

    /// Returns the number of layers.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.layers.len()
    }
}

impl ChainLayer {
    /// Takes an open file as a layer.
    ///
    /// # Errors
    /// It is said to be a qcow2 image, and its header is refused.
    pub fn new(path: PathBuf, format: ImageFormat, storage: FileStorage) -> Result<Self> {
        let header = match format {
            ImageFormat::Raw => None,
            ImageFormat::Qcow2 => Some(Header::read(&storage)?),
        };
        Ok(Self {
            path,
            format,
            storage: Arc::new(storage),
            header,
        })
    }
}

/// Says which layer an error is of, unless it says so itself.
fn in_layer(path: &Path, error: Error) -> Error {
    match error {
        Error::InUse { .. } | Error::Chain(_) => error,
        error => Error::Chain(ChainError::Layer {
            path: path.to_owned(),
            source: Box::new(error),
        }),
    }
}

/// Returns the file and the format of the backing file that the image at `path` names.
///
/// # Errors
/// The format is not stated or not known, or the name is not a local file's.
pub fn resolve(path: &Path, backing: &Backing) -> Result<(PathBuf, ImageFormat)> {
    let name = backing.name.to_string_lossy().into_owned();
    let path_of_image = || path.to_owned();
    let Some(format) = &backing.format else {
        return Err(ChainError::FormatNotStated {
            path: path_of_image(),
            name,
        }
        .into());
    };
    let Some(known) = ImageFormat::from_name(format) else {
        return Err(ChainError::Format {
            path: path_of_image(),
            format: format.clone(),
        }
        .into());
    };
    let Some(file) = local_file(&backing.name) else {
        return Err(ChainError::Protocol {
            path: path_of_image(),
            name,
        }
        .into());
    };
    let directory = path.parent().unwrap_or(Path::new(""));
    Ok((directory.join(file), known))
}

/// Returns the file that a name means, or nothing if it names a protocol.
///
/// As with QEMU, a colon before the first slash ends a protocol's name; of these, `file` is ours.
fn local_file(name: &OsStr) -> Option<&Path> {
    let bytes = name.as_bytes();
    let bytes = bytes.strip_prefix(b"file:").unwrap_or(bytes);
    let stop = bytes.iter().find(|byte| matches!(**byte, b':' | b'/'));
    (stop != Some(&b':') && !bytes.is_empty()).then(|| Path::new(OsStr::from_bytes(bytes)))
}
