//! Reads guest memory of a snapshot at random, a page at a time.
//!
//! A chunk is decoded whole and kept: page tables and their neighbours share chunks. The cache is
//! emptied when full, which bounds it without a record of use.

use std::collections::HashMap;

use snapfile::{Decoder, PAGE_SIZE, Snapshot};

/// Bytes of decoded chunks that are kept.
const CACHE_BYTES: usize = 64 << 20;

const PAGE_BYTES: usize = 4096;
const _: () = assert!(PAGE_BYTES as u64 == PAGE_SIZE);

/// Guest memory, read on demand.
#[derive(Debug)]
pub struct GuestPages<'a> {
    snapshot: &'a Snapshot,
    decoder: Decoder<'a>,
    chunks: HashMap<u64, Vec<u8>>,
    cached_bytes: usize,
}

impl<'a> GuestPages<'a> {
    /// Reads memory of this snapshot.
    pub fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            snapshot,
            decoder: snapshot.decoder(),
            chunks: HashMap::new(),
            cached_bytes: 0,
        }
    }

    /// Returns the page at `guest_address`, rounded down to a page, or `None` where no memory is.
    pub fn page(&mut self, guest_address: u64) -> anyhow::Result<Option<&[u8; PAGE_BYTES]>> {
        let address = guest_address & !(PAGE_SIZE - 1);
        let layout = self.snapshot.layout();
        let Some(number) = layout.chunk_at(address) else {
            return Ok(None);
        };
        let Some(range) = layout.chunk(number) else {
            return Ok(None);
        };
        if !self.chunks.contains_key(&number.0) {
            let mut plain = vec![0; range.len_bytes as usize];
            self.decoder.read_chunk(number, &mut plain)?;
            if self.cached_bytes + plain.len() > CACHE_BYTES {
                self.chunks.clear();
                self.cached_bytes = 0;
            }
            self.cached_bytes += plain.len();
            self.chunks.insert(number.0, plain);
        }
        let offset = usize::try_from(address - range.guest_address)?;
        Ok(self
            .chunks
            .get(&number.0)
            .and_then(|plain| plain.get(offset..)?.first_chunk()))
    }

    /// Returns `len_bytes` of contiguous guest memory, or `None` where part of it is no memory.
    pub fn read(&mut self, guest_address: u64, len_bytes: usize) -> anyhow::Result<Option<Vec<u8>>> {
        let mut content = Vec::new();
        while content.len() < len_bytes {
            let Some(at) = guest_address.checked_add(content.len() as u64) else {
                return Ok(None);
            };
            let Some(page) = self.page(at)? else {
                return Ok(None);
            };
            let start = usize::try_from(at % PAGE_SIZE)?;
            let end = PAGE_BYTES.min(start + len_bytes - content.len());
            content.extend_from_slice(page.get(start..end).unwrap_or_default());
        }
        Ok(Some(content))
    }
}
