use std::collections::BTreeMap;

use std::os::unix::fs::{FileExt, MetadataExt};

use ciborium::Value;
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::*;
use crate::config::DiskConfig;
use crate::driver::{Driver, Piece};
use crate::error::Error;
use crate::queue::QueueState;

mod full;
mod hostile;
mod images;
mod layers;
mod locks;
mod overlays;
mod requests;
mod saved;
mod small_medium;
mod traffic;

/// Sectors of a disk under test.
const SECTORS: u64 = 4096;

/// A disk with its image.
struct Image {
    file: NamedTempFile,
    disk: Disk,
}

fn config(path: &std::path::Path, readonly: bool) -> DiskConfig {
    DiskConfig {
        readonly,
        ..DiskConfig::new("disk0", path)
    }
}

impl Image {
    fn new() -> Self {
        Self::of(SECTORS * SECTOR_BYTES, false)
    }

    fn of(len: u64, readonly: bool) -> Self {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(len).unwrap();
        let disk = Disk::open(&config(file.path(), readonly)).unwrap();
        Self { file, disk }
    }

    fn device(&self) -> Block {
        Block::new(self.disk.clone())
    }

    fn content(&self, sector: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.file
            .as_file()
            .read_exact_at(&mut data, sector * SECTOR_BYTES)
            .unwrap();
        data
    }
}

/// Memory of one request.
struct Slot {
    header: u64,
    status: u64,
    data: u64,
}

/// Room for data in a [`Slot`].
const DATA_BYTES: u32 = 8192;

impl Slot {
    fn new(driver: &mut Driver) -> Self {
        let header = driver.allocate(4096);
        Self {
            header,
            status: header + 16,
            data: driver.allocate(DATA_BYTES.into()),
        }
    }

    /// Writes header and an impossible status.
    fn prepare(&self, driver: &Driver, kind: u32, sector: u64) {
        driver.store(self.header, &kind.to_le_bytes());
        driver.store(self.header + 8, &sector.to_le_bytes());
        driver.store(self.status, &[0xee]);
    }

    /// Makes a request available; returns its head.
    fn submit(&self, driver: &mut Driver, kind: u32, sector: u64, len: u32) -> u16 {
        self.prepare(driver, kind, sector);
        let data = (self.data, len);
        let (mut readable, mut writable) = (vec![(self.header, 16)], vec![]);
        if len > 0 {
            if matches!(kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID) {
                &mut writable
            } else {
                &mut readable
            }
            .push(data);
        }
        writable.push((self.status, 1));
        driver.add(0, &readable, &writable)
    }

    fn status(&self, driver: &Driver) -> u32 {
        driver.load(self.status, 1)[0].into()
    }
}

/// Carries out one request and returns its status and the bytes written.
fn request(driver: &mut Driver, slot: &Slot, kind: u32, sector: u64, len: u32) -> (u32, u32) {
    let head = slot.submit(driver, kind, sector, len);
    driver.kick(0);
    let (used, written) = driver.used(0);
    assert_eq!(used, head);
    (slot.status(driver), written)
}

/// One entry of a request to discard or to write zeros.
fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

#[test]
fn the_configuration_space_describes_the_disk() {
    let image = Image::new();
    let driver = Driver::started(image.device(), 0);
    assert_eq!(u64::from_le_bytes(driver.config(0)), SECTORS);
    assert_eq!(u32::from_le_bytes(driver.config(12)), 254, "seg_max");
    assert_eq!(u32::from_le_bytes(driver.config(20)), 512, "blk_size");
    assert_eq!(driver.config::<8>(4096 - 256), [0; 8], "beyond its end");
    assert_eq!(driver.features & 1 << VIRTIO_BLK_F_RO, 0);
}

#[test]
fn an_image_of_part_of_a_sector_is_refused() {
    for len in [0, 1, 511, 513] {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len(len).unwrap();
        let error = Disk::open(&config(file.path(), false)).unwrap_err();
        assert!(
            matches!(error, Error::DiskSize { len_bytes, .. } if len_bytes == len),
            "{error}"
        );
    }
}

#[test]
fn an_image_is_opened_for_writing_once_or_for_reading_often() {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(512).unwrap();
    let open = |readonly| Disk::open(&config(file.path(), readonly));
    let writer = open(false).unwrap();
    assert!(matches!(open(false), Err(Error::DiskInUse { .. })));
    assert!(matches!(open(true), Err(Error::DiskInUse { .. })));
    drop(writer);
    let readers = [open(true).unwrap(), open(true).unwrap()];
    assert!(matches!(open(false), Err(Error::DiskInUse { .. })));
    drop(readers);
    assert!(open(false).is_ok());
}

#[test]
fn a_missing_image_is_named() {
    let error = Disk::open(&config("/nonexistent/d.raw".as_ref(), false)).unwrap_err();
    assert_eq!(error.to_string(), "disk /nonexistent/d.raw");
}
