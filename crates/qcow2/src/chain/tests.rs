//! Chains that are found, and those that are refused.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::chain::local_file;
use crate::error::{ChainError, Error};
use crate::{Access, Backing, Cache, Chain, CreateOptions, FileStorage, ImageFormat, create};

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn raw(path: &Path) {
    File::create(path).unwrap().set_len(1 << 20).unwrap();
}

/// Makes an overlay at `path` over the backing file `name`.
fn overlay(path: &Path, name: impl AsRef<Path>, format: Option<&str>) {
    let backing = Backing {
        name: name.as_ref().into(),
        format: format.map(str::to_owned),
    };
    File::create(path).unwrap();
    let storage = FileStorage::open(path, Access::ReadWrite, Cache::Writeback).unwrap();
    create(&storage, &CreateOptions::new(1 << 20)).unwrap();
    let mut header = crate::Header::read(&storage).unwrap();
    header.set_backing(Some(&backing));
    header.write(&storage).unwrap();
}

fn open(path: &Path) -> crate::Result<Chain> {
    Chain::open(path, ImageFormat::Qcow2, Access::ReadWrite, Cache::Writeback)
}

fn refusal(path: &Path) -> ChainError {
    match open(path).unwrap_err() {
        Error::Chain(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
fn names_are_relative_to_the_image_that_states_them() {
    let directory = directory();
    let root = directory.path();
    fs::create_dir(root.join("base")).unwrap();
    raw(&root.join("base/disk.raw"));
    overlay(&root.join("base/middle.qcow2"), "disk.raw", Some("raw"));
    overlay(&root.join("top.qcow2"), "base/middle.qcow2", Some("qcow2"));
    let chain = open(&root.join("top.qcow2")).unwrap();
    let paths: Vec<PathBuf> = chain.layers.iter().map(|layer| layer.path.clone()).collect();
    let wanted = ["top.qcow2", "base/middle.qcow2", "base/disk.raw"].map(|name| root.join(name));
    assert_eq!(paths, wanted);
    assert_eq!(chain.layers[2].format, ImageFormat::Raw);
}

#[test]
fn only_the_top_is_open_for_writing() {
    let directory = directory();
    let root = directory.path();
    raw(&root.join("disk.raw"));
    for name in ["a.qcow2", "b.qcow2"] {
        overlay(&root.join(name), "disk.raw", Some("raw"));
    }
    // Two overlays share a base, and neither may be opened twice.
    let first = open(&root.join("a.qcow2")).unwrap();
    let _second = open(&root.join("b.qcow2")).unwrap();
    assert!(matches!(open(&root.join("a.qcow2")), Err(Error::InUse { .. })));
    let raw = Chain::open(
        &root.join("disk.raw"),
        ImageFormat::Raw,
        Access::ReadWrite,
        Cache::Writeback,
    );
    assert!(matches!(raw, Err(Error::InUse { .. })));
    assert_eq!(first.layers[1].storage.access(), Access::ReadOnly);
    assert!(Chain::open_shared(&root.join("a.qcow2"), ImageFormat::Qcow2).is_ok());
}

#[test]
fn an_image_below_itself_is_refused() {
    let directory = directory();
    let root = directory.path();
    overlay(&root.join("self.qcow2"), "self.qcow2", Some("qcow2"));
    assert!(matches!(
        refusal(&root.join("self.qcow2")),
        ChainError::Loop { .. }
    ));
    overlay(&root.join("a.qcow2"), "b.qcow2", Some("qcow2"));
    overlay(&root.join("b.qcow2"), "link.qcow2", Some("qcow2"));
    std::os::unix::fs::symlink("a.qcow2", root.join("link.qcow2")).unwrap();
    assert!(matches!(refusal(&root.join("a.qcow2")), ChainError::Loop { .. }));
}

#[test]
fn a_format_is_stated_or_refused_with_advice() {
    let directory = directory();
    let top = directory.path().join("top.qcow2");
    raw(&directory.path().join("disk.raw"));
    overlay(&top, "disk.raw", None);
    let error = refusal(&top);
    assert!(
        matches!(error, ChainError::FormatNotStated { .. }) && error.to_string().contains("rebase -u -F")
    );
    overlay(&top, "disk.raw", Some("vmdk"));
    assert!(matches!(refusal(&top), ChainError::Format { .. }));
}

#[test]
fn a_missing_backing_file_is_named() {
    let directory = directory();
    let top = directory.path().join("top.qcow2");
    overlay(&top, "gone.raw", Some("raw"));
    assert!(refusal(&top).to_string().ends_with("gone.raw"));
}

#[test]
fn an_unnamed_image_names_its_backing_file_absolutely() {
    let directory = directory();
    let (base, path) = (directory.path().join("disk.raw"), directory.path().join("top"));
    raw(&base);
    overlay(&path, &base, Some("raw"));
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let chain = open(Path::new(&link)).unwrap();
    assert_eq!(chain.layers[0].path, Path::new(&link));
    assert_eq!(chain.layers[1].path, base);
}

#[test]
fn a_chain_is_at_most_64_deep() {
    let directory = directory();
    let path = |number: usize| directory.path().join(format!("{number}.qcow2"));
    raw(&directory.path().join("disk.raw"));
    overlay(&path(0), "disk.raw", Some("raw"));
    for number in 1..64 {
        overlay(&path(number), path(number - 1), Some("qcow2"));
    }
    // With the raw base, 63 images are 64 layers.
    assert_eq!(open(&path(62)).unwrap().depth(), 64);
    assert!(matches!(refusal(&path(63)), ChainError::TooDeep));
}

#[test]
fn names_of_protocols_are_no_files() {
    for (name, file) in [
        ("base.raw", Some("base.raw")),
        ("/a:b", Some("/a:b")),
        ("./a:b", Some("./a:b")),
        ("file:base.raw", Some("base.raw")),
        ("nbd:localhost", None),
        ("nbd://localhost/x", None),
        ("json:{}", None),
        ("file:", None),
    ] {
        assert_eq!(local_file(name.as_ref()), file.map(Path::new), "{name}");
    }
}
