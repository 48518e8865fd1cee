//! qcow2 disks on a medium that is too small for them.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::channel;

use qcow2::{Access, Cache, CreateOptions, FileStorage};
use tempfile::TempDir;

use super::images::check_image;
use super::traffic::Shadow;
use super::*;
use crate::config::{DiskFormat, OnFull};
use crate::driver::PATIENCE;

/// Requests that a test makes: more than there is room for at first, fewer than afterwards.
const PLACES: u64 = 200;

/// A medium of a few MiB in memory.
struct Medium {
    directory: TempDir,
}

impl Medium {
    /// Nothing if this process may not mount.
    fn mount(test: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4M", "tmpfs"])
            .arg(directory.path())
            .output();
        if !mount.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: {test}: cannot mount a file system (root only)");
            return None;
        }
        Some(Self { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes a disk of 16 MiB, and a file that takes 3 MiB of its medium.
    fn disk(&self, on_full: OnFull) -> Disk {
        std::fs::write(self.path("ballast"), vec![1; 3 << 20]).unwrap();
        let path = self.path("d.qcow2");
        File::create(&path).unwrap();
        let storage = FileStorage::open(&path, Access::ReadWrite, Cache::Writeback).unwrap();
        qcow2::create(&storage, &CreateOptions::new(16 << 20)).unwrap();
        drop(storage);
        let config = DiskConfig {
            format: DiskFormat::Qcow2,
            on_full,
            ..DiskConfig::new("data", path)
        };
        Disk::open(&config).unwrap()
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path("ballast")).unwrap();
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        let unmounted = Command::new("umount")
            .arg("-l")
            .arg(self.directory.path())
            .status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.directory.path().display());
        }
    }
}

/// What is written to a place on the disk.
fn data(place: u64) -> Vec<u8> {
    (0..u64::from(DATA_BYTES))
        .map(|i| (place + i / 512 + 1).to_le_bytes()[0] | 1)
        .collect()
}

/// Sector of the n-th request: each in a cluster of its own, so that each needs room.
fn sector(place: u64) -> u64 {
    place * 128
}

fn check(disk: &Disk, places: u64) {
    let mut content = vec![0; 16 << 20];
    for place in 0..places {
        let at = usize::try_from(sector(place) * 512).unwrap();
        content[at..at + DATA_BYTES as usize].copy_from_slice(&data(place));
    }
    Shadow::new(content).compare_disk(disk);
}

#[test]
fn a_guest_that_is_told_of_a_full_medium_loses_nothing_else() {
    let Some(medium) = Medium::mount("a_guest_that_is_told_of_a_full_medium") else {
        return;
    };
    let disk = medium.disk(OnFull::Report);
    let mut driver = Driver::started(Block::new(disk.clone()), 0);
    let slot = Slot::new(&mut driver);
    let mut refused = 0;
    let mut place = 0;
    while place < PLACES {
        driver.store(slot.data, &data(place));
        let written = request(&mut driver, &slot, VIRTIO_BLK_T_OUT, sector(place), DATA_BYTES).0;
        // A flush may need room as well, for what it has to write.
        let flushed = request(&mut driver, &slot, VIRTIO_BLK_T_FLUSH, 0, 0).0;
        if (written, flushed) == (VIRTIO_BLK_S_OK, VIRTIO_BLK_S_OK) {
            place += 1;
        } else {
            refused += 1;
            assert_eq!(refused, 1, "there is room");
            assert!(place > 20, "full after {place} requests");
            medium.make_room();
        }
    }
    assert_eq!(refused, 1, "the medium was never full");
    drop(driver);
    check(&disk, place);
    drop(disk);
    check_image(&medium.path("d.qcow2"));
}

#[test]
fn a_machine_that_pauses_on_a_full_medium_goes_on_when_there_is_room() {
    let Some(medium) = Medium::mount("a_machine_that_pauses_on_a_full_medium") else {
        return;
    };
    let disk = medium.disk(OnFull::Pause);
    let (sender, events) = channel();
    disk.on_event(move |event| sender.send(event).unwrap());
    let mut driver = Driver::started(Block::new(disk.clone()), 0);
    let slots: Vec<_> = (0..4).map(|_| Slot::new(&mut driver)).collect();
    // All places in four slots, a few of them under way at a time.
    let places = PLACES;
    let mut under_way = BTreeMap::new();
    let (mut next, mut done, mut paused) = (0, 0, 0);
    while done < places {
        for (number, slot) in slots.iter().enumerate() {
            if next < places && !under_way.values().any(|&busy| busy == number) {
                driver.store(slot.data, &data(next));
                let head = slot.submit(&mut driver, VIRTIO_BLK_T_OUT, sector(next), DATA_BYTES);
                driver.kick(0);
                under_way.insert(head, number);
                next += 1;
            }
        }
        while let Some((head, _)) = driver.try_used(0) {
            let number = under_way.remove(&head).expect("a request that was under way");
            assert_eq!(slots[number].status(&driver), VIRTIO_BLK_S_OK);
            done += 1;
        }
        if events.try_recv().is_ok() {
            driver.transport.pause().unwrap();
            assert!(disk.waits_for_room());
            driver.transport.save().unwrap_err();
            if paused == 0 {
                // In vain: there is no room yet.
                driver.transport.resume();
                disk.retry();
                events.recv_timeout(PATIENCE).unwrap();
                driver.transport.pause().unwrap();
                medium.make_room();
            }
            paused += 1;
            driver.transport.resume();
            disk.retry();
        } else if next == places || under_way.len() == slots.len() {
            driver.interrupt_within(std::time::Duration::from_secs(1));
        }
    }
    assert!(paused > 0, "the medium was never full");
    driver.transport.pause().unwrap();
    driver.transport.save().unwrap();
    drop(driver);
    check(&disk, places);
    drop(disk);
    check_image(&medium.path("d.qcow2"));
}
