//! The content of a disk as of a snapshot, as a restored guest would read it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use qcow2::{Chain, Image, ImageFormat, ImageOptions, Layer, RawImage};

use super::Disk;

/// What tells a layer from others: its file, and the internal snapshot if it is the view of one.
type Identity = (u64, u64, Option<String>);

/// The layers of a disk, open for reading.
#[derive(Debug)]
pub struct Content {
    /// The top layer, which reads through all others.
    pub top: Arc<dyn Layer>,
    /// The file of the top layer.
    pub file: PathBuf,
    /// Every layer from the top down.
    layers: Vec<(Identity, Arc<dyn Layer>)>,
}

impl Content {
    /// Opens the disk of a snapshot.
    ///
    /// # Errors
    /// Nothing of the content was kept, a file is missing, or a layer cannot be opened.
    pub fn open(disk: &Disk, snapshot: &Path) -> anyhow::Result<Self> {
        let files = disk.files(snapshot);
        let Some(first) = files.first() else {
            bail!("nothing of its content was kept");
        };
        if let Some(missing) = files.iter().position(Option::is_none) {
            let name = disk.layers.get(missing).and_then(|layer| layer.file.clone());
            bail!(
                "{}: it is not there",
                name.unwrap_or_else(|| "a layer".to_owned())
            );
        }
        let file = first.clone().context("its file is not there")?;
        let format = ImageFormat::from_name(&disk.format)
            .with_context(|| format!("its format {:?} is not known", disk.format))?;
        let internal = disk.internal.as_ref().map(|internal| internal.id.clone());
        let top: Arc<dyn Layer> = match &internal {
            // The machine may go on writing to the image: what a snapshot refers to does not change by that.
            Some(id) => snapshot_view(Chain::open_shared(&file, ImageFormat::Qcow2)?, id)?,
            None => qcow2::open_layer(&file, format, &ImageOptions::read_only())?,
        };
        let mut layers = Vec::new();
        let mut next = Some(top.clone());
        while let Some(layer) = next {
            let path = layer.info().path.unwrap_or_else(|| file.clone());
            let data = std::fs::metadata(&path).with_context(|| path.display().to_string())?;
            let view = internal.clone().filter(|_| layers.is_empty());
            next = layer.backing();
            layers.push(((data.dev(), data.ino(), view), layer));
        }
        Ok(Self { top, file, layers })
    }

    /// Returns the layers that each of two disks has above those that both have.
    pub fn above_common<'a>(&'a self, other: &'a Self) -> (Vec<&'a dyn Layer>, Vec<&'a dyn Layer>) {
        let ends = self.layers.iter().rev().zip(other.layers.iter().rev());
        let common = ends.take_while(|((left, _), (right, _))| left == right).count();
        let own = |content: &'a Self| {
            let count = content.layers.len() - common;
            content
                .layers
                .iter()
                .take(count)
                .map(|(_, layer)| layer.as_ref())
                .collect()
        };
        (own(self), own(other))
    }

    /// Whether both are internal snapshots of one image.
    pub fn is_of_same_image(&self, other: &Self) -> bool {
        let top = |content: &Self| content.layers.first().map(|(identity, _)| identity.clone());
        match (top(self), top(other)) {
            (Some((dev, ino, Some(_))), Some((other_dev, other_ino, Some(_)))) => {
                (dev, ino) == (other_dev, other_ino)
            }
            _ => false,
        }
    }
}

fn snapshot_view(mut chain: Chain, id: &str) -> anyhow::Result<Arc<dyn Layer>> {
    let options = ImageOptions::read_only();
    let below = chain.layers.split_off(1);
    let backing: Option<Arc<dyn Layer>> = match below.first() {
        None => None,
        Some(first) if first.format == ImageFormat::Raw => {
            let path = Some(first.path.clone());
            Some(Arc::new(RawImage::from_file(first.storage.clone(), path)?))
        }
        Some(_) => Some(Image::from_chain(Chain { layers: below }, &options)?),
    };
    let top = chain.layers.pop().context("a chain has an image")?;
    Ok(Arc::new(Image::open_snapshot(
        top.storage,
        backing,
        id,
        &options,
    )?))
}
