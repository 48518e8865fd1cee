//! What a disk holds, as QEMU and as this crate read it.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use qcow2::{Image, ImageOptions, Metadata, snapshots};

use crate::second_opinion::{open, open_writable, present, qemu_check, qemu_img, text};

/// Waits until no other test of this program runs, or says that `test` is skipped.
///
/// A tool that is being started by another thread holds every file of this process for a moment, and with the file its
/// lock, so that an image that was just closed would seem to be in use.
pub fn alone(test: &str) -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::new(());
    present(test).then(|| ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The digest of the active disk, or of a snapshot with an id, as `qemu-img` reads it.
pub fn as_qemu_reads(path: &Path, id: Option<&str>) -> String {
    let raw = path.with_extension("raw");
    let snapshot = id.map(|id| format!("snapshot.id={id}"));
    let mut arguments = vec!["convert", "-q", "-f", "qcow2", "-O", "raw"];
    if let Some(snapshot) = &snapshot {
        arguments.extend(["-l", snapshot]);
    }
    arguments.extend([text(path), text(&raw)]);
    qemu_img(&arguments);
    let content = fs::read(&raw).expect("the content");
    fs::remove_file(&raw).expect("the content");
    blake3::hash(&content).to_hex().to_string()
}

/// The digest of a snapshot with an id as this crate reads it.
pub fn as_we_read(path: &Path, id: &str) -> String {
    let image = Image::open_snapshot(open(path), None, id, &ImageOptions::default()).expect("a snapshot");
    let mut content = vec![0; usize::try_from(image.len_bytes()).expect("a small disk")];
    image.read_at(&mut content, 0).expect("the content");
    blake3::hash(&content).to_hex().to_string()
}

/// The metadata of an image that is open for writing until this is dropped.
pub fn metadata(path: &Path) -> Metadata {
    Metadata::open(open_writable(path)).expect("an image")
}

/// The ids of an image's snapshots, in their order.
pub fn ids(path: &Path) -> Vec<String> {
    let metadata = Metadata::open(open(path)).expect("an image");
    snapshots::list(&metadata)
        .iter()
        .map(|entry| entry.id().into_owned())
        .collect()
}

/// Asserts that `qemu-img check` finds neither corruptions nor leaks.
pub fn assert_clean(path: &Path, what: &str) {
    let (code, figures) = qemu_check(path);
    assert_eq!(code, Some(0), "{what}: {figures}");
}
