//! Vectors that every reader reads: each chunk kind, layout, section and compatible extension.

use std::fmt::Write as _;
use std::sync::Arc;

use snapfile::{
    ChunkKind, ChunkNumber, ChunkSize, Codec, Digest, Encoding, FileId, FixedIdentity, MemoryMap,
    MemoryRegion, Parent, Section, SectionKind, Snapshot, Summary, Writer, WriterOptions,
};

use crate::patch::{self, File};

const KIB: u64 = 1024;

/// A file and its part of the manifest.
pub struct Vector {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub manifest: String,
}

/// Guest memory of some regions.
pub type Regions = Vec<(u64, Vec<u8>)>;

/// Returns `len` bytes that do not compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; len];
    reader.fill(&mut bytes);
    bytes
}

/// Returns `len` bytes that compress well.
pub fn text(len: usize) -> Vec<u8> {
    (0..len / 8)
        .flat_map(|line| format!("{:07}\n", line % 100).into_bytes())
        .collect()
}

fn fill(pattern: [u8; 8], len: usize) -> Vec<u8> {
    pattern.repeat(len / 8)
}

/// Pages: zero, zero, text, noise, fill, other text, zero, and the same noise at its place in the leaf.
pub fn all_kinds() -> Regions {
    let page = 4096;
    let mut upper = text(page);
    upper.make_ascii_uppercase();
    upper[0] = b'!';
    let pages = [
        vec![0; 2 * page],
        text(page),
        noise(1, page),
        fill(*b"\x01\x02\x03\x04\x05\x06\x07\x08", page),
        upper,
        vec![0; page],
        noise(1, page),
    ];
    vec![(0, pages.concat())]
}

pub fn sections() -> Vec<Section> {
    let section = |kind, name: &str, payload: &[u8]| Section {
        kind,
        name: name.to_owned(),
        version: 1,
        encoding: Encoding::Cbor,
        payload: payload.to_vec(),
    };
    let long = [b"\xa1\x64data\x59\x07\xd0".as_slice(), &b"0123456789".repeat(200)].concat();
    vec![
        section(SectionKind::VmState, "vm", b"\xa1\x63tsc\x18\x2a"),
        section(SectionKind::VmState, "vcpu/0", b"\xa1\x63rip\x19\x01\x00"),
        section(SectionKind::VmState, "vcpu/1", b"\xa1\x63rip\x19\x02\x00"),
        section(SectionKind::VmState, "device/serial0", &long),
        section(SectionKind::Platform, "", b"\xa0"),
        section(SectionKind::DiskTable, "", b"\xa0"),
        section(SectionKind::Provenance, "", b"\xa1\x64name\x64test"),
        section(SectionKind::Unknown(1000), "later", b"\xa0"),
    ]
}

/// Options whose result is the same every time.
pub fn options(chunk_bytes: u32, codec: Codec, id: u8) -> WriterOptions {
    WriterOptions {
        codec,
        chunk_size: ChunkSize::new(chunk_bytes).expect("a valid chunk size"),
        producer: "vmsnap vectors".to_owned(),
        leaf_entries_log2: Some(6),
        fixed_identity: Some(FixedIdentity {
            file_id: FileId([id; 16]),
            created_unix_ns: 1_700_000_000_000_000_000,
        }),
        ..WriterOptions::default()
    }
}

/// Writes a snapshot, sections first.
pub fn write(
    regions: &Regions,
    sections: &[Section],
    options: WriterOptions,
) -> snapfile::Result<(Vec<u8>, Summary)> {
    let region = |(guest_address, bytes): &(u64, Vec<u8>)| MemoryRegion {
        guest_address: *guest_address,
        len_bytes: bytes.len() as u64,
    };
    let map = MemoryMap::new(regions.iter().map(region).collect())?;
    let writer = Writer::new(Vec::new(), &map, options)?;
    for section in sections {
        writer.put_section(section)?;
    }
    let mut encoder = writer.encoder();
    for chunk in (0..writer.layout().chunk_count()).map(ChunkNumber) {
        let Some(range) = writer.layout().chunk(chunk) else {
            continue;
        };
        let (start, bytes) = &regions[range.region];
        let at = usize::try_from(range.guest_address - start).unwrap_or(usize::MAX);
        encoder.put_chunk(chunk, &bytes[at..][..range.len_bytes as usize])?;
    }
    drop(encoder);
    writer.finish()
}

/// Says in the manifest what a reader finds.
fn describe(
    name: &'static str,
    regions: &Regions,
    chunk_bytes: u32,
    sections: &[Section],
    summary: &Summary,
    parent: Option<&str>,
) -> Result<String, std::fmt::Error> {
    let mut hasher = blake3::Hasher::new();
    regions.iter().for_each(|(_, bytes)| {
        hasher.update(bytes);
    });
    let map: Vec<String> = regions
        .iter()
        .map(|(at, bytes)| format!("[{at:#x}, {:#x}]", bytes.len()))
        .collect();
    let mut out = format!("[[valid]]\nfile = \"{name}\"\n");
    if let Some(parent) = parent {
        writeln!(out, "parent = \"{parent}\"")?;
    }
    writeln!(out, "root_digest = \"{}\"", summary.root_digest)?;
    writeln!(out, "memory_blake3 = \"{}\"", hasher.finalize())?;
    writeln!(out, "chunk_bytes = {chunk_bytes}")?;
    writeln!(out, "regions = [{}]", map.join(", "))?;
    let counts = ChunkKind::ALL.map(|kind| format!("{} = {}", kind.name(), summary.chunks.of(kind)));
    writeln!(out, "chunks = {{ {} }}", counts.join(", "))?;
    writeln!(out, "sections = [")?;
    for section in sections {
        let (kind, digest) = (section.kind.code(), Digest::of(&section.payload));
        writeln!(
            out,
            "  {{ kind = {kind}, name = \"{}\", blake3 = \"{digest}\" }},",
            section.name
        )?;
    }
    writeln!(out, "]")?;
    Ok(out)
}

/// What a vector is made of.
struct Recipe {
    name: &'static str,
    regions: Regions,
    sections: Vec<Section>,
    options: WriterOptions,
    /// Changes that compatible extensions may make.
    change: fn(&mut File),
}

fn recipe(name: &'static str, regions: Regions, options: WriterOptions) -> Recipe {
    Recipe {
        name,
        regions,
        sections: Vec::new(),
        options,
        change: |_| {},
    }
}

fn recipes() -> Vec<Recipe> {
    let zstd = Codec::default();
    let kib = |n: u64| usize::try_from(n * KIB).unwrap_or(usize::MAX);
    let two_regions = vec![
        (0, [text(kib(12)), vec![0; kib(4)], noise(2, kib(4))].concat()),
        (16 << 20, text(kib(16))),
    ];
    let sparse = vec![(0, [text(kib(8)), vec![0; kib(552)], text(kib(12))].concat())];
    // The last chunk is short and equal to the start of the first, whose rest is zero.
    let short = vec![(0, [noise(3, kib(4)), vec![0; kib(12)], noise(3, kib(4))].concat())];
    let mut aligned = options(4096, Codec::Raw, 9);
    aligned.align_raw = true;
    // The worked example of the specification: zero, text, fill, and one state section.
    let example = [
        vec![0; kib(4)],
        b"snapshot example".repeat(256),
        vec![0xcc; kib(4)],
    ]
    .concat();
    let example_section = sections().into_iter().take(1).collect();
    vec![
        Recipe {
            sections: example_section,
            ..recipe(
                "example.vmsnap",
                vec![(1 << 20, example)],
                options(4096, zstd, 0xaa),
            )
        },
        recipe("zero.vmsnap", vec![(0, vec![0; kib(64)])], options(4096, zstd, 1)),
        recipe("kinds-zstd.vmsnap", all_kinds(), options(4096, zstd, 2)),
        recipe("kinds-lz4.vmsnap", all_kinds(), options(4096, Codec::Lz4, 3)),
        recipe("kinds-raw.vmsnap", all_kinds(), options(4096, Codec::Raw, 4)),
        recipe("chunks-8k.vmsnap", all_kinds(), options(8192, zstd, 5)),
        recipe("chunks-16k.vmsnap", all_kinds(), options(16384, zstd, 6)),
        recipe("chunks-64k.vmsnap", all_kinds(), options(65536, zstd, 7)),
        recipe("chunks-2m.vmsnap", all_kinds(), options(2 << 20, zstd, 8)),
        recipe("aligned.vmsnap", vec![(0, noise(4, kib(8)))], aligned.clone()),
        recipe("two-regions.vmsnap", two_regions, options(8192, zstd, 10)),
        recipe("absent-leaf.vmsnap", sparse, options(4096, zstd, 11)),
        recipe("short-duplicate.vmsnap", short, options(16384, zstd, 12)),
        Recipe {
            sections: sections(),
            ..recipe("sections.vmsnap", all_kinds(), options(4096, zstd, 13))
        },
        Recipe {
            change: |file| {
                file.put(10, &9u16.to_le_bytes());
                file.put_u64(24, 1 << 40);
                file.put_u64(32, 1 << 63);
            },
            ..recipe(
                "unknown-compatible-features.vmsnap",
                all_kinds(),
                options(4096, zstd, 14),
            )
        },
        Recipe {
            change: |file| {
                let padding = file.frame(patch::PADDING, 0);
                file.put(padding + patch::frame::TYPE, &[200]);
            },
            ..recipe("unknown-frame.vmsnap", vec![(0, noise(5, kib(4)))], aligned)
        },
    ]
}

/// A file of a family with its name, its guest memory and what the writer said.
pub type Member = (&'static str, Regions, Vec<u8>, Summary);

/// Returns a parent, and a child that differs from it in two chunks.
pub fn family() -> snapfile::Result<[Member; 2]> {
    let base = all_kinds();
    let mut later = base.clone();
    later[0].1[3 * 4096 + 17] ^= 1;
    later[0].1[7 * 4096] = 1;
    let (base_file, base_summary) = write(&base, &[], options(4096, Codec::default(), 20))?;
    let snapshot = Arc::new(Snapshot::from_storage(Box::new(base_file.clone()))?);
    let parent = Some(Parent {
        snapshot,
        hint: "parent-base.vmsnap".to_owned(),
    });
    let child = WriterOptions {
        parent,
        ..options(4096, Codec::default(), 21)
    };
    let (file, summary) = write(&later, &[], child)?;
    Ok([
        ("parent-base.vmsnap", base, base_file, base_summary),
        ("parent-child.vmsnap", later, file, summary),
    ])
}

/// Makes all valid vectors.
pub fn vectors() -> Result<Vec<Vector>, Box<dyn std::error::Error>> {
    let mut vectors = Vec::new();
    for Recipe {
        name,
        regions,
        sections,
        options,
        change,
    } in recipes()
    {
        let chunk_bytes = options.chunk_size.bytes();
        let (bytes, summary) = write(&regions, &sections, options)?;
        let mut file = File(bytes);
        change(&mut file);
        file.seal();
        let manifest = describe(name, &regions, chunk_bytes, &sections, &summary, None)?;
        vectors.push(Vector {
            name,
            bytes: file.0,
            manifest,
        });
    }
    let family = family()?;
    let parents = [None, Some(family[0].0)];
    for ((name, regions, bytes, summary), parent) in family.into_iter().zip(parents) {
        let manifest = describe(name, &regions, 4096, &[], &summary, parent)?;
        vectors.push(Vector {
            name,
            bytes,
            manifest,
        });
    }
    Ok(vectors)
}
