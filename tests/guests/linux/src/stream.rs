//! What the host sends by vsock: an endless sequence of which every byte is known.
//!
//! The guest connects to [`PORT`] of the host. The host sends the sequence from its beginning on every connection.

use crate::content::mix;

/// Port on the host that the guest connects to.
pub const PORT: u32 = 5005;

/// Writes into `bytes` what stands at `offset` of the sequence.
pub fn fill(seed: u64, offset: u64, bytes: &mut [u8]) {
    let (mut place, mut rest) = (offset, bytes);
    while !rest.is_empty() {
        let word = mix(seed ^ (place / 8)).to_le_bytes();
        let word = &word[(place % 8) as usize..];
        let (piece, after) = rest.split_at_mut(word.len().min(rest.len()));
        piece.copy_from_slice(&word[..piece.len()]);
        place += piece.len() as u64;
        rest = after;
    }
}

/// Returns the first place in which `bytes` differ from the sequence at `offset`.
#[must_use]
pub fn first_difference(seed: u64, offset: u64, bytes: &[u8]) -> Option<u64> {
    let mut expected = vec![0; bytes.len()];
    fill(seed, offset, &mut expected);
    let place = bytes
        .iter()
        .zip(&expected)
        .position(|(found, wanted)| found != wanted)?;
    Some(offset + place as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_same_in_any_pieces() {
        let mut whole = [0; 64];
        fill(3, 100, &mut whole);
        let mut piece = [0; 7];
        fill(3, 113, &mut piece);
        assert_eq!(whole[13..20], piece);
        assert_eq!(first_difference(3, 100, &whole), None);
    }

    #[test]
    fn a_lost_byte_is_found_where_it_is_missing() {
        let mut whole = [0; 64];
        fill(3, 0, &mut whole);
        let lost = [&whole[..10], &whole[11..]].concat();
        assert_eq!(first_difference(3, 0, &lost), Some(10));
    }
}
