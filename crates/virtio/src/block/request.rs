//! One request: read from its chain, checked, carried out (virtio 1.2, 5.2.6).

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{GuestMemoryError, GuestMemoryMmap};

use crate::block::{Disk, SECTOR_BYTES};
use crate::config::OnFull;
use crate::error::{Error, Result};
use crate::queue::{Buffers, Chain, Segments};

/// Most pieces of memory of a request's data that a driver is to use: the queue's size without header and
/// status.
pub(super) const MAX_SEGMENTS: u32 = 254;
/// Most ranges of one request to discard or to write zeros.
pub(super) const MAX_RANGES: u32 = 32;
/// Most sectors of one such range, 2 GiB: zeros may have to be written one by one.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 22;

/// Bytes of `type`, `reserved` and `sector`.
const HEADER_BYTES: usize = 16;
/// Bytes of one range.
const RANGE_BYTES: usize = 16;
/// Bytes of a disk's serial number.
const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// A request with room for its status.
#[derive(Debug)]
pub(super) struct Request {
    head: u16,
    kind: u32,
    sector: u64,
    /// What follows the header.
    readable: Segments,
    /// What precedes the status.
    writable: Segments,
    status: Segments,
}

/// What a request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    status: u32,
    /// Bytes written from the beginning of the writable memory on; nothing if an unknown part was.
    written: Option<u64>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The chain to be given back.
    pub(super) head: u16,
    /// Bytes written from the beginning of the chain's writable memory on.
    pub(super) written: u32,
}

/// Why a request failed.
enum Failure {
    /// The request is none that this device knows.
    Unsupported,
    /// The request breaks a rule, or its memory is none.
    Invalid(&'static str),
    /// The medium failed.
    Medium(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Medium(error)
    }
}

impl From<GuestMemoryError> for Failure {
    fn from(_: GuestMemoryError) -> Self {
        Self::Invalid("buffer outside guest memory")
    }
}

/// A range to discard or to write zeros (`struct virtio_blk_discard_write_zeroes`).
struct Range {
    offset: u64,
    len_bytes: u64,
    may_unmap: bool,
}

impl Request {
    /// Reads the header of a request.
    ///
    /// # Errors
    /// The chain is malformed, has no header or no room for a status.
    pub(super) fn parse(chain: Chain<'_>, memory: &GuestMemoryMmap, queue: usize) -> Result<Self> {
        let fail = |problem| Error::Protocol { queue, problem };
        let Buffers {
            head,
            mut readable,
            mut writable,
        } = Buffers::of(chain, queue)?;
        let status = writable
            .split_back(1)
            .ok_or(fail("a request has no room for its status"))?;
        let header = readable
            .split_front(HEADER_BYTES as u64)
            .ok_or(fail("a request has no header"))?;
        let mut bytes = [0; HEADER_BYTES];
        header
            .read(memory, &mut bytes)
            .map_err(|_| fail("a request's header is outside guest memory"))?;
        status
            .slices(memory)
            .map_err(|_| fail("a request's status is outside guest memory"))?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = bytes;
        Ok(Self {
            head,
            kind: u32::from_le_bytes([a, b, c, d]),
            sector: u64::from_le_bytes(sector),
            readable,
            writable,
            status,
        })
    }

    /// Tells whether the request is one to make everything durable.
    pub(super) fn is_flush(&self) -> bool {
        self.kind == VIRTIO_BLK_T_FLUSH
    }

    /// Carries the request out and writes its data. There is no answer yet if the medium has no room and the
    /// disk's policy is to wait: the request is to be carried out once more.
    pub(super) fn carry_out(&self, disk: &Disk, memory: &GuestMemoryMmap) -> Option<Answer> {
        let status = match self.perform(disk, memory) {
            Ok(written) => {
                return Some(Answer {
                    status: VIRTIO_BLK_S_OK,
                    written: Some(written),
                });
            }
            Err(Failure::Medium(error)) if is_full(&error) && disk.config().on_full == OnFull::Pause => {
                return None;
            }
            Err(Failure::Unsupported) => {
                tracing::debug!(disk = disk.id(), kind = self.kind, "unknown request");
                VIRTIO_BLK_S_UNSUPP
            }
            Err(Failure::Invalid(problem)) => {
                tracing::debug!(
                    disk = disk.id(),
                    kind = self.kind,
                    sector = self.sector,
                    problem,
                    "bad request"
                );
                VIRTIO_BLK_S_IOERR
            }
            Err(Failure::Medium(error)) => {
                tracing::warn!(disk = disk.id(), kind = self.kind, sector = self.sector, %error, "disk error");
                VIRTIO_BLK_S_IOERR
            }
        };
        Some(Answer {
            status,
            written: None,
        })
    }

    /// Writes the status; the caller gives the chain back.
    pub(super) fn answer(&self, memory: &GuestMemoryMmap, answer: Answer) -> Outcome {
        // Memory does not go away, so the status that could be reached when the request was read still can.
        let _ = self.status.write(memory, &answer.status.to_le_bytes()[..1]);
        // Only what is written without a gap from the beginning counts, the status if the data before it is.
        let room = self.writable.len_bytes();
        let written = match answer.written {
            Some(written) if written < room => written,
            Some(written) => written + 1,
            None if room == 0 => 1,
            None => 0,
        };
        Outcome {
            head: self.head,
            written: u32::try_from(written).unwrap_or(u32::MAX),
        }
    }

    /// Returns the bytes written from the beginning of the writable memory on.
    fn perform(&self, disk: &Disk, memory: &GuestMemoryMmap) -> std::result::Result<u64, Failure> {
        let backend = disk.backend();
        let read_only = || Failure::Invalid("write to a read-only disk");
        match self.kind {
            VIRTIO_BLK_T_IN => {
                let offset = self.check_data(disk, &self.writable)?;
                backend.read_at(&self.writable.slices(memory)?, offset)?;
                Ok(self.writable.len_bytes())
            }
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if disk.is_read_only() => {
                Err(read_only())
            }
            VIRTIO_BLK_T_OUT => {
                let offset = self.check_data(disk, &self.readable)?;
                backend.write_at(&self.readable.slices(memory)?, offset)?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => backend.flush().map(|()| 0).map_err(Failure::Medium),
            VIRTIO_BLK_T_GET_ID => {
                let room = self.writable.len_bytes().min(ID_BYTES as u64);
                let id = disk.id().bytes().chain(std::iter::repeat(0));
                let id: Vec<u8> = id.take(usize::try_from(room).unwrap_or(ID_BYTES)).collect();
                self.writable.write(memory, &id)?;
                Ok(room)
            }
            VIRTIO_BLK_T_DISCARD => {
                for range in self.ranges(disk, memory, 0)? {
                    backend.discard(range.offset, range.len_bytes)?;
                }
                Ok(0)
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                for range in self.ranges(disk, memory, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)? {
                    backend.write_zeroes(range.offset, range.len_bytes, range.may_unmap)?;
                }
                Ok(0)
            }
            _ => Err(Failure::Unsupported),
        }
    }

    /// Returns the position on the disk of `data`, if it is whole sectors inside the disk.
    fn check_data(&self, disk: &Disk, data: &Segments) -> std::result::Result<u64, Failure> {
        place(disk, self.sector, data.len_bytes())
    }

    /// Reads the ranges of a request, whose flags may be of those `allowed`; all are checked before the first is
    /// touched.
    fn ranges(
        &self,
        disk: &Disk,
        memory: &GuestMemoryMmap,
        allowed: u32,
    ) -> std::result::Result<Vec<Range>, Failure> {
        let len = usize::try_from(self.readable.len_bytes()).unwrap_or(usize::MAX);
        if len == 0 || !len.is_multiple_of(RANGE_BYTES) || len > MAX_RANGES as usize * RANGE_BYTES {
            return Err(Failure::Invalid("number of ranges"));
        }
        let mut bytes = vec![0; len];
        self.readable.read(memory, &mut bytes)?;
        let mut ranges = Vec::with_capacity(len / RANGE_BYTES);
        for entry in bytes.as_chunks::<RANGE_BYTES>().0 {
            let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = *entry;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            let flags = u32::from_le_bytes(flags);
            if flags & !allowed != 0 {
                return Err(Failure::Unsupported);
            }
            if sectors == 0 || sectors > MAX_RANGE_SECTORS {
                return Err(Failure::Invalid("length of a range"));
            }
            let len_bytes = u64::from(sectors) * SECTOR_BYTES;
            let offset = place(disk, sector, len_bytes)?;
            ranges.push(Range {
                offset,
                len_bytes,
                may_unmap: flags != 0,
            });
        }
        Ok(ranges)
    }
}

/// Tells whether the medium has no room, or its owner may not use more of it.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Returns the position in bytes of `len_bytes` at `sector`, if they are whole sectors inside the disk.
fn place(disk: &Disk, sector: u64, len_bytes: u64) -> std::result::Result<u64, Failure> {
    if !len_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Failure::Invalid("part of a sector"));
    }
    let offset = sector.checked_mul(SECTOR_BYTES);
    offset
        .filter(|offset| {
            offset
                .checked_add(len_bytes)
                .is_some_and(|end| end <= disk.len_bytes())
        })
        .ok_or(Failure::Invalid("beyond the end of the disk"))
}
