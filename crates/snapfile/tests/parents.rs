//! Chains of parents: found by hint or given, checked, bounded.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{Guest, fixed_options, open, read_at_random};
use snapfile::{Codec, Error, FileId, FixedIdentity, Parent, ParentError, Snapshot, WriterOptions};

fn guest(seed: u8) -> Guest {
    let page = |n: u8| {
        (0..4096u32)
            .map(move |i| (i / 3 % 200) as u8 ^ n)
            .collect::<Vec<u8>>()
    };
    Guest::new(vec![(0, [page(1), page(2), page(seed)].concat())])
}

fn options(id: u8, parent: Option<(&Arc<Snapshot>, &str)>) -> WriterOptions {
    WriterOptions {
        fixed_identity: Some(FixedIdentity {
            file_id: FileId([id; 16]),
            created_unix_ns: 0,
        }),
        parent: parent.map(|(snapshot, hint)| Parent {
            snapshot: snapshot.clone(),
            hint: hint.to_owned(),
        }),
        ..fixed_options(4096, Codec::default())
    }
}

/// Writes a chain of `count` files, each the parent of the next, and returns the last one's path.
fn write_chain(directory: &Path, count: u8) -> std::path::PathBuf {
    let path = |n: u8| directory.join(format!("{n}.vmsnap"));
    fs::write(path(0), guest(0).write(options(0, None)).0).unwrap();
    for n in 1..count {
        let parent = Arc::new(Snapshot::open_with_parents(path(n - 1)).unwrap());
        let hint = format!("{}.vmsnap", n - 1);
        fs::write(path(n), guest(n).write(options(n, Some((&parent, &hint)))).0).unwrap();
    }
    path(count - 1)
}

#[test]
fn a_chain_is_opened_by_hints_and_read_through() {
    let directory = tempfile::tempdir().unwrap();
    let last = write_chain(directory.path(), 5);
    let snapshot = Snapshot::open_with_parents(last).unwrap();
    assert_eq!(snapshot.depth(), 4);
    assert_eq!(
        snapshot.summary().chunks.parent,
        2,
        "chunks that have not changed are in the parent"
    );
    assert!(read_at_random(&snapshot).unwrap().regions == guest(4).regions);
}

#[test]
fn without_its_parent_a_snapshot_opens_but_does_not_read() {
    let base = Arc::new(open(&guest(0).write(options(0, None)).0).unwrap());
    let child = open(&guest(1).write(options(1, Some((&base, "base")))).0).unwrap();
    let error = read_at_random(&child).unwrap_err();
    assert!(
        matches!(error, Error::Parent(ParentError::Missing { ref hint, .. }) if hint == "base"),
        "{error}"
    );
}

#[test]
fn another_snapshot_is_refused_as_parent() {
    let base = Arc::new(open(&guest(0).write(options(0, None)).0).unwrap());
    let other = Arc::new(open(&guest(9).write(options(2, None)).0).unwrap());
    let child = || open(&guest(1).write(options(1, Some((&base, "")))).0).unwrap();
    let refused = child().with_parent(other.clone());
    assert!(
        matches!(refused, Err(Error::Parent(ParentError::RootDigest { .. }))),
        "{refused:?}"
    );
    let refused = open(&guest(0).write(options(0, None)).0)
        .unwrap()
        .with_parent(other);
    assert!(
        matches!(refused, Err(Error::Parent(ParentError::NotIncremental))),
        "{refused:?}"
    );
    let recompressed = options(3, None);
    let same_content = Arc::new(
        open(
            &guest(0)
                .write(WriterOptions {
                    codec: Codec::Raw,
                    ..recompressed
                })
                .0,
        )
        .unwrap(),
    );
    assert!(
        child().with_parent(same_content).is_ok(),
        "the root digest is the identity, not the file"
    );
}

#[test]
fn a_file_that_is_its_own_ancestor_is_refused() {
    // The guest is the same in both, so each is a parent that the other would accept.
    let directory = tempfile::tempdir().unwrap();
    let base = Arc::new(open(&guest(0).write(options(0, None)).0).unwrap());
    let write = |name: &str, id, hint: &str| {
        let file = guest(0).write(options(id, Some((&base, hint)))).0;
        fs::write(directory.path().join(name), file).unwrap();
    };
    write("a.vmsnap", 1, "b.vmsnap");
    write("b.vmsnap", 2, "a.vmsnap");
    let refused = Snapshot::open_with_parents(directory.path().join("a.vmsnap"));
    assert!(
        matches!(refused, Err(Error::Parent(ParentError::Loop { .. }))),
        "{refused:?}"
    );
    write("self.vmsnap", 3, "self.vmsnap");
    let refused = Snapshot::open_with_parents(directory.path().join("self.vmsnap"));
    assert!(
        matches!(refused, Err(Error::Parent(ParentError::Loop { .. }))),
        "{refused:?}"
    );
}

#[test]
fn hints_that_lead_nowhere_or_to_devices_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let base = Arc::new(open(&guest(0).write(options(0, None)).0).unwrap());
    for (hint, name) in [
        ("gone.vmsnap", "gone"),
        ("/dev/zero", "device"),
        (".", "directory"),
    ] {
        let path = directory.path().join(name);
        fs::write(&path, guest(1).write(options(1, Some((&base, hint)))).0).unwrap();
        let refused = Snapshot::open_with_parents(&path);
        assert!(
            matches!(refused, Err(Error::Parent(ParentError::Hint { .. }))),
            "{hint}: {refused:?}"
        );
    }
}

#[test]
fn the_longest_chain_is_read_and_a_longer_one_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let last = write_chain(directory.path(), 65);
    let longest = Arc::new(Snapshot::open_with_parents(&last).unwrap());
    assert_eq!(longest.depth(), 64);
    assert!(read_at_random(&longest).unwrap().regions == guest(64).regions);
    let refused = snapfile::Writer::new(
        Vec::new(),
        &guest(0).map,
        options(99, Some((&longest, "64.vmsnap"))),
    );
    assert!(
        matches!(refused, Err(Error::Parent(ParentError::TooDeep { .. }))),
        "{refused:?}"
    );
    // A writer that has not opened the grandparents cannot count them; the reader does.
    let alone = Arc::new(Snapshot::open(&last).unwrap());
    let path = directory.path().join("too-deep.vmsnap");
    fs::write(&path, guest(1).write(options(99, Some((&alone, "64.vmsnap")))).0).unwrap();
    let refused = Snapshot::open_with_parents(&path);
    assert!(
        matches!(refused, Err(Error::Parent(ParentError::TooDeep { .. }))),
        "{refused:?}"
    );
}

#[test]
fn writer_refuses_a_parent_of_another_layout() {
    let base = Arc::new(open(&guest(0).write(options(0, None)).0).unwrap());
    let other_map = Guest::new(vec![(0, vec![1; 8192])]).map;
    let refused = snapfile::Writer::new(Vec::new(), &other_map, options(1, Some((&base, ""))));
    assert!(
        matches!(
            refused,
            Err(Error::Parent(ParentError::Layout { what: "memory map" }))
        ),
        "{refused:?}"
    );
    let chunk_size = snapfile::ChunkSize::DEFAULT;
    let refused = snapfile::Writer::new(
        Vec::new(),
        &guest(0).map,
        WriterOptions {
            chunk_size,
            ..options(1, Some((&base, "")))
        },
    );
    assert!(
        matches!(
            refused,
            Err(Error::Parent(ParentError::Layout { what: "chunk size" }))
        ),
        "{refused:?}"
    );
}
