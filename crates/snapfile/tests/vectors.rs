//! Every test vector of the specification is read as its manifest says.
#![allow(
    clippy::cast_possible_truncation,
    reason = "the guests are small and their bytes made up"
)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{read_at_random, read_stream};
use serde::Deserialize;
use snapfile::{ChunkKind, Digest, Error, Snapshot};

#[derive(Deserialize)]
struct Manifest {
    valid: Vec<Valid>,
    invalid: Vec<Invalid>,
}

#[derive(Deserialize)]
struct Valid {
    file: String,
    parent: Option<String>,
    root_digest: String,
    memory_blake3: String,
    chunk_bytes: u32,
    regions: Vec<(u64, u64)>,
    chunks: std::collections::BTreeMap<String, u64>,
    sections: Vec<SectionContent>,
}

#[derive(Deserialize)]
struct SectionContent {
    kind: u32,
    name: String,
    blake3: String,
}

#[derive(Deserialize)]
struct Invalid {
    file: String,
    kind: String,
    clause: String,
    random: String,
    stream: String,
    parent: Option<String>,
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fmt-spec/vectors")
}

fn manifest() -> Manifest {
    toml::from_str(&std::fs::read_to_string(directory().join("manifest.toml")).unwrap()).unwrap()
}

fn valid(name: &str) -> PathBuf {
    directory().join("valid").join(name)
}

#[test]
fn valid_vectors_hold_what_the_manifest_says() {
    for vector in manifest().valid {
        let name = &vector.file;
        let path = valid(name);
        let snapshot = Snapshot::open_with_parents(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(snapshot.parent().is_some(), vector.parent.is_some(), "{name}");
        assert_eq!(snapshot.chunk_size().bytes(), vector.chunk_bytes, "{name}");
        let regions = snapshot
            .memory_map()
            .regions()
            .iter()
            .map(|region| (region.guest_address, region.len_bytes));
        assert_eq!(regions.collect::<Vec<_>>(), vector.regions, "{name}");
        for kind in ChunkKind::ALL {
            assert_eq!(
                snapshot.summary().chunks.of(kind),
                vector.chunks[kind.name()],
                "{name}: {kind:?}"
            );
        }
        let content = read_at_random(&snapshot).unwrap_or_else(|error| panic!("{name}: {error}"));
        let streamed = read_stream(
            &std::fs::read(&path).unwrap(),
            snapshot.parent().map(|parent| &**parent),
        );
        assert_eq!(
            streamed.unwrap_or_else(|error| panic!("{name}: {error}")),
            content,
            "{name}"
        );
        assert_eq!(content.root_digest.to_string(), vector.root_digest, "{name}");
        assert_eq!(
            Digest::of(&content.regions.concat()).to_string(),
            vector.memory_blake3,
            "{name}"
        );
        assert_eq!(content.sections.len(), vector.sections.len(), "{name}");
        for section in vector.sections {
            let payload = &content.sections[&(section.kind, section.name)];
            assert_eq!(Digest::of(payload).to_string(), section.blake3, "{name}");
        }
    }
}

fn reported<T>(result: Result<T, Error>) -> (String, String) {
    let Err(error) = result else {
        return ("ok".to_owned(), "ok".to_owned());
    };
    let kind = match error {
        Error::Corrupt(_) => "corrupt",
        Error::Unsupported(_) => "unsupported",
        Error::Incomplete { .. } => "incomplete",
        Error::LimitExceeded(_) => "limit exceeded",
        ref other => panic!("{other}"),
    };
    (error.clause().unwrap().to_owned(), kind.to_owned())
}

#[test]
fn invalid_vectors_are_refused_by_the_clause_they_break() {
    for vector in manifest().invalid {
        let name = &vector.file;
        let file = std::fs::read(directory().join("invalid").join(name)).unwrap();
        let parent = vector
            .parent
            .as_ref()
            .map(|parent| Arc::new(Snapshot::open(valid(parent)).unwrap()));
        let at_random = common::open(&file).and_then(|snapshot| {
            let snapshot = match parent.clone().filter(|_| snapshot.header().parent.is_some()) {
                Some(parent) => snapshot.with_parent(parent)?,
                None => snapshot,
            };
            read_at_random(&snapshot)
        });
        let streamed = read_stream(&file, parent.as_deref());
        let (random, stream) = (reported(at_random), reported(streamed));
        assert_eq!((&random.0, &stream.0), (&vector.random, &vector.stream), "{name}");
        assert!(
            [&vector.random, &vector.stream].contains(&&vector.clause),
            "{name}"
        );
        for (clause, kind) in [random, stream] {
            assert!(clause != vector.clause || kind == vector.kind, "{name}: {kind}");
        }
    }
}

#[test]
fn all_vectors_are_in_the_manifest() {
    let manifest = manifest();
    let mut listed: Vec<String> = manifest
        .valid
        .into_iter()
        .map(|vector| format!("valid/{}", vector.file))
        .collect();
    listed.extend(
        manifest
            .invalid
            .into_iter()
            .map(|vector| format!("invalid/{}", vector.file)),
    );
    let mut found = Vec::new();
    for kind in ["valid", "invalid"] {
        for entry in std::fs::read_dir(directory().join(kind)).unwrap() {
            found.push(format!("{kind}/{}", entry.unwrap().file_name().to_str().unwrap()));
        }
    }
    listed.sort();
    found.sort();
    assert_eq!(listed, found);
}

#[test]
fn the_worked_example_is_the_vector() {
    let spec = include_str!("../../../fmt-spec/snapfile-v1.md");
    let (_, example) = spec.split_once("## 16 Worked example").unwrap();
    let file = std::fs::read(valid("example.vmsnap")).unwrap();
    let mut shown = 0;
    for line in example.lines() {
        let Some((offset, rest)) = line.split_once(": ") else {
            continue;
        };
        let Ok(offset) = usize::from_str_radix(offset, 16) else {
            continue;
        };
        let bytes = rest.split("  ").next().unwrap().split(' ');
        let bytes: Vec<u8> = bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        assert_eq!(file[offset..offset + bytes.len()], bytes, "{line}");
        shown += bytes.len();
    }
    assert!(shown > 600, "{shown} bytes are shown");
}
