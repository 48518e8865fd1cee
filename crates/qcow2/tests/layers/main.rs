//! Overlays that take a live disk's place, flatten and commit.

#![allow(clippy::cast_possible_truncation, reason = "disks of the tests are small")]

#[path = "../second_opinion/mod.rs"]
mod second_opinion;

mod commit;
mod crash;
mod flatten;
mod switch;

use std::path::Path;
use std::sync::Arc;

use qcow2::{
    Access, Backing, Cache, CreateOptions, FileStorage, Image, ImageFormat, ImageOptions, Layer, Storage,
};

/// Bytes of the tests' disks.
const DISK: usize = 3 << 20;

/// Creates an image in a file.
fn create(path: &Path, options: &CreateOptions) {
    std::fs::write(path, []).unwrap();
    let file = FileStorage::open(path, Access::ReadWrite, Cache::Writeback).unwrap();
    qcow2::create(&file, options).unwrap();
}

/// An image with data, open.
fn disk(path: &Path) -> (Arc<Image>, Vec<u8>) {
    create(path, &CreateOptions::new(DISK as u64));
    let image = Image::open_chain(path, &ImageOptions::default()).unwrap();
    let mut content = vec![0; DISK];
    fill(&image, &mut content, 0, DISK / 2, 1);
    (image, content)
}

/// An overlay in a file, open.
fn overlay(path: &Path, below: &str, format: ImageFormat) -> Arc<Image> {
    create(
        path,
        &CreateOptions::overlay(DISK as u64, Backing::new(below, format)),
    );
    Image::open_chain(path, &ImageOptions::default()).unwrap()
}

/// Writes to an image and to the array beside it.
fn fill(image: &Image, content: &mut [u8], start: usize, len: usize, fill: u8) {
    content[start..start + len]
        .iter_mut()
        .zip(0usize..)
        .for_each(|(byte, at)| {
            *byte = fill.wrapping_add((at / 512) as u8).max(1);
        });
    image
        .write_at(&content[start..start + len], start as u64)
        .unwrap();
}

fn assert_reads(layer: &dyn Layer, content: &[u8]) {
    let mut read = vec![0xee; content.len()];
    layer.read_at(&mut read, 0).unwrap();
    if let Some(at) = read.iter().zip(content).position(|(one, other)| one != other) {
        panic!("byte {at:#x} is {:#x}, not {:#x}", read[at], content[at]);
    }
}

/// The check finds nothing.
fn assert_clean(storage: Arc<dyn Storage>) {
    let metadata = qcow2::Metadata::open(storage).unwrap();
    let report = qcow2::check::check(&metadata, &mut |_, _| std::ops::ControlFlow::Continue(())).unwrap();
    assert!(report.is_clean(), "{report:?}");
}
