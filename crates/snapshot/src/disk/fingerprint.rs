//! The fingerprint of a disk: BLAKE3 of all its bytes, holes read as the zeros that they are.
//!
//! It is the plain hash of the file, so that `b3sum` of a disk copy gives the same.

mod known;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::copy::{Proceed, next_data};

pub use known::KnownFingerprints;
pub(crate) use known::mtime_ns;

/// Bytes hashed at a time.
const STEP_BYTES: usize = 1 << 20;

/// BLAKE3 of the content of a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl Serialize for Fingerprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Fingerprint;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string of 32 bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Fingerprint, E> {
                let digest = bytes.try_into();
                digest
                    .map(Fingerprint)
                    .map_err(|_| E::invalid_length(bytes.len(), &self))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// Computes the fingerprint of the first `len_bytes` of a file; `proceed` is told of every step.
pub(crate) fn fingerprint(file: &File, len_bytes: u64, proceed: Proceed<'_>) -> io::Result<Fingerprint> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; STEP_BYTES];
    let mut at = 0;
    while let Some((start, end)) = next_data(file, at, len_bytes)? {
        hash_zeros(&mut hasher, start - at, proceed)?;
        at = start;
        while at < end {
            let step = usize::try_from(end - at).unwrap_or(STEP_BYTES).min(STEP_BYTES);
            let (bytes, _) = buffer.split_at_mut(step);
            file.read_exact_at(bytes, at)?;
            hasher.update(bytes);
            at += step as u64;
            proceed(step as u64)?;
        }
    }
    hash_zeros(&mut hasher, len_bytes.saturating_sub(at), proceed)?;
    Ok(Fingerprint(*hasher.finalize().as_bytes()))
}

fn hash_zeros(hasher: &mut blake3::Hasher, mut len: u64, proceed: Proceed<'_>) -> io::Result<()> {
    static ZEROS: [u8; STEP_BYTES] = [0; STEP_BYTES];
    while len > 0 {
        let step = usize::try_from(len).unwrap_or(STEP_BYTES).min(STEP_BYTES);
        hasher.update(ZEROS.split_at(step).0);
        len -= step as u64;
        proceed(step as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_the_plain_hash_of_all_bytes_holes_included() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"middle", 5 << 20).unwrap();
        file.set_len((8 << 20) + 100).unwrap();
        let mut bytes = vec![0; (8 << 20) + 100];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let found = fingerprint(&file, bytes.len() as u64, &|_| Ok(())).unwrap();
        assert_eq!(found.0, *blake3::hash(&bytes).as_bytes());
    }

    #[test]
    fn a_fingerprint_is_32_bytes_in_cbor() {
        let mut cbor = Vec::new();
        ciborium::into_writer(&Fingerprint([7; 32]), &mut cbor).unwrap();
        assert_eq!(cbor.len(), 34);
        let back: Fingerprint = ciborium::from_reader(cbor.as_slice()).unwrap();
        assert_eq!(back, Fingerprint([7; 32]));
        let short = [0x41, 0x00];
        assert!(ciborium::from_reader::<Fingerprint, _>(short.as_slice()).is_err());
    }
}
