//! Whatever is written comes back, at random and front to back, and the root digest is that of the
//! content alone.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the guests are small and their bytes made up"
)]

mod common;

use common::{Guest, fixed_options, open, read_at_random, read_stream};
use proptest::prelude::*;
use snapfile::{ChunkNumber, ChunkSize, Codec, Encoding, Section, SectionKind, Writer, WriterOptions};

/// What a page holds.
#[derive(Clone, Copy, Debug)]
enum Page {
    Zero,
    Fill(u64),
    Text(u8),
    Noise(u64),
}

fn page() -> impl Strategy<Value = Page> {
    prop_oneof![
        3 => Just(Page::Zero),
        1 => (1..3u64).prop_map(Page::Fill),
        2 => (0..4u8).prop_map(Page::Text),
        2 => (0..6u64).prop_map(Page::Noise),
    ]
}

fn render(pages: &[Page]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(pages.len() * 4096);
    for page in pages {
        match *page {
            Page::Zero => bytes.resize(bytes.len() + 4096, 0),
            Page::Fill(word) => bytes.extend(std::iter::repeat_n(word.to_le_bytes(), 512).flatten()),
            Page::Text(seed) => bytes.extend((0..4096u32).map(|i| b'a' + ((i * i / 50) % 7) as u8 + seed)),
            Page::Noise(seed) => {
                let mut state = seed + 1;
                bytes.extend((0..4096).map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    (state >> 56) as u8
                }));
            }
        }
    }
    bytes
}

/// Regions of whole runs of one page each, with holes between them.
fn guest() -> impl Strategy<Value = Guest> {
    let region = (prop::collection::vec((page(), 1..40usize), 1..6), 0..9u64);
    prop::collection::vec(region, 1..4).prop_map(|regions| {
        let mut address = 0;
        let regions = regions.into_iter().map(|(runs, hole)| {
            let pages: Vec<Page> = runs
                .into_iter()
                .flat_map(|(page, count)| vec![page; count])
                .collect();
            let bytes = render(&pages);
            let at = address + hole * 4096;
            address = at + bytes.len() as u64;
            (at, bytes)
        });
        Guest::new(regions.collect())
    })
}

fn codec() -> impl Strategy<Value = Codec> {
    prop_oneof![
        (-5..4i32).prop_map(|level| Codec::Zstd { level }),
        Just(Codec::Lz4),
        Just(Codec::Raw),
    ]
}

fn options() -> impl Strategy<Value = WriterOptions> {
    (
        12..=21u8,
        codec(),
        any::<bool>(),
        any::<bool>(),
        prop::option::of(6..8u8),
    )
        .prop_map(
            |(log2, codec, deduplicate, align_raw, leaf_entries_log2)| WriterOptions {
                codec,
                chunk_size: ChunkSize::from_log2(log2).unwrap(),
                deduplicate,
                align_raw,
                leaf_entries_log2,
                ..WriterOptions::default()
            },
        )
}

fn sections() -> Vec<Section> {
    let section = |kind, name: &str, payload: Vec<u8>| Section {
        kind,
        name: name.to_owned(),
        version: 3,
        encoding: Encoding::Cbor,
        payload,
    };
    vec![
        section(SectionKind::VmState, "vm", vec![0xa0]),
        section(SectionKind::VmState, "vcpu/0", b"registers ".repeat(500)),
        section(SectionKind::Provenance, "", Vec::new()),
        section(SectionKind::Unknown(77), "later", vec![1, 2, 3]),
    ]
}

/// Writes in the order that `order` gives, with sections between chunks.
fn write_shuffled(guest: &Guest, options: WriterOptions, order: u64) -> (Vec<u8>, snapfile::Summary) {
    let writer = Writer::new(Vec::new(), &guest.map, options).unwrap();
    let count = writer.layout().chunk_count();
    let mut sections = sections();
    let mut encoder = writer.encoder();
    let mut chunks: Vec<u64> = (0..count).collect();
    let mut state = order;
    for last in (1..chunks.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        chunks.swap(last, (state >> 33) as usize % (last + 1));
    }
    for chunk in chunks.into_iter().map(ChunkNumber) {
        let plain = guest.chunk(writer.layout(), chunk);
        if plain.iter().all(|byte| *byte == 0) && chunk.0 % 2 == 0 {
            writer.put_zero(chunk.0..chunk.0 + 1).unwrap();
        } else {
            encoder.put_chunk(chunk, plain).unwrap();
        }
        if let Some(section) = sections.pop() {
            writer.put_section(&section).unwrap();
        }
    }
    sections
        .iter()
        .for_each(|section| writer.put_section(section).unwrap());
    writer.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read_at_random_and_front_to_back(
        guest in guest(),
        options in options(),
        order in any::<u64>(),
    ) {
        let (file, summary) = write_shuffled(&guest, options, order);
        prop_assert_eq!(summary.file_len, file.len() as u64);
        let snapshot = open(&file).unwrap();
        prop_assert_eq!(snapshot.summary(), &summary);
        let at_random = read_at_random(&snapshot).unwrap();
        prop_assert!(at_random.regions == guest.regions);
        let expected: Vec<_> = sections().into_iter().map(|section| section.payload).collect();
        for (section, payload) in sections().iter().zip(expected) {
            prop_assert_eq!(&at_random.sections[&(section.kind.code(), section.name.clone())], &payload);
        }
        let front_to_back = read_stream(&file, None).unwrap();
        prop_assert!(front_to_back == at_random);
    }

    #[test]
    fn root_digest_depends_on_the_content_alone(
        guest in guest(),
        first in options(),
        second in options(),
        orders in any::<(u64, u64)>(),
    ) {
        let (_, one) = write_shuffled(&guest, first, orders.0);
        let (_, other) = write_shuffled(&guest, second, orders.1);
        prop_assert_eq!(one.root_digest, other.root_digest);
    }

    #[test]
    fn root_digest_changes_with_any_byte(
        guest in guest(),
        options in options(),
        at in any::<prop::sample::Index>(),
    ) {
        let (_, before) = guest.write(options.clone());
        let mut changed = guest.clone();
        let bytes = &mut changed.regions[0];
        let at = at.index(bytes.len());
        bytes[at] ^= 0x40;
        let (_, after) = changed.write(options);
        prop_assert_ne!(before.root_digest, after.root_digest);
    }

    #[test]
    fn incremental_snapshot_equals_a_full_one(
        guest in guest(),
        options in options(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), page()), 0..6),
    ) {
        let (base, _) = guest.write(options.clone());
        let mut later = guest.clone();
        for (at, page) in changes {
            let region = at.index(later.regions.len());
            let pages = later.regions[region].len() / 4096;
            let at = at.index(pages) * 4096;
            later.regions[region][at..at + 4096].copy_from_slice(&render(&[page]));
        }
        let base = std::sync::Arc::new(open(&base).unwrap());
        let (full, full_summary) = later.write(options.clone());
        let parent = snapfile::Parent { snapshot: base.clone(), hint: "base.vmsnap".to_owned() };
        let (file, summary) = later.write(WriterOptions { parent: Some(parent), ..options });
        prop_assert_eq!(summary.root_digest, full_summary.root_digest);
        prop_assert!(summary.stored_bytes <= full_summary.stored_bytes);
        let snapshot = open(&file).unwrap().with_parent(base.clone()).unwrap();
        let expected = read_at_random(&open(&full).unwrap()).unwrap();
        prop_assert!(read_at_random(&snapshot).unwrap() == expected);
        prop_assert!(read_stream(&file, Some(&base)).unwrap() == expected);
    }
}

#[test]
fn many_threads_write_one_snapshot() {
    let pages: Vec<Page> = (0..2048)
        .map(|n| {
            if n % 3 == 0 {
                Page::Noise(n / 9)
            } else {
                Page::Text(1)
            }
        })
        .collect();
    let guest = Guest::new(vec![(0, render(&pages))]);
    let writer = Writer::new(Vec::new(), &guest.map, fixed_options(16384, Codec::default())).unwrap();
    let next = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut encoder = writer.encoder();
                loop {
                    let chunk = ChunkNumber(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
                    if chunk.0 >= writer.layout().chunk_count() {
                        break;
                    }
                    encoder
                        .put_chunk(chunk, guest.chunk(writer.layout(), chunk))
                        .unwrap();
                }
            });
        }
    });
    let progress = writer.progress();
    assert_eq!(progress.plain_bytes, guest.map.len_bytes());
    assert_eq!(progress.chunks.total(), 512);
    let (file, summary) = writer.finish().unwrap();
    assert_eq!(
        summary.root_digest,
        guest.write(fixed_options(4096, Codec::Raw)).1.root_digest
    );
    assert!(read_at_random(&open(&file).unwrap()).unwrap().regions == guest.regions);
}

#[test]
fn equal_chunks_are_stored_once() {
    let guest = Guest::new(vec![(0, render(&[Page::Noise(1); 16]))]);
    let (_, summary) = guest.write(fixed_options(16384, Codec::Raw));
    assert_eq!((summary.chunks.raw, summary.chunks.duplicate), (1, 3));
    let without = WriterOptions {
        deduplicate: false,
        ..fixed_options(16384, Codec::Raw)
    };
    assert_eq!(guest.write(without).1.chunks.raw, 4);
}

#[test]
fn raw_payloads_are_page_aligned_when_asked() {
    let guest = Guest::new(vec![(
        0,
        render(&[Page::Noise(1), Page::Noise(2), Page::Noise(3)]),
    )]);
    let options = WriterOptions {
        align_raw: true,
        ..fixed_options(4096, Codec::Raw)
    };
    let (file, _) = guest.write(options);
    let snapshot = open(&file).unwrap();
    for chunk in (0..3).map(ChunkNumber) {
        let at = snapshot.chunk_entry(chunk).unwrap().location as usize + 64;
        assert_eq!(at % 4096, 0);
        assert_eq!(&file[at..at + 4096], guest.chunk(snapshot.layout(), chunk));
    }
}

#[test]
fn untouched_terabytes_cost_nothing() {
    let map = snapfile::MemoryMap::new(vec![snapfile::MemoryRegion {
        guest_address: 0,
        len_bytes: 1 << 42,
    }])
    .unwrap();
    let writer = Writer::new(Vec::new(), &map, WriterOptions::default()).unwrap();
    let count = writer.layout().chunk_count();
    writer.put_zero(0..5).unwrap();
    writer.encoder().put_chunk(ChunkNumber(5), &[1; 65536]).unwrap();
    writer.put_zero(6..count).unwrap();
    let (file, summary) = writer.finish().unwrap();
    assert!(file.len() < 2 << 20, "{}", file.len());
    assert_eq!((summary.chunks.zero, summary.chunks.fill), (count - 1, 1));
    let snapshot = open(&file).unwrap();
    let mut plain = vec![9; 65536];
    snapshot
        .decoder()
        .read_chunk(ChunkNumber(count - 1), &mut plain)
        .unwrap();
    assert_eq!(plain, [0; 65536]);
    assert_eq!(read_items(&file), count);
}

/// Returns the number of chunks that a stream describes.
fn read_items(file: &[u8]) -> u64 {
    let mut reader = snapfile::StreamReader::new(file).unwrap();
    let mut chunks = 0;
    while let Some(item) = reader.next_item().unwrap() {
        match item {
            snapfile::StreamItem::Zero(run) => chunks += run.end - run.start,
            snapfile::StreamItem::Fill { .. } => chunks += 1,
            _ => {}
        }
    }
    chunks
}
