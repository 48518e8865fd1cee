//! Decodes every chunk once, on all cores, into the files that want memory.
//!
//! Chunks that the index calls zero are not looked at: the files begin as holes.

use snapfile::{ChunkKind, Snapshot};

use super::parallel::for_each_chunk;
use super::target::Target;
use crate::progress::Progress;

/// Writes all of guest memory to every target.
pub fn extract(snapshot: &Snapshot, targets: &[&Target], progress: &Progress) -> anyhow::Result<()> {
    let regions = snapshot.memory_map().regions();
    for_each_chunk(
        snapshot,
        progress,
        |kind| kind != ChunkKind::Zero,
        |range, plain| {
            let start = regions.get(range.region).map_or(0, |region| region.guest_address);
            targets
                .iter()
                .try_for_each(|target| target.write(range.region, range.guest_address - start, plain))
        },
    )
}
