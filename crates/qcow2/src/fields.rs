//! Big-endian fields and tables of 64-bit entries, read without ever panicking.

use crate::error::{LimitExceeded, Result};
use crate::storage::Storage;

/// Returns the `N` bytes at `at`, or nothing where they are not all there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Returns the byte at `at`.
pub(crate) fn u8_at(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

/// Returns the 16-bit field at `at`.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// Returns the 32-bit field at `at`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

/// Returns the 64-bit field at `at`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

/// Returns the 64-bit entries in `bytes`; a rest of fewer than 8 bytes is dropped.
pub(crate) fn entries(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes
        .chunks_exact(8)
        .map(|entry| entry.try_into().map_or(0, u64::from_be_bytes))
}

/// Returns the bytes of a table of 64-bit entries.
pub(crate) fn entry_bytes(entries: impl IntoIterator<Item = u64>) -> Vec<u8> {
    entries.into_iter().flat_map(u64::to_be_bytes).collect()
}

/// Reads `len_bytes` at `offset`, which the caller has compared with the limit of what they are.
pub(crate) fn read_vec(
    storage: &dyn Storage,
    what: &'static str,
    offset: u64,
    len_bytes: u64,
    limit: u64,
) -> Result<Vec<u8>> {
    LimitExceeded::check(what, len_bytes, limit)?;
    let len = usize::try_from(len_bytes).map_err(|_| LimitExceeded {
        what,
        value: len_bytes,
        limit,
    })?;
    let mut bytes = vec![0; len];
    storage.read_at(&mut bytes, offset)?;
    Ok(bytes)
}
