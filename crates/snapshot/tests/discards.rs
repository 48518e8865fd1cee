//! Memory that is given back to the host while it is saved.

mod support;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use snapfile::{ChunkNumber, Snapshot};
use snapshot::{DisksMode, ErrorKind, PlainMemory, SaveControl, SaveMode, SaveOptions, Subject, save};
use support::DiskScene;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::{Discard, DiscardRoute};

/// Two writers of 16 MiB each, and as much again that nobody writes.
const MEMORY_BYTES: u64 = 48 << 20;
/// Begin of what nobody writes.
const UNUSED: u64 = 32 << 20;
const UNUSED_PAGES: u64 = (16 << 20) / PAGE;
const PAGE: u64 = 4096;

/// The way that discards have while nothing is saved; counts them.
#[derive(Default)]
struct Usual {
    count: AtomicU64,
    host: DiscardRoute,
}

impl Discard for Usual {
    fn discard(&self, memory: &GuestMemoryMmap, gpa: u64, len: u64) -> io::Result<()> {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.host.discard(memory, gpa, len)
    }
}

/// Discards the unused pages in ascending order until the end, the last one again and again.
fn discard_pages(scene: &DiskScene, ended: &AtomicBool) {
    let mut page = 0;
    while !ended.load(Ordering::Relaxed) {
        scene.discard(UNUSED + page * PAGE);
        page = (page + 1).min(UNUSED_PAGES - 1);
        if page % 16 == 0 {
            thread::yield_now();
        }
    }
}

/// Of the unused pages in a snapshot, how many are zero and then how many are whole.
fn zero_then_whole(path: &Path) -> (u64, u64) {
    let snapshot = Snapshot::open(path).unwrap();
    let layout = snapshot.layout();
    let (mut zero, mut whole) = (0, 0);
    for number in (0..layout.chunk_count()).map(ChunkNumber) {
        let range = layout.chunk(number).unwrap();
        let mut chunk = vec![0; usize::try_from(range.len_bytes).unwrap()];
        snapshot.decoder().read_chunk(number, &mut chunk).unwrap();
        if range.guest_address < UNUSED {
            continue;
        }
        for page in chunk.as_chunks::<4096>().0 {
            match page {
                [0, ..] if *page == [0; 4096] && whole == 0 => zero += 1,
                _ if *page == [0xaa; 4096] => whole += 1,
                _ => panic!(
                    "page {} behind {zero} zero ones is not of one instant",
                    zero + whole
                ),
            }
        }
    }
    (zero, whole)
}

#[test]
fn a_save_shows_which_pages_were_given_back_before_its_instant() {
    for mode in [SaveMode::Async, SaveMode::Stop] {
        let Some(scene) = DiskScene::set("a_save_shows_which_pages_were_given_back", MEMORY_BYTES) else {
            return;
        };
        let usual = Arc::new(Usual::default());
        drop(
            scene
                .subject
                .discard_route
                .install(Arc::clone(&usual) as Arc<dyn Discard>),
        );
        let unused = vec![0xaa; usize::try_from(UNUSED_PAGES * PAGE).unwrap()];
        scene
            .subject
            .memory()
            .write_slice(&unused, GuestAddress(UNUSED))
            .unwrap();
        let options = SaveOptions {
            mode,
            disks: DisksMode::Copy,
            ..SaveOptions::default()
        };
        let ended = AtomicBool::new(false);
        let saved = thread::scope(|scope| {
            scope.spawn(|| discard_pages(&scene, &ended));
            let saved = save(&scene.subject, scene.path("out"), &options, &SaveControl::new());
            ended.store(true, Ordering::Relaxed);
            saved
        });
        let report = saved.unwrap();
        assert!(report.statistics.capture.discarded_bytes > 0, "{report:?}");
        let (zero, whole) = zero_then_whole(&scene.path("out"));
        assert_eq!(zero + whole, UNUSED_PAGES);
        // Nobody writes there but this test: whole pages are what the oracle does not know of, and nothing else is.
        let check = PlainMemory::check(scene.path("out")).unwrap();
        assert_eq!(check.mismatch_count, whole);
        assert_usual(&scene, &usual);
    }
}

#[test]
fn discards_have_their_usual_way_again_when_a_save_fails() {
    let Some(scene) = DiskScene::set(
        "discards_have_their_usual_way_again_when_a_save_fails",
        MEMORY_BYTES,
    ) else {
        return;
    };
    let usual = Arc::new(Usual::default());
    drop(
        scene
            .subject
            .discard_route
            .install(Arc::clone(&usual) as Arc<dyn Discard>),
    );
    let control = SaveControl::new();
    control.cancel();
    let options = SaveOptions {
        disks: DisksMode::Copy,
        ..SaveOptions::default()
    };
    let error = save(&scene.subject, scene.path("out"), &options, &control).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert_usual(&scene, &usual);
}

fn assert_usual(scene: &DiskScene, usual: &Usual) {
    let before = usual.count.load(Ordering::Relaxed);
    scene.discard(UNUSED);
    assert_eq!(usual.count.load(Ordering::Relaxed), before + 1);
}
