//! Writes a file of plain bytes as the memory of a guest: `write INPUT OUTPUT.vmsnap`.
//!
//! All cores compress; the output has its name only when it is complete and durable.

use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use snapfile::{ChunkNumber, MemoryMap, MemoryRegion, PAGE_SIZE, SnapshotFile, Writer, WriterOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, output] = arguments.as_slice() else {
        return Err("usage: write INPUT OUTPUT.vmsnap".into());
    };
    let mut memory = std::fs::read(input)?;
    memory.resize(memory.len().next_multiple_of(usize::try_from(PAGE_SIZE)?), 0);
    write(&memory, Path::new(output))
}

fn write(memory: &[u8], output: &Path) -> Result<(), Box<dyn Error>> {
    let map = MemoryMap::new(vec![MemoryRegion {
        guest_address: 0,
        len_bytes: memory.len() as u64,
    }])?;
    let writer = Writer::new(SnapshotFile::create(output)?, &map, WriterOptions::default())?;
    let next = AtomicU64::new(0);
    let encode = || -> snapfile::Result<()> {
        let mut encoder = writer.encoder();
        let chunk_bytes = usize::try_from(writer.layout().chunk_size().bytes()).unwrap_or(usize::MAX);
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            let Some(plain) = memory
                .chunks(chunk_bytes)
                .nth(usize::try_from(chunk).unwrap_or(usize::MAX))
            else {
                return Ok(());
            };
            encoder.put_chunk(ChunkNumber(chunk), plain)?;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(encode)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("an encoder does not panic"))
    })?;
    let (file, summary) = writer.finish()?;
    file.commit()?;
    println!(
        "{} -> {} bytes, root digest {}",
        summary.memory_bytes, summary.file_len, summary.root_digest
    );
    Ok(())
}
