//! The device: features, configuration space, and the worker's life.

use ciborium::Value;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use crate::block::handler::Handler;
use crate::block::request::{MAX_RANGE_SECTORS, MAX_RANGES, MAX_SEGMENTS};
use crate::block::{Disk, SECTOR_BYTES};
use crate::device::{VirtioDevice, from_value, read_config_bytes, to_value};
use crate::error::{Error, Result};
use crate::worker::{Work, Worker};

/// Entries of the one queue: requests that can be under way at once, with indirect descriptors.
const QUEUE_SIZE: u16 = 256;
/// Block size shown to the guest, that of a sector.
const BLOCK_BYTES: u32 = 512;
/// Length of the configuration space that is described here (virtio 1.2, 5.2.4).
const CONFIG_BYTES: usize = 60;

/// The block device.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    config: [u8; CONFIG_BYTES],
    worker: Worker<Handler>,
}

/// The device's own saved state: what must be the same when the guest goes on.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    len_bytes: u64,
    read_only: bool,
}

impl Block {
    /// Makes the device of `disk`.
    #[must_use]
    pub fn new(disk: Disk) -> Self {
        let worker = Worker::new(format!("blk-{}", disk.id()), Handler::new(disk.clone()));
        Self {
            config: config_space(&disk),
            disk,
            worker,
        }
    }

    fn read_only(&self) -> bool {
        self.disk.is_read_only()
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let features = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        features
            | if self.read_only() {
                1 << VIRTIO_BLK_F_RO
            } else {
                1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    /// Nothing can be written: the one field that could be, the cache mode, is not offered.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn worker(&self) -> &dyn Work {
        &self.worker
    }

    fn worker_mut(&mut self) -> &mut dyn Work {
        &mut self.worker
    }

    /// What waits for room on the medium is forgotten, for its driver has forgotten it.
    fn reset(&mut self) -> Result<()> {
        self.worker.reset()?;
        self.worker.with_handler(Handler::forget_waiting)
    }

    /// A request that waits for room on the medium is in no saved state, so there is none while one does.
    fn save(&self) -> Result<Value> {
        if self.worker.look(Handler::waits_for_room)? {
            return Err(self.disk.full());
        }
        to_value(&State {
            len_bytes: self.disk.len_bytes(),
            read_only: self.read_only(),
        })
    }

    /// The guest knows the disk's size and whether it may write: a disk that differs is refused. How the files
    /// make the disk's bytes is not the guest's to know, and neither is what of them is discarded as a whole.
    fn restore(&mut self, version: u32, state: &Value) -> Result<()> {
        let saved: State = from_value(self.version(), version, state)?;
        let here = State {
            len_bytes: self.disk.len_bytes(),
            read_only: self.read_only(),
        };
        if saved.len_bytes != here.len_bytes || saved.read_only != here.read_only {
            let words = |state: &State| {
                let access = if state.read_only { "read-only" } else { "writable" };
                format!("{} bytes, {access}", state.len_bytes)
            };
            let problem = format!("disk of {}; this one of {}", words(&saved), words(&here));
            return Err(Error::State { problem });
        }
        Ok(())
    }
}

/// Returns the configuration space (`struct virtio_blk_config`; virtio 1.2, 5.2.4).
fn config_space(disk: &Disk) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let mut set = |offset: usize, value: &[u8]| {
        for (to, from) in space.iter_mut().skip(offset).zip(value) {
            *to = *from;
        }
    };
    let unit_sectors = u32::try_from(disk.backend().unit_bytes() / SECTOR_BYTES).unwrap_or(1);
    set(0, &(disk.len_bytes() / SECTOR_BYTES).to_le_bytes()); // capacity
    set(12, &MAX_SEGMENTS.to_le_bytes()); // seg_max
    set(20, &BLOCK_BYTES.to_le_bytes()); // blk_size
    set(36, &MAX_RANGE_SECTORS.to_le_bytes()); // max_discard_sectors
    set(40, &MAX_RANGES.to_le_bytes()); // max_discard_seg
    set(44, &unit_sectors.to_le_bytes()); // discard_sector_alignment
    set(48, &MAX_RANGE_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
    set(52, &MAX_RANGES.to_le_bytes()); // max_write_zeroes_seg
    set(56, &[1]); // write_zeroes_may_unmap
    space
}
