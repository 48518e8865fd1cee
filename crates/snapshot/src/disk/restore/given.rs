//! Disks that the snapshot only recorded: they are used where they are.

use vmm::{Disk, DiskConfig};

use super::layers::{check_layers, open_chain, parse_format};
use super::{DiskResult, Places, open_disk};
use crate::disk::{DiskEntry, DiskError, LayerKind};

/// Opens the file that the caller gave, or of a read-only disk the one that the machine had.
pub(super) fn open(entry: &DiskEntry, config: &mut DiskConfig, places: &Places<'_>) -> DiskResult<Disk> {
    match places.given.get(&entry.id) {
        Some(path) => config.file.clone_from(path),
        None if entry.readonly => {}
        None => return Err(DiskError::NotKept),
    }
    config.format = parse_format(&entry.format)?;
    if !config.file.exists() {
        return Err(DiskError::Missing {
            what: LayerKind::Image,
            path: config.file.clone(),
        });
    }
    if !entry.layers.is_empty() {
        let chain = open_chain(&config.file, config.format)?;
        check_layers(entry, &chain, 0, places)?;
    }
    open_disk(config)
}
