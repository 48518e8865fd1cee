//! Changes files as the specification lays them out, independently of the crate's own parsers.
//!
//! Offsets are those of the specification's tables. After a change, `seal` makes checksums right
//! again, so that only the rule that was meant to be broken is.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the files are a few kilobytes long"
)]

/// Offsets in a frame header (spec 5.2).
pub mod frame {
    pub const TYPE: usize = 4;
    pub const KIND: usize = 5;
    pub const FLAGS: usize = 6;
    pub const KEY: usize = 8;
    pub const STORED_LEN: usize = 16;
    pub const PLAIN_LEN: usize = 20;
    pub const DIGEST: usize = 24;
    pub const PAYLOAD_CRC: usize = 56;
    pub const HEADER_CRC: usize = 60;
    pub const PAYLOAD: usize = 64;
}

/// Offsets in the footer's frame (spec 10.1).
pub mod footer {
    pub const FILE_LEN: usize = 64;
    pub const ROOT_OFFSET: usize = 64 + 8;
    pub const DIRECTORY_OFFSET: usize = 64 + 16;
    pub const ROOT_CRC: usize = 64 + 24;
    pub const DIRECTORY_CRC: usize = 64 + 28;
    pub const ROOT_DIGEST: usize = 64 + 32;
    pub const ZERO_CHUNKS: usize = 64 + 64;
    pub const HEADER_CRC: usize = 64 + 152;
    pub const LEN: usize = 256;
}

pub const SECTION: u8 = 1;
pub const DATA: u8 = 2;
pub const EXTENTS: u8 = 3;
pub const PADDING: u8 = 4;
pub const LEAF: u8 = 5;
pub const ROOT: u8 = 6;
pub const DIRECTORY: u8 = 7;
const HEADER_LEN: usize = 4096;

/// A snapshot file that can be changed.
#[derive(Clone, Debug)]
pub struct File(pub Vec<u8>);

impl File {
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    pub fn put_u64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    /// Returns offset and type of all frames that can be walked.
    pub fn frames(&self) -> Vec<(usize, u8)> {
        let mut frames = Vec::new();
        let mut at = HEADER_LEN;
        while at + frame::PAYLOAD <= self.0.len() && &self.0[at..at + 4] == b"VMFR" {
            frames.push((at, self.0[at + frame::TYPE]));
            at = self.end(at);
        }
        frames
    }

    /// Returns the offset of the `nth` frame of a type.
    pub fn frame(&self, frame_type: u8, nth: usize) -> usize {
        self.frames()
            .into_iter()
            .filter(|(_, found)| *found == frame_type)
            .nth(nth)
            .expect("there is such a frame")
            .0
    }

    /// Returns the offset of the frame of a chunk.
    pub fn data(&self, kind: u8) -> usize {
        let of_kind = |(at, found): &(usize, u8)| *found == DATA && self.0[at + frame::KIND] == kind;
        self.frames()
            .into_iter()
            .find(of_kind)
            .expect("there is such a chunk")
            .0
    }

    /// Returns the offset of the payload of the leaf's entry of a chunk; there is one leaf.
    pub fn index_entry(&self, chunk: u64) -> usize {
        self.frame(LEAF, 0) + frame::PAYLOAD + chunk as usize * 48
    }

    /// Returns the offset of the first extents record of that kind.
    pub fn extent(&self, kind: u8) -> usize {
        let at = self.frame(EXTENTS, 0);
        let records = (at + frame::PAYLOAD..self.end(at)).step_by(64);
        records
            .into_iter()
            .find(|record| self.0[record + 16] == kind)
            .expect("there is such an extent")
    }

    /// Returns the offset of the footer's frame.
    pub fn footer(&self) -> usize {
        self.0.len() - footer::LEN
    }

    fn end(&self, at: usize) -> usize {
        at + frame::PAYLOAD + (self.u32(at + frame::STORED_LEN) as usize).next_multiple_of(8)
    }

    /// Makes the checksum of a frame header right.
    pub fn seal_frame_header(&mut self, at: usize) {
        let crc = crc32fast::hash(&self.0[at..at + frame::HEADER_CRC]);
        self.put_u32(at + frame::HEADER_CRC, crc);
    }

    /// Makes the checksum of the header right.
    pub fn seal_header(&mut self) {
        let crc = crc32fast::hash(&self.0[..HEADER_LEN - 4]);
        self.put_u32(HEADER_LEN - 4, crc);
    }

    /// Makes all checksums right, those that structures state of each other too.
    pub fn seal(&mut self) {
        self.seal_header();
        let frames = self.frames();
        let of = |wanted: u8| {
            frames
                .iter()
                .filter(move |(_, found)| *found == wanted)
                .map(|(at, _)| *at)
        };
        let footer = self.footer();
        let last = [ROOT, DIRECTORY];
        for (at, _) in frames.iter().filter(|(_, found)| !last.contains(found)) {
            self.seal_frame(*at);
        }
        if let Some(root) = of(ROOT).next() {
            for leaf in of(LEAF) {
                let place = (self.u64(leaf + frame::KEY) as usize).saturating_mul(16);
                let entry = place.saturating_add(root + frame::PAYLOAD);
                if entry < self.end(root) && self.u64(entry) == leaf as u64 {
                    self.put_u32(entry + 8, self.u32(leaf + frame::PAYLOAD_CRC));
                }
            }
            self.seal_frame(root);
            self.put_u32(footer + footer::ROOT_CRC, self.u32(root + frame::PAYLOAD_CRC));
        }
        if let Some(directory) = of(DIRECTORY).next() {
            self.seal_frame(directory);
            self.put_u32(
                footer + footer::DIRECTORY_CRC,
                self.u32(directory + frame::PAYLOAD_CRC),
            );
        }
        self.put_u32(footer + footer::HEADER_CRC, self.u32(HEADER_LEN - 4));
        self.seal_frame(footer);
    }

    fn seal_frame(&mut self, at: usize) {
        let end = self.end(at).min(self.0.len());
        if at + frame::PAYLOAD > end {
            return;
        }
        let crc = crc32fast::hash(&self.0[at + frame::PAYLOAD..end]);
        self.put_u32(at + frame::PAYLOAD_CRC, crc);
        self.seal_frame_header(at);
    }

    /// Makes the digest of a section right, in its frame and in the directory.
    pub fn digest_section(&mut self, number: usize) {
        let at = self.frame(SECTION, number);
        let name_len = usize::from(self.0[at + frame::PAYLOAD + 10]);
        let body = at + frame::PAYLOAD + 16 + name_len;
        let body = &self.0[body..at + frame::PAYLOAD + self.u32(at + frame::STORED_LEN) as usize];
        let digest = *blake3::hash(body).as_bytes();
        self.put(at + frame::DIGEST, &digest);
        let entry = self.directory_entry(number);
        self.put(entry + 32, &digest);
    }

    /// Returns the offset of an entry of the directory.
    pub fn directory_entry(&self, number: usize) -> usize {
        let mut at = self.frame(DIRECTORY, 0) + frame::PAYLOAD;
        for _ in 0..number {
            at += 64 + usize::from(self.0[at + 26]).next_multiple_of(8);
        }
        at
    }

    /// Replaces the payload of a frame behind the data, and moves what follows.
    pub fn set_payload(&mut self, at: usize, payload: &[u8]) {
        let mut padded = payload.to_vec();
        padded.resize(payload.len().next_multiple_of(8), 0);
        let end = self.end(at);
        let moved = padded.len() as i64 - (end - at - frame::PAYLOAD) as i64;
        self.0.splice(at + frame::PAYLOAD..end, padded);
        self.put_u32(at + frame::STORED_LEN, payload.len() as u32);
        self.put_u32(at + frame::PLAIN_LEN, payload.len() as u32);
        let footer = self.footer();
        for field in [footer::FILE_LEN, footer::ROOT_OFFSET, footer::DIRECTORY_OFFSET] {
            let value = self.u64(footer + field);
            if value > at as u64 {
                self.put_u64(footer + field, value.wrapping_add_signed(moved));
            }
        }
    }
}
