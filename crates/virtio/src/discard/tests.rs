use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;

use vm_memory::{Bytes, FileOffset, GuestAddress};

use super::*;

const PAGE: u64 = 4096;

/// Guest memory of two regions that touch, the second shared, full of ones.
fn memory() -> GuestMemoryMmap {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4 * PAGE).unwrap();
    let size = 4 * 4096;
    let ranges = [
        (GuestAddress(0), size, None),
        (GuestAddress(4 * PAGE), size, Some(FileOffset::new(file, 0))),
    ];
    let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
    memory.write_slice(&[1; 2 * 4 * 4096], GuestAddress(0)).unwrap();
    memory
}

/// Tells of each page whether it is ones (1), zeros (0) or else (2).
fn pages(memory: &GuestMemoryMmap) -> Vec<u8> {
    let mut page = [0; 4096];
    let look = |number: u64| {
        memory.read_slice(&mut page, GuestAddress(number * PAGE)).unwrap();
        let first = page[0];
        if page.iter().all(|&byte| byte == first) {
            first
        } else {
            2
        }
    };
    (0..8).map(look).collect()
}

#[test]
fn whole_pages_become_zero_in_private_and_shared_memory() {
    let memory = memory();
    HostDiscard.discard(&memory, PAGE, 2 * PAGE).unwrap();
    assert_eq!(pages(&memory), [1, 0, 0, 1, 1, 1, 1, 1]);
    HostDiscard.discard(&memory, 3 * PAGE, 2 * PAGE).unwrap();
    assert_eq!(pages(&memory), [1, 0, 0, 0, 0, 1, 1, 1], "across the regions");
    HostDiscard.discard(&memory, 7 * PAGE, PAGE).unwrap();
    assert_eq!(pages(&memory), [1, 0, 0, 0, 0, 1, 1, 0]);
}

#[test]
fn parts_of_pages_are_kept() {
    let memory = memory();
    for (gpa, len) in [
        (1, PAGE - 1),
        (PAGE - 1, 1),
        (PAGE / 2, PAGE),
        (0, 0),
        (3 * PAGE, 100),
    ] {
        HostDiscard.discard(&memory, gpa, len).unwrap();
    }
    assert_eq!(pages(&memory), [1; 8]);
    HostDiscard.discard(&memory, PAGE - 1, PAGE + 2).unwrap();
    assert_eq!(pages(&memory), [1, 0, 1, 1, 1, 1, 1, 1]);
}

#[test]
fn what_is_not_memory_is_an_error() {
    for (gpa, len) in [
        (8 * PAGE, PAGE),
        (7 * PAGE, 2 * PAGE),
        (u64::MAX, 2),
        (0, u64::MAX),
    ] {
        assert!(
            HostDiscard.discard(&memory(), gpa, len).is_err(),
            "{gpa:#x} {len:#x}"
        );
    }
}

/// Counts discards, and waits in each until it is let go.
struct Slow {
    entered: Mutex<std::sync::mpsc::Sender<()>>,
    release: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Discard for Slow {
    fn discard(&self, _memory: &GuestMemoryMmap, _gpa: u64, _len: u64) -> io::Result<()> {
        self.entered.lock().unwrap().send(()).unwrap();
        self.release.lock().unwrap().recv().map_err(io::Error::other)
    }
}

#[test]
fn a_way_is_exchanged_when_the_last_discard_has_left_it() {
    let memory = memory();
    let route = DiscardRoute::new();
    let (entered, has_entered) = channel();
    let (release, released) = channel();
    let slow = Arc::new(Slow {
        entered: Mutex::new(entered),
        release: Mutex::new(released),
    });
    let host = route.install(slow);
    let clone = route.clone();
    let discarding = thread::spawn({
        let memory = memory.clone();
        move || clone.discard(&memory, 0, PAGE)
    });
    has_entered.recv().unwrap();
    let installing = thread::spawn({
        let route = route.clone();
        move || route.install(host)
    });
    assert!(!installing.is_finished());
    release.send(()).unwrap();
    discarding.join().unwrap().unwrap();
    installing.join().unwrap();
    assert_eq!(pages(&memory), [1; 8]);
    route.discard(&memory, 0, PAGE).unwrap();
    assert_eq!(pages(&memory)[0], 0);
}
