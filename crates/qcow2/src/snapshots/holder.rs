//! Finding the image of a chain that has a snapshot inside.

use crate::chain::Chain;
use crate::metadata::Metadata;
use crate::snapshots::fingerprint;

/// Returns the place in the chain, counted from the top, of the image that has the snapshot with this id and
/// [`fingerprint`].
///
/// A snapshot stays in its image when an overlay takes the image's place, so it may lie below the disk in which it was
/// made. Images that cannot be read have no snapshots.
#[must_use]
pub fn holder(chain: &Chain, wanted: &str, expected: &[u8; 32]) -> Option<usize> {
    chain.layers.iter().position(|layer| {
        let is_image = layer.header.is_some();
        let found = is_image.then(|| fingerprint(&Metadata::open(layer.storage.clone())?, wanted));
        found.is_some_and(|found| found.is_ok_and(|found| found == *expected))
    })
}
