//! Disks whose bytes are in a qcow2 image and its backing files.

use std::io;
use std::sync::Arc;

use qcow2::Image;

use crate::block::{BlockBackend, GuestBuffers, bounce};

/// A qcow2 image. What a request moves goes through a buffer, so that the image sees it in one piece.
#[derive(Clone, Debug)]
pub(super) struct ImageFile(pub(super) Arc<Image>);

impl BlockBackend for ImageFile {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }

    fn unit_bytes(&self) -> u64 {
        self.0.cluster_size().bytes()
    }

    fn read_at(&self, buffers: GuestBuffers<'_, '_>, offset: u64) -> io::Result<()> {
        bounce::read(buffers, offset, |piece, offset| {
            self.0.read_at(piece, offset).map_err(to_io)
        })
    }

    fn write_at(&self, buffers: GuestBuffers<'_, '_>, offset: u64) -> io::Result<()> {
        bounce::write(buffers, offset, |piece, offset| {
            self.0.write_at(piece, offset).map_err(to_io)
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush().map_err(to_io)
    }

    fn discard(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.0.discard(offset, len_bytes).map_err(to_io)
    }

    fn write_zeroes(&self, offset: u64, len_bytes: u64, may_unmap: bool) -> io::Result<()> {
        self.0.write_zeroes(offset, len_bytes, may_unmap).map_err(to_io)
    }
}

/// Keeps the kind of what the system answered: a full medium is dealt with by the disk's policy.
fn to_io(error: qcow2::Error) -> io::Error {
    match error {
        qcow2::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}
