use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;

const MANY: usize = 200;

/// A directory with one file `d` of `len` bytes of 1.
fn with_file(len: usize) -> (Recorder, Arc<RecordedFile>) {
    let recorder = Recorder::new();
    let file = recorder.existing("d", vec![1; len]);
    (recorder, file)
}

/// The distinct contents of `d` in some crashes.
fn contents(crashes: impl Iterator<Item = Crash>) -> BTreeSet<Vec<u8>> {
    crashes
        .map(|crash| crash.bytes("d").expect("the file has its name").to_vec())
        .collect()
}

#[test]
fn reads_give_what_was_written_last() {
    let (recorder, file) = with_file(4);
    file.write_at(&[2, 2], 3).expect("write");
    let mut buf = [9; 6];
    file.read_at(&mut buf, 1).expect("read");
    assert_eq!(buf, [1, 1, 2, 2, 0, 0]);
    assert_eq!(file.len().expect("length"), 5);
    file.set_len(2).expect("shrink");
    file.punch_hole(1, 100).expect("punch");
    assert_eq!(
        recorder.kills().last().expect("a last state").bytes("d"),
        Some(&[1, 0][..])
    );
}

#[test]
fn a_kill_keeps_every_write_before_it() {
    let (recorder, file) = with_file(2);
    file.write_at(&[2], 0).expect("write");
    file.write_at(&[3], 1).expect("write");
    let states: Vec<_> = recorder
        .kills()
        .map(|crash| crash.bytes("d").map(<[u8]>::to_vec))
        .collect();
    assert_eq!(states, [Some(vec![1, 1]), Some(vec![2, 1]), Some(vec![2, 3])]);
}

#[test]
fn a_kill_cuts_a_long_write_at_a_page_of_the_file() {
    let (recorder, file) = with_file(3 * 4096);
    file.write_at(&vec![2; 2 * 4096], 4000).expect("write");
    let cut = recorder
        .kills()
        .find(|crash| crash.description().contains("into the write"))
        .expect("a cut write");
    let written = cut
        .bytes("d")
        .expect("the file")
        .iter()
        .filter(|byte| **byte == 2)
        .count();
    assert_eq!(written, 96);
}

#[test]
fn a_power_loss_keeps_what_was_synced() {
    let (recorder, file) = with_file(1024);
    file.write_at(&[2; 1024], 0).expect("write");
    file.sync().expect("sync");
    recorder.mark("synced");
    file.write_at(&[3; 512], 512).expect("write");
    for crash in recorder
        .power_losses(1, MANY)
        .filter(|crash| !crash.marks().is_empty())
    {
        let content = crash.bytes("d").expect("the file");
        assert_eq!(content[..512], [2; 512], "{}", crash.description());
    }
}

#[test]
fn a_power_loss_loses_unsynced_writes_in_any_subset_and_by_sectors() {
    let (recorder, file) = with_file(1024);
    file.write_at(&[2; 1024], 0).expect("write");
    file.write_at(&[3; 1], 0).expect("write");
    let states = contents(recorder.power_losses(7, MANY));
    let state = |first: u8, second: u8, third: u8| {
        let mut content = vec![second; 512];
        content.extend([third; 512]);
        content[0] = first;
        content
    };
    assert!(states.contains(&state(1, 1, 1)), "all lost");
    assert!(states.contains(&state(3, 1, 1)), "only the second write kept");
    assert!(states.contains(&state(2, 2, 1)), "the first write torn");
    assert!(states.contains(&state(3, 2, 2)), "all kept");
}

#[test]
fn a_sync_of_one_file_says_nothing_of_another() {
    let (recorder, file) = with_file(1);
    let other = recorder.create("other");
    file.write_at(&[2], 0).expect("write");
    other.sync().expect("sync");
    let states = contents(recorder.power_losses(3, MANY));
    assert_eq!(states, BTreeSet::from([vec![1], vec![2]]));
}

#[test]
fn the_same_seed_gives_the_same_crashes() {
    let (recorder, file) = with_file(4096);
    (0..8).for_each(|sector| file.write_at(&[2; 512], sector * 512).expect("write"));
    let descriptions = |seed| {
        recorder
            .power_losses(seed, 20)
            .map(|crash| crash.description().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        contents(recorder.power_losses(5, 20)),
        contents(recorder.power_losses(5, 20))
    );
    assert_ne!(descriptions(5), descriptions(6));
}

#[test]
fn names_change_in_order_and_may_be_lost_until_the_directory_is_synced() {
    let (recorder, _) = with_file(1);
    let overlay = recorder.create("new");
    overlay.write_at(&[7], 0).expect("write");
    overlay.sync().expect("sync");
    recorder.link("d", "frozen").expect("link");
    recorder.rename("new", "d").expect("rename");
    assert!(recorder.link("d", "frozen").is_err(), "the name is taken");
    let seen: BTreeSet<(u8, bool)> = recorder
        .power_losses(11, MANY)
        .map(|crash| {
            (
                crash.bytes("d").expect("the live name")[0],
                crash.bytes("frozen").is_some(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        BTreeSet::from([(1, false), (1, true), (7, true)]),
        "never the new file without the old one's name"
    );
    recorder.sync_directory();
    recorder.mark("durable");
    let last = recorder
        .power_losses(11, 1)
        .last()
        .expect("a crash after the sync");
    assert_eq!(last.names().collect::<Vec<_>>(), ["d", "frozen"]);
}

#[test]
fn only_the_chosen_call_fails() {
    let (_, file) = with_file(8);
    let failing = FailingStorage::new(file, Fault::Write(1), io::ErrorKind::StorageFull);
    failing.write_at(&[2], 0).expect("the first write");
    let error = failing.write_at(&[2], 1).expect_err("the second write");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    failing.write_at(&[2], 2).expect("the third write");
    failing.sync().expect("sync");
    let mut buf = [0; 3];
    failing.read_at(&mut buf, 0).expect("read");
    assert_eq!((buf, failing.writes(), failing.syncs()), ([2, 1, 2], 3, 1));
}
