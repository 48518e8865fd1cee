//! Compression and decompression of chunks, and the fast look at what needs neither.
//!
//! An [`Encoding`] tells what came of a chunk. Contexts and buffers are kept between chunks: at
//! 64 KiB their set-up would cost as much as the work.

use std::fmt;
use std::io::{self, Read};

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use crate::chunk::{ChunkKind, Codec};

/// Compressed data must save at least one part in this many, or the chunk is stored raw.
const MIN_SAVING: usize = 16;

/// Largest window that a compressed section may ask a decoder to keep, as a binary logarithm.
const MAX_SECTION_WINDOW_LOG2: u32 = 26;

/// Compresses chunks with one codec.
pub(crate) struct Compressor {
    state: State,
    buffer: Vec<u8>,
}

enum State {
    Zstd(zstd::bulk::Compressor<'static>),
    Lz4(CompressTable),
    Raw,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.state {
            State::Zstd(_) => "zstd",
            State::Lz4(_) => "lz4",
            State::Raw => "raw",
        };
        f.debug_tuple("Compressor").field(&name).finish()
    }
}

impl Compressor {
    /// Makes a compressor; a Zstandard level is brought into the range that the library has.
    pub(crate) fn new(codec: Codec) -> io::Result<Self> {
        let state = match codec {
            Codec::Zstd { level } => {
                let levels = zstd::compression_level_range();
                let level = level.clamp(*levels.start(), *levels.end());
                State::Zstd(zstd::bulk::Compressor::new(level)?)
            }
            Codec::Lz4 => State::Lz4(CompressTable::large()),
            Codec::Raw => State::Raw,
        };
        Ok(Self {
            state,
            buffer: Vec::new(),
        })
    }

    /// Compresses `plain`, or returns it as it is where that does not pay.
    pub(crate) fn compress<'a>(&'a mut self, plain: &'a [u8]) -> (ChunkKind, &'a [u8]) {
        let most = plain.len() - plain.len() / MIN_SAVING;
        let (kind, compressed) = match &mut self.state {
            State::Zstd(context) => {
                // A destination that is just large enough to pay ends hopeless attempts early.
                self.buffer.resize(most, 0);
                let len = context.compress_to_buffer(plain, self.buffer.as_mut_slice());
                (ChunkKind::Zstd, len.ok().and_then(|len| self.buffer.get(..len)))
            }
            State::Lz4(table) => {
                self.buffer.resize(get_maximum_output_size(plain.len()), 0);
                let len = compress_into_with_table(plain, &mut self.buffer, table);
                (ChunkKind::Lz4, len.ok().and_then(|len| self.buffer.get(..len)))
            }
            State::Raw => (ChunkKind::Raw, None),
        };
        match compressed {
            Some(bytes) if bytes.len() < most => (kind, bytes),
            _ => (ChunkKind::Raw, plain),
        }
    }
}

/// Decompresses chunks of any codec.
#[derive(Default)]
pub(crate) struct Decompressor {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

impl Decompressor {
    /// Fills `plain` exactly from `payload`; returns `false` if the payload is not what it should be.
    pub(crate) fn decompress(
        &mut self,
        kind: ChunkKind,
        payload: &[u8],
        plain: &mut [u8],
    ) -> io::Result<bool> {
        Ok(match kind {
            ChunkKind::Raw if payload.len() == plain.len() => {
                plain.copy_from_slice(payload);
                true
            }
            ChunkKind::Zstd => {
                let context = match &mut self.zstd {
                    Some(context) => context,
                    None => self.zstd.insert(zstd::bulk::Decompressor::new()?),
                };
                context
                    .decompress_to_buffer(payload, plain)
                    .is_ok_and(|len| len == plain.len())
            }
            ChunkKind::Lz4 => decompress_into(payload, plain).is_ok_and(|len| len == plain.len()),
            _ => false,
        })
    }
}

/// Compresses the body of a section if that pays.
pub(crate) fn compress_section(body: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let compressed = zstd::bulk::compress(body, 3)?;
    Ok((compressed.len() < body.len() - body.len() / MIN_SAVING).then_some(compressed))
}

/// Decompresses the body of a section to exactly `len` bytes; `None` if it is not that.
///
/// Memory grows with what comes out, not with what is promised.
pub(crate) fn decompress_section(stored: &[u8], len: u32) -> io::Result<Option<Vec<u8>>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(stored)?.single_frame();
    decoder.window_log_max(MAX_SECTION_WINDOW_LOG2)?;
    let mut body = Vec::new();
    let decoded = decoder.by_ref().take(u64::from(len) + 1).read_to_end(&mut body);
    let rest = decoder.finish();
    Ok((decoded.is_ok() && body.len() as u64 == u64::from(len) && rest.is_empty()).then_some(body))
}

/// What a glance at a chunk tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// All bytes are zero.
    Zero,
    /// Eight bytes repeat.
    Fill([u8; 8]),
    /// Anything else.
    Mixed,
}

/// Tells chunks of one repeated pattern from others, at the speed of memory.
///
/// `plain` is a multiple of 8 bytes long.
pub(crate) fn pattern(plain: &[u8]) -> Pattern {
    let Some((first, rest)) = plain.split_first_chunk::<8>() else {
        return Pattern::Zero;
    };
    let word = u64::from_le_bytes(*first);
    // Most chunks are told apart by their first words; whole blocks are then compared without a
    // branch per word, which the compiler turns into wide instructions.
    let mut blocks = rest.chunks_exact(512);
    for block in &mut blocks {
        if differs(block, word) {
            return Pattern::Mixed;
        }
    }
    if differs(blocks.remainder(), word) {
        return Pattern::Mixed;
    }
    if word == 0 {
        Pattern::Zero
    } else {
        Pattern::Fill(*first)
    }
}

fn differs(block: &[u8], word: u64) -> bool {
    let (words, tail) = block.as_chunks::<8>();
    debug_assert!(tail.is_empty(), "chunks are multiples of 8 bytes");
    words.iter().fold(0, |difference, bytes| {
        difference | (u64::from_le_bytes(*bytes) ^ word)
    }) != 0
}

/// Fills `plain` with a repeated pattern.
pub(crate) fn fill(plain: &mut [u8], pattern: [u8; 8]) {
    for word in plain.chunks_mut(8) {
        if let Some(bytes) = pattern.get(..word.len()) {
            word.copy_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(len: usize) -> Vec<u8> {
        b"all the king's horses and all the king's men "
            .iter()
            .copied()
            .cycle()
            .take(len)
            .collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn what_is_compressed_comes_back() {
        let codecs = [
            (Codec::Zstd { level: -5 }, ChunkKind::Zstd),
            (Codec::Zstd { level: 1 }, ChunkKind::Zstd),
            (Codec::Zstd { level: 19 }, ChunkKind::Zstd),
            (Codec::Lz4, ChunkKind::Lz4),
            (Codec::Raw, ChunkKind::Raw),
        ];
        for (codec, expected) in codecs {
            let mut compressor = Compressor::new(codec).unwrap();
            for plain in [text(4096), text(65536), text(2 << 20)] {
                let (kind, payload) = compressor.compress(&plain);
                assert_eq!(kind, expected, "{codec:?}");
                let mut back = vec![1; plain.len()];
                assert!(
                    Decompressor::default()
                        .decompress(kind, payload, &mut back)
                        .unwrap()
                );
                assert_eq!(back, plain);
            }
        }
    }

    #[test]
    fn incompressible_chunks_are_stored_raw() {
        for codec in [Codec::Zstd { level: 1 }, Codec::Zstd { level: 19 }, Codec::Lz4] {
            let mut compressor = Compressor::new(codec).unwrap();
            assert_eq!(compressor.compress(&noise(65536)).0, ChunkKind::Raw);
            assert_ne!(
                compressor.compress(&text(65536)).0,
                ChunkKind::Raw,
                "the context is usable again"
            );
        }
    }

    #[test]
    fn payloads_of_another_length_are_refused() {
        let plain = text(8192);
        for codec in [Codec::Zstd { level: 1 }, Codec::Lz4, Codec::Raw] {
            let mut compressor = Compressor::new(codec).unwrap();
            let (kind, payload) = compressor.compress(&plain);
            let mut decompressor = Decompressor::default();
            assert!(
                !decompressor
                    .decompress(kind, payload, &mut vec![0; 4096])
                    .unwrap(),
                "{codec:?}"
            );
            assert!(
                !decompressor
                    .decompress(kind, payload, &mut vec![0; 16384])
                    .unwrap(),
                "{codec:?}"
            );
            assert!(
                !decompressor
                    .decompress(kind, &payload[1..], &mut vec![0; 8192])
                    .unwrap(),
                "{codec:?}"
            );
        }
    }

    #[test]
    fn sections_of_another_length_or_with_a_tail_are_refused() {
        let body = text(10_000);
        let stored = compress_section(&body).unwrap().unwrap();
        assert_eq!(decompress_section(&stored, 10_000).unwrap().unwrap(), body);
        assert_eq!(decompress_section(&stored, 9_999).unwrap(), None);
        assert_eq!(decompress_section(&stored, 10_001).unwrap(), None);
        let tail = [stored.as_slice(), b"x"].concat();
        assert_eq!(decompress_section(&tail, 10_000).unwrap(), None);
        assert_eq!(compress_section(&noise(1000)).unwrap(), None);
    }

    #[test]
    fn patterns_are_told_apart_wherever_they_end() {
        assert_eq!(pattern(&[0; 4096]), Pattern::Zero);
        let mut plain = vec![0; 4096];
        fill(&mut plain, *b"12345678");
        assert_eq!(pattern(&plain), Pattern::Fill(*b"12345678"));
        for at in [0, 8, 511, 520, 4095] {
            let mut plain = vec![0; 4096];
            plain[at] = 1;
            assert_eq!(pattern(&plain), Pattern::Mixed, "{at}");
        }
    }
}
