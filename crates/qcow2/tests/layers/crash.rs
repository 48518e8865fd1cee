//! Crashes of a switch, of a flatten and of what a commit does: the live disk is whole after each of them.

use std::ops::ControlFlow;
use std::sync::Arc;

use qcow2::flatten::{FlattenOptions, flatten};
use qcow2::replay::{Crash, Recorder};
use qcow2::{
    Backing, CreateOptions, Image, ImageFormat, ImageOptions, Layer, MemoryStorage, Metadata, Storage, check,
};

use crate::fill;

const DISK: usize = 96 << 10;

fn options() -> CreateOptions {
    CreateOptions {
        cluster_bits: 12,
        ..CreateOptions::new(DISK as u64)
    }
}

fn overlay_options(below: &str) -> CreateOptions {
    CreateOptions {
        cluster_bits: 12,
        ..CreateOptions::overlay(DISK as u64, Backing::new(below, ImageFormat::Qcow2))
    }
}

fn open(storage: Arc<dyn Storage>, below: Option<Arc<dyn Layer>>) -> Image {
    Image::open(storage, below, &ImageOptions::default()).unwrap()
}

/// A new image with some data.
fn base() -> (Vec<u8>, Vec<u8>) {
    let storage = Arc::new(MemoryStorage::new());
    qcow2::create(storage.as_ref(), &options()).unwrap();
    let image = open(storage.clone(), None);
    let mut content = vec![0; DISK];
    fill(&image, &mut content, 5000, DISK / 2, 7);
    image.close().unwrap();
    (storage.to_bytes(), content)
}

/// What a program sees that opens a name after a crash, following the chain; no layer has a corruption.
fn seen(crash: &Crash, name: &str) -> Vec<u8> {
    let image = open_named(crash, name);
    let mut content = vec![0; DISK];
    image.read_at(&mut content, 0).unwrap();
    content
}

fn open_named(crash: &Crash, name: &str) -> Image {
    let what = crash.description();
    let storage = Arc::new(
        crash
            .storage(name)
            .unwrap_or_else(|| panic!("{what}: there is no {name}")),
    );
    let metadata = Metadata::open(storage.clone()).unwrap_or_else(|error| panic!("{what}: {name}: {error}"));
    let report = check::check(&metadata, &mut |_, _| ControlFlow::Continue(())).unwrap();
    assert_eq!(
        (report.corruptions, report.check_errors),
        (0, 0),
        "{what}: {name}: {report:?}"
    );
    let below = metadata.header.backing().map(|backing| {
        let below = open_named(crash, backing.name.to_str().unwrap());
        Arc::new(below) as Arc<dyn Layer>
    });
    Image::open(storage, below, &ImageOptions::read_only()).unwrap()
}

/// Every sector is one of those that some version of the disk has there.
fn assert_one_of(crash: &Crash, content: &[u8], versions: &[&[u8]]) {
    for (sector, bytes) in content.chunks(512).enumerate() {
        let at = sector * 512;
        let known = versions
            .iter()
            .any(|version| &version[at..at + bytes.len()] == bytes);
        assert!(
            known,
            "{}: sector {sector} is what it never was",
            crash.description()
        );
    }
}

fn crashes(recorder: &Recorder) -> Vec<Crash> {
    let crashes: Vec<_> = recorder.kills().chain(recorder.power_losses(11, 12)).collect();
    assert!(crashes.len() > 30);
    crashes
}

#[test]
fn the_live_name_is_what_the_guest_last_saw_whenever_a_switch_is_cut_off() {
    let (bytes, before) = base();
    let recorder = Recorder::new();
    let live = Arc::new(open(recorder.existing("live", bytes), None));
    let mut content = before.clone();
    fill(&live, &mut content, 0, 6000, 40);
    live.flush().unwrap();
    recorder.mark("flushed");
    let flushed = content.clone();
    fill(&live, &mut content, 60_000, 20_000, 41);

    // The steps of a switch, in its order.
    let file = recorder.create("temporary");
    qcow2::create(file.as_ref(), &overlay_options("frozen")).unwrap();
    let overlay = open(file, Some(live.clone()));
    live.freeze();
    recorder.link("live", "frozen").unwrap();
    recorder.rename("temporary", "live").unwrap();
    let at_switch = content.clone();
    fill(&overlay, &mut content, 2000, 3000, 42);
    live.settle().unwrap();
    recorder.sync_directory();
    overlay.flush().unwrap();
    recorder.mark("flushed over it");

    for crash in crashes(&recorder) {
        let seen = seen(&crash, "live");
        match crash.marks().last().map(String::as_str) {
            None => assert_one_of(&crash, &seen, &[&before, &flushed]),
            Some("flushed") => assert_one_of(&crash, &seen, &[&flushed, &at_switch, &content]),
            _ => assert_one_of(&crash, &seen, &[&content]),
        }
        if crash.marks().len() > 1 {
            assert!(
                self::seen(&crash, "frozen") == at_switch,
                "{}",
                crash.description()
            );
        }
    }
}

#[test]
fn a_disk_reads_the_same_whenever_its_flatten_is_cut_off() {
    let (bytes, content) = base();
    let recorder = Recorder::new();
    let below = Arc::new(open(recorder.existing("below", bytes), None));
    let storage = MemoryStorage::new();
    qcow2::create(&storage, &overlay_options("below")).unwrap();
    let image = open(recorder.existing("top", storage.to_bytes()), Some(below));
    flatten(&image, &FlattenOptions::default(), &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    drop(image);
    let mut flat = 0;
    for crash in crashes(&recorder) {
        assert!(seen(&crash, "top") == content, "{}", crash.description());
        let metadata = Metadata::open(Arc::new(crash.storage("top").unwrap())).unwrap();
        flat += usize::from(metadata.header.backing().is_none());
    }
    assert!(flat > 0, "some crashes came after the end");
}

#[test]
fn an_overlay_reads_the_same_whenever_its_commit_is_cut_off() {
    let (bytes, mut content) = base();
    let top = Arc::new(MemoryStorage::new());
    qcow2::create(top.as_ref(), &overlay_options("below")).unwrap();
    let recorder = Recorder::new();
    let base = Arc::new(open(recorder.existing("below", bytes), None));
    let overlay = open(top.clone(), Some(base.clone()));
    fill(&overlay, &mut content, 20_000, 30_000, 90);
    overlay.settle().unwrap();
    recorder.existing("top", top.to_bytes());
    // What a commit does to the backing file.
    for offset in (0..DISK as u64).step_by(4096) {
        if overlay.is_allocated(offset, 4096).unwrap().0 {
            let mut piece = [0; 4096];
            overlay.read_at(&mut piece, offset).unwrap();
            base.write_at(&piece, offset).unwrap();
        }
    }
    base.settle().unwrap();
    for crash in crashes(&recorder) {
        assert!(seen(&crash, "top") == content, "{}", crash.description());
    }
}
