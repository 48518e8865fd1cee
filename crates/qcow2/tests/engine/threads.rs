//! Many threads on one image: writes to the same clusters, discards, flushes and snapshots at the same time.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use qcow2::replay::Random;
use qcow2::{CreateOptions, Image, ImageOptions, MemoryStorage, Storage};

use crate::driver::{assert_reads, checked};

const THREADS: usize = 4;
const SECTORS: usize = 4096;
const STEPS: usize = 1500;

/// One thread's sectors: every fourth one, so that all threads meet in every cluster.
fn write_own_sectors(image: &Image, thread: usize) -> Vec<(usize, u8)> {
    let mut random = Random::new(thread as u64);
    let mut last = vec![0; SECTORS / THREADS];
    for _ in 0..STEPS {
        let slot = random.index(last.len());
        let sector = slot * THREADS + thread;
        let offset = sector as u64 * 512;
        match random.below(8) {
            0 => {
                image.write_zeroes(offset, 512, random.one_in(2)).unwrap();
                last[slot] = 0;
            }
            1 | 2 => {
                let mut read = [0xee; 512];
                image.read_at(&mut read, offset).unwrap();
                assert_eq!(read, [last[slot]; 512], "sector {sector}");
            }
            3 if random.one_in(8) => image.flush().unwrap(),
            _ => {
                let fill = (random.bits() as u8).max(1);
                image.write_at(&[fill; 512], offset).unwrap();
                last[slot] = fill;
            }
        }
    }
    last.into_iter()
        .enumerate()
        .map(|(slot, fill)| (slot * THREADS + thread, fill))
        .collect()
}

/// A storage with an image whose clusters hold 8 sectors and whose cache is as small as it can be.
fn image(len_bytes: u64) -> (Arc<MemoryStorage>, Image) {
    let storage = Arc::new(MemoryStorage::new());
    let options = CreateOptions {
        cluster_bits: 12,
        ..CreateOptions::new(len_bytes)
    };
    qcow2::create(storage.as_ref(), &options).unwrap();
    let options = ImageOptions {
        l2_cache_bytes: 0,
        ..ImageOptions::default()
    };
    let image = Image::open(storage.clone(), None, &options).unwrap();
    (storage, image)
}

#[test]
fn writers_that_share_clusters_lose_nothing() {
    let (storage, image) = image(SECTORS as u64 * 512);
    let image = &image;
    let mut content = vec![0; SECTORS * 512];
    thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || write_own_sectors(image, thread)))
            .collect();
        for writer in writers {
            for (sector, fill) in writer.join().unwrap() {
                content[sector * 512..(sector + 1) * 512].fill(fill);
            }
        }
    });
    image.settle().unwrap();
    assert_reads(image, &content, "after all writers");
    assert!(checked(storage).is_clean());
}

#[test]
fn discards_flushes_and_snapshots_beside_writers_lose_nothing() {
    const PART: usize = 256 << 10;
    let (storage, image) = image((PART * THREADS) as u64);
    let (image, stop) = (&image, &AtomicBool::new(false));
    let mut content = Vec::new();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || own_part(image, thread, PART)))
            .collect();
        let flusher = scope.spawn(move || {
            let mut snapshots = 0;
            while !stop.load(Ordering::Relaxed) {
                image.flush().unwrap();
                if snapshots < 8 {
                    snapshots += 1;
                    let id = image.create_snapshot("between").unwrap().id().into_owned();
                    if snapshots % 2 == 0 {
                        image.delete_snapshot(&id).unwrap();
                    }
                }
            }
        });
        for writer in writers {
            content.extend(writer.join().unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        flusher.join().unwrap();
    });
    image.settle().unwrap();
    assert_reads(image, &content, "after all writers");
    assert!(checked(storage).is_clean());
}

/// Writes, zeroes and discards ranges of whole and partial clusters in a part that is one thread's.
fn own_part(image: &Image, thread: usize, part: usize) -> Vec<u8> {
    let mut random = Random::new(77 + thread as u64);
    let mut shadow = vec![0u8; part];
    let base = thread * part;
    for _ in 0..600 {
        let start = random.index(part / 512) * 512;
        let end = (start + 512 * (1 + random.index(64))).min(part);
        let (offset, len) = ((base + start) as u64, (end - start) as u64);
        match random.below(6) {
            0 => {
                image.discard(offset, len).unwrap();
                let (from, to) = (start.next_multiple_of(4096), end / 4096 * 4096);
                if from < to {
                    shadow[from..to].fill(0);
                }
            }
            1 => {
                image.write_zeroes(offset, len, true).unwrap();
                shadow[start..end].fill(0);
            }
            2 => {
                let mut read = vec![0xee; end - start];
                image.read_at(&mut read, offset).unwrap();
                assert!(read == shadow[start..end], "thread {thread} reads its own writes");
            }
            _ => {
                shadow[start..end].fill((random.bits() as u8).max(1));
                image.write_at(&shadow[start..end], offset).unwrap();
            }
        }
    }
    shadow
}

#[test]
fn the_file_grows_no_more_than_what_is_written_needs() {
    let (storage, image) = image(64 << 20);
    thread::scope(|scope| {
        for thread in 0..THREADS as u64 {
            let image = &image;
            scope.spawn(move || {
                for number in 0..200 {
                    image
                        .write_at(&[1; 4096], (number * THREADS as u64 + thread) * 4096)
                        .unwrap();
                }
            });
        }
    });
    image.settle().unwrap();
    let clusters = storage.len().unwrap() / 4096;
    assert!(clusters < 800 + 20, "{clusters} clusters");
}

/// A storage whose syncs last until they are let go.
#[derive(Debug)]
struct SlowSync {
    inner: MemoryStorage,
    begun: mpsc::Sender<()>,
    may_end: Mutex<mpsc::Receiver<()>>,
}

impl Storage for SlowSync {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.begun.send(()).unwrap();
        // Once nobody holds syncs up any more, they end at once.
        let _ = self.may_end.lock().unwrap().recv();
        self.inner.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.punch_hole(offset, len)
    }
}

#[test]
fn reads_and_writes_go_on_while_a_flush_waits_for_the_medium() {
    let inner = MemoryStorage::new();
    qcow2::create(
        &inner,
        &CreateOptions {
            cluster_bits: 12,
            ..CreateOptions::new(16 << 20)
        },
    )
    .unwrap();
    let ((begun, has_begun), (let_go, may_end)) = (mpsc::channel(), mpsc::channel());
    let storage = Arc::new(SlowSync {
        inner,
        begun,
        may_end: Mutex::new(may_end),
    });
    let image = &Image::open(storage.clone(), None, &ImageOptions::default()).unwrap();
    image.write_at(&[1; 8192], 0).unwrap();
    thread::scope(|scope| {
        let flush = scope.spawn(|| image.flush().unwrap());
        for number in 0..3u8 {
            has_begun.recv().unwrap();
            let mut read = [0; 8192];
            image.read_at(&mut read, 0).unwrap();
            assert_eq!(read, [1 + number; 8192]);
            image.write_at(&[2 + number; 8192], 0).unwrap();
            image.write_at(&[9; 8192], (3 + u64::from(number)) << 20).unwrap();
            image.discard((3 + u64::from(number)) << 20, 4096).unwrap();
            let_go.send(()).unwrap();
        }
        flush.join().unwrap();
    });
    drop((let_go, has_begun.try_iter().count()));
    let mut content = vec![0; 16 << 20];
    content[..8192].fill(4);
    (3..6).for_each(|place| content[(place << 20) + 4096..(place << 20) + 8192].fill(9));
    assert_reads(image, &content, "after the flush");
    image.settle().unwrap();
    assert!(checked(storage).is_clean());
}
