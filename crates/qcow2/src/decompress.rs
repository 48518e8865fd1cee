//! Compressed clusters, unpacked.
//!
//! A compressed cluster is a raw deflate stream or a Zstandard frame that gives exactly one cluster. Its length is
//! known in sectors only, so what follows the end of the stream is ignored. A few clusters are kept unpacked:
//! guests read in smaller pieces than clusters.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use miniz_oxide::inflate::TINFLStatus;

use crate::error::{Corruption, Result, Unsupported};
use crate::format::{ClusterSize, CompressedCluster};
use crate::storage::Storage;

/// Compression type of the header: a raw deflate stream.
const DEFLATE: u8 = 0;
/// Compression type of the header: a Zstandard frame.
const ZSTANDARD: u8 = 1;
/// Bytes of unpacked clusters that are kept.
const KEPT_BYTES: u64 = 4 << 20;
/// Largest window of a Zstandard frame that is accepted: 8 MiB; nothing needs more than a cluster.
const MAX_WINDOW_LOG: u32 = 23;

/// Unpacks the compressed clusters of one image.
#[derive(Debug)]
pub(crate) struct Unpacker {
    compression_type: u8,
    cluster: ClusterSize,
    kept: Mutex<VecDeque<(u64, Arc<[u8]>)>>,
}

impl Unpacker {
    /// Returns an unpacker for the compression type of an image's header.
    pub(crate) fn new(compression_type: u8, cluster: ClusterSize) -> Self {
        Self {
            compression_type,
            cluster,
            kept: Mutex::new(VecDeque::new()),
        }
    }

    /// Returns the bytes of a compressed cluster.
    ///
    /// # Errors
    /// The medium's; the data is not what a cluster can be unpacked from.
    pub(crate) fn unpack(&self, storage: &dyn Storage, compressed: CompressedCluster) -> Result<Arc<[u8]>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = kept.iter().find(|(offset, _)| *offset == compressed.offset) {
            return Ok(bytes.clone());
        }
        drop(kept);
        let limit = self.cluster.bytes() * 2;
        // A packed cluster is smaller than a cluster, but for the sectors at its ends and a foolish packer.
        let len = usize::try_from(compressed.len_bytes().min(limit)).unwrap_or(0);
        let mut packed = vec![0; len];
        storage.read_at(&mut packed, compressed.offset)?;
        let bytes: Arc<[u8]> = self.expand(&packed, compressed.offset)?.into();
        kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let most = usize::try_from(KEPT_BYTES / self.cluster.bytes())
            .unwrap_or(1)
            .max(2);
        kept.truncate(most - 1);
        kept.push_front((compressed.offset, bytes.clone()));
        Ok(bytes)
    }

    /// Forgets what is kept: the file has changed behind it.
    pub(crate) fn forget(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn expand(&self, packed: &[u8], offset: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.cluster.len()];
        let whole = match self.compression_type {
            DEFLATE => inflate(packed, &mut bytes),
            ZSTANDARD => expand_frame(packed, &mut bytes),
            value => return Err(Unsupported::CompressionType { value }.into()),
        };
        if whole {
            Ok(bytes)
        } else {
            Err(Corruption::new("a compressed cluster cannot be unpacked", offset).into())
        }
    }
}

/// Unpacks a deflate stream and returns whether it filled the cluster; it may go on behind that.
fn inflate(packed: &[u8], cluster: &mut [u8]) -> bool {
    let input = std::iter::once(packed);
    let len = cluster.len();
    let filled = miniz_oxide::inflate::decompress_slice_iter_to_slice(cluster, input, false, true);
    filled == Ok(len) || filled == Err(TINFLStatus::HasMoreOutput)
}

/// Unpacks a Zstandard frame and returns whether it filled the cluster.
fn expand_frame(packed: &[u8], cluster: &mut [u8]) -> bool {
    let mut unpack = || {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?.single_frame();
        decoder.window_log_max(MAX_WINDOW_LOG)?;
        decoder.read_exact(cluster)
    };
    unpack().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    fn unpacker(compression_type: u8) -> Unpacker {
        Unpacker::new(compression_type, ClusterSize::new(16).unwrap())
    }

    fn content() -> Vec<u8> {
        (0..65536u32)
            .flat_map(|number| (number / 7).to_le_bytes())
            .take(65536)
            .collect()
    }

    fn stored_at(offset: u64, packed: &[u8]) -> (MemoryStorage, CompressedCluster) {
        let storage = MemoryStorage::new();
        storage.write_at(packed, offset).unwrap();
        storage
            .write_at(&[0xaa; 700], offset + packed.len() as u64)
            .unwrap();
        let sectors = (offset + packed.len() as u64).div_ceil(512) - offset / 512;
        (storage, CompressedCluster { offset, sectors })
    }

    #[test]
    fn unpacks_deflate_that_ends_inside_a_sector() {
        let packed = miniz_oxide::deflate::compress_to_vec(&content(), 6);
        let (storage, place) = stored_at(70_001, &packed);
        assert_eq!(*unpacker(DEFLATE).unpack(&storage, place).unwrap(), *content());
    }

    #[test]
    fn unpacks_zstandard_that_ends_inside_a_sector() {
        let packed = zstd::bulk::compress(&content(), 3).unwrap();
        let (storage, place) = stored_at(1_000_003, &packed);
        assert_eq!(*unpacker(ZSTANDARD).unpack(&storage, place).unwrap(), *content());
    }

    #[test]
    fn accepts_a_stream_that_goes_on_behind_the_cluster() {
        let packed = miniz_oxide::deflate::compress_to_vec(&[content(), content()].concat(), 6);
        let (storage, place) = stored_at(512, &packed);
        assert_eq!(*unpacker(DEFLATE).unpack(&storage, place).unwrap(), *content());
    }

    #[test]
    fn refuses_what_does_not_fill_a_cluster() {
        let short = miniz_oxide::deflate::compress_to_vec(&content()[..1000], 6);
        let (storage, place) = stored_at(512, &short);
        assert!(unpacker(DEFLATE).unpack(&storage, place).is_err());
        let (storage, place) = stored_at(512, &[0x55; 3000]);
        assert!(unpacker(DEFLATE).unpack(&storage, place).is_err());
        assert!(unpacker(ZSTANDARD).unpack(&storage, place).is_err());
    }
}
