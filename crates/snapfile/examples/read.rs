//! Tells what is in a snapshot and writes its memory out: `read INPUT.vmsnap [OUTPUT]`.
//!
//! Regions are placed at their guest physical addresses, with holes between them.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;

use snapfile::{ChunkKind, ChunkNumber, Snapshot};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (input, output) = match arguments.as_slice() {
        [input] => (input, None),
        [input, output] => (input, Some(output)),
        _ => return Err("usage: read INPUT.vmsnap [OUTPUT]".into()),
    };
    let snapshot = Snapshot::open_with_parents(input)?;
    println!("root digest  {}", snapshot.root_digest());
    for region in snapshot.memory_map().regions() {
        println!("memory       {:#x}-{:#x}", region.guest_address, region.end());
    }
    for section in snapshot.sections() {
        println!(
            "section      {} {:?}: {} bytes",
            section.kind.name(),
            section.name,
            section.len_bytes
        );
    }
    for kind in ChunkKind::ALL {
        println!(
            "chunks       {:9} {}",
            kind.name(),
            snapshot.summary().chunks.of(kind)
        );
    }
    match output {
        Some(output) => Ok(extract(&snapshot, &File::create(output)?)?),
        None => Ok(()),
    }
}

fn extract(snapshot: &Snapshot, output: &File) -> Result<(), Box<dyn Error>> {
    let layout = snapshot.layout();
    let end = snapshot
        .memory_map()
        .regions()
        .last()
        .map_or(0, snapfile::MemoryRegion::end);
    output.set_len(end)?;
    let mut decoder = snapshot.decoder();
    let mut plain = Vec::new();
    for chunk in (0..layout.chunk_count()).map(ChunkNumber) {
        let Some(range) = layout.chunk(chunk) else {
            continue;
        };
        if decoder.chunk_entry(chunk)?.kind != ChunkKind::Zero {
            plain.resize(usize::try_from(range.len_bytes)?, 0);
            decoder.read_chunk(chunk, &mut plain)?;
            output.write_all_at(&plain, range.guest_address)?;
        }
    }
    Ok(())
}
