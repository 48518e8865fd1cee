//! Takes header and frames off a stream and knows where in the file it is.

use std::io::{ErrorKind, Read};

use crate::error::{Corruption, Error, Result};
use crate::format::{FrameHeader, HEADER_LEN, MAGIC};
use crate::frame::{FRAME_HEADER_LEN, FrameInfo};

/// A stream and the offset of its next byte in the file.
#[derive(Debug)]
pub(super) struct Input<R> {
    inner: R,
    offset: u64,
}

impl<R: Read> Input<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, offset: 0 }
    }

    /// Reads the first page; a stream that ends early is incomplete if what came is a header's start.
    pub(super) fn header_page(&mut self) -> Result<[u8; HEADER_LEN]> {
        let mut page = [0; HEADER_LEN];
        let there = self.fill(&mut page)?;
        if there == HEADER_LEN {
            return Ok(page);
        }
        let magic = MAGIC.get(..there.min(MAGIC.len())).unwrap_or(&MAGIC);
        if page.starts_with(magic) {
            Err(self.incomplete())
        } else {
            Err(Corruption::Magic {}.into())
        }
    }

    /// Reads the next frame; `padded` becomes payload and padding, the checksum yet unchecked.
    pub(super) fn frame(&mut self, padded: &mut Vec<u8>) -> Result<FrameInfo> {
        let offset = self.offset;
        let mut head = [0; FrameHeader::LEN];
        if self.fill(&mut head)? < FrameHeader::LEN {
            return Err(self.incomplete());
        }
        let frame = FrameInfo::parse(&head, offset)?;
        padded.clear();
        // Memory grows with what comes, not with what is promised.
        let there = self.inner.by_ref().take(frame.padded_len()).read_to_end(padded)?;
        self.offset += there as u64;
        if there as u64 != frame.padded_len() {
            return Err(self.incomplete());
        }
        debug_assert_eq!(
            self.offset,
            offset + FRAME_HEADER_LEN + frame.padded_len(),
            "all bytes are counted"
        );
        Ok(frame)
    }

    /// Returns whether anything follows.
    pub(super) fn has_more(&mut self) -> Result<bool> {
        Ok(self.fill(&mut [0])? > 0)
    }

    fn incomplete(&self) -> Error {
        Error::Incomplete {
            len_bytes: self.offset,
        }
    }

    /// Reads until `buf` is full or the stream ends; returns how much came.
    fn fill(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut there = 0;
        while let Some(rest) = buf.get_mut(there..).filter(|rest| !rest.is_empty()) {
            match self.inner.read(rest) {
                Ok(0) => break,
                Ok(len) => there += len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.offset += there as u64;
        Ok(there)
    }
}
