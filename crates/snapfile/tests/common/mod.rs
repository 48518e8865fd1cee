//! What several tests need: guests made of recipes, and readers of whole files.
#![allow(dead_code, reason = "every test uses a part of it")]
#![allow(clippy::cast_possible_truncation, reason = "the guests are small")]

pub mod patch;

use std::collections::BTreeMap;

use snapfile::{
    ChunkLayout, ChunkNumber, ChunkSize, Codec, Error, FileId, FixedIdentity, MemoryMap, MemoryRegion,
    Snapshot, StreamItem, StreamReader, Summary, Writer, WriterOptions,
};

/// Guest memory: a map, and the bytes of each region.
#[derive(Clone, Debug)]
pub struct Guest {
    pub map: MemoryMap,
    pub regions: Vec<Vec<u8>>,
}

impl Guest {
    /// Makes a guest of regions given by address and content.
    pub fn new(regions: Vec<(u64, Vec<u8>)>) -> Self {
        let region = |(guest_address, bytes): &(u64, Vec<u8>)| MemoryRegion {
            guest_address: *guest_address,
            len_bytes: bytes.len() as u64,
        };
        let map = MemoryMap::new(regions.iter().map(region).collect()).unwrap();
        Self {
            map,
            regions: regions.into_iter().map(|(_, bytes)| bytes).collect(),
        }
    }

    /// Returns the content of a chunk.
    pub fn chunk(&self, layout: &ChunkLayout, chunk: ChunkNumber) -> &[u8] {
        let range = layout.chunk(chunk).unwrap();
        let at = range.guest_address - self.map.regions()[range.region].guest_address;
        &self.regions[range.region][at as usize..][..range.len_bytes as usize]
    }

    /// Writes a snapshot in the order of the chunks.
    pub fn write(&self, options: WriterOptions) -> (Vec<u8>, Summary) {
        let writer = Writer::new(Vec::new(), &self.map, options).unwrap();
        let mut encoder = writer.encoder();
        for chunk in (0..writer.layout().chunk_count()).map(ChunkNumber) {
            encoder
                .put_chunk(chunk, self.chunk(writer.layout(), chunk))
                .unwrap();
        }
        writer.finish().unwrap()
    }
}

/// Options whose result depends on the content alone.
pub fn fixed_options(chunk_bytes: u32, codec: Codec) -> WriterOptions {
    WriterOptions {
        codec,
        chunk_size: ChunkSize::new(chunk_bytes).unwrap(),
        producer: "test".to_owned(),
        leaf_entries_log2: Some(6),
        fixed_identity: Some(FixedIdentity {
            file_id: FileId([7; 16]),
            created_unix_ns: 1,
        }),
        ..WriterOptions::default()
    }
}

/// All of a file that a reader can ask for.
#[derive(Debug, PartialEq, Eq)]
pub struct Content {
    pub regions: Vec<Vec<u8>>,
    pub sections: BTreeMap<(u32, String), Vec<u8>>,
    pub root_digest: snapfile::Digest,
}

fn empty_regions(map: &MemoryMap) -> Vec<Vec<u8>> {
    map.regions()
        .iter()
        .map(|region| vec![0; region.len_bytes as usize])
        .collect()
}

fn place<'a>(
    regions: &'a mut [Vec<u8>],
    map: &MemoryMap,
    layout: &ChunkLayout,
    chunk: ChunkNumber,
) -> &'a mut [u8] {
    let range = layout.chunk(chunk).unwrap();
    let at = range.guest_address - map.regions()[range.region].guest_address;
    &mut regions[range.region][at as usize..][..range.len_bytes as usize]
}

/// Reads everything at random.
pub fn read_at_random(snapshot: &Snapshot) -> Result<Content, Error> {
    let (map, layout) = (snapshot.memory_map(), snapshot.layout());
    let mut regions = empty_regions(map);
    let mut decoder = snapshot.decoder().check_digests(true);
    for chunk in (0..layout.chunk_count()).map(ChunkNumber) {
        decoder.read_chunk(chunk, place(&mut regions, map, layout, chunk))?;
    }
    let mut sections = BTreeMap::new();
    for section in snapshot.sections() {
        let payload = snapshot.read_section(section)?;
        if section.offset != 4096 {
            sections.insert((section.kind.code(), section.name.clone()), payload);
        }
    }
    Ok(Content {
        regions,
        sections,
        root_digest: snapshot.root_digest(),
    })
}

/// Reads everything front to back; chunks of the parent come from `parent`.
pub fn read_stream(file: &[u8], parent: Option<&Snapshot>) -> Result<Content, Error> {
    let mut reader = StreamReader::new(file)?.check_digests(true);
    let (map, layout) = (reader.memory_map().clone(), reader.layout().clone());
    let mut regions = empty_regions(&map);
    let mut sections = BTreeMap::new();
    let mut root_digest = None;
    while let Some(item) = reader.next_item()? {
        match item {
            StreamItem::Section(section) => {
                sections.insert((section.kind.code(), section.name), section.payload);
            }
            StreamItem::Zero(_) => {}
            StreamItem::Data { chunk, plain, .. } => {
                place(&mut regions, &map, &layout, chunk).copy_from_slice(plain)
            }
            StreamItem::Fill { chunk, pattern, .. } => {
                place(&mut regions, &map, &layout, chunk)
                    .chunks_mut(8)
                    .for_each(|word| word.copy_from_slice(&pattern));
            }
            StreamItem::Duplicate { chunk, source, .. } => {
                let mut content = place(&mut regions, &map, &layout, source).to_vec();
                let target = place(&mut regions, &map, &layout, chunk);
                content.resize(target.len(), 0);
                target.copy_from_slice(&content);
            }
            StreamItem::Parent { chunk, .. } => {
                let parent = parent.expect("a parent chunk comes only with a parent");
                parent
                    .decoder()
                    .read_chunk(chunk, place(&mut regions, &map, &layout, chunk))?;
            }
            StreamItem::End(summary) => root_digest = Some(summary.root_digest),
        }
    }
    let root_digest = root_digest.expect("the end comes before the end");
    Ok(Content {
        regions,
        sections,
        root_digest,
    })
}

/// Opens a snapshot in memory.
pub fn open(file: &[u8]) -> Result<Snapshot, Error> {
    Snapshot::from_storage(Box::new(file.to_vec()))
}
