use super::*;
use crate::storage::MemoryStorage;
use crate::{CreateOptions, Error, create};

/// The header of a new image whose snapshot table has `count` entries at `offset`.
fn header(count: u32, offset: u64) -> Header {
    let storage = MemoryStorage::new();
    create(&storage, &CreateOptions::new(1 << 20)).expect("a new image");
    let mut header = Header::read(&storage).expect("its header");
    header.snapshot_count = count;
    header.snapshots_offset = offset;
    header
}

/// A storage with a table at its second cluster, and the header that points to it.
fn with_table(count: u32, table: &[u8]) -> (MemoryStorage, Header) {
    let header = header(count, 1 << 16);
    let storage = MemoryStorage::new();
    storage.write_at(table, 1 << 16).expect("memory");
    (storage, header)
}

fn entry(id: &str, name: &str, extra: &[u8]) -> SnapshotEntry {
    SnapshotEntry {
        l1_offset: 0x50000,
        l1_entries: 3,
        id: id.into(),
        name: name.into(),
        seconds: 1_700_000_000,
        nanoseconds: 5,
        vm_clock_ns: 7,
        vm_state_bytes_32: 9,
        extra: extra.to_vec(),
    }
}

#[test]
fn entries_come_back_byte_for_byte_with_unknown_extra_data_and_text_that_is_not_utf8() {
    let mut odd = entry("", "", b"0123456789abcdefvery important data");
    odd.name = vec![0xff, 0xfe];
    let entries = vec![entry("1", "one", &[]), odd, entry("2", "x", &known_extra(1, 2))];
    let bytes = table_bytes(&entries).expect("within the limits");
    assert_eq!(bytes.len() as u64, table_len_bytes(&entries));
    let (storage, header) = with_table(3, &bytes);
    assert_eq!(read(&storage, &header).expect("readable"), entries);
}

#[test]
fn the_bytes_are_those_of_the_specification() {
    let bytes = table_bytes(&[entry("1", "ab", &[]), entry("2", "c", &known_extra(0, 1 << 20))]);
    let bytes = bytes.expect("within the limits");
    assert_eq!(bytes[..16], [0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 3, 0, 1, 0, 2]);
    assert_eq!(bytes[32..40], [0, 0, 0, 9, 0, 0, 0, 0]);
    assert_eq!(&bytes[40..43], b"1ab");
    assert_eq!(bytes[43..48], [0; 5], "the next entry is aligned");
    assert_eq!(bytes[48 + 36..48 + 40], [0, 0, 0, 24]);
    assert_eq!(bytes[48 + 48..48 + 56], [0, 0, 0, 0, 0, 0x10, 0, 0]);
    assert_eq!(bytes.len(), 48 + 40 + 24 + 2, "nothing follows the last entry");
}

#[test]
fn the_longer_size_of_the_machine_state_counts() {
    assert_eq!(entry("1", "", &[]).vm_state_bytes(), 9);
    assert_eq!(entry("1", "", &known_extra(5 << 32, 0)).vm_state_bytes(), 5 << 32);
    assert_eq!(entry("1", "", &[0; 8]).virtual_size_bytes(), None);
}

#[test]
fn an_entry_is_completed_without_losing_what_it_says() {
    let mut short = entry("1", "", &[]);
    short.complete(77);
    assert_eq!(
        (short.vm_state_bytes(), short.virtual_size_bytes()),
        (9, Some(77))
    );
    let mut long = entry("1", "", &[3; 20]);
    long.complete(77);
    assert_eq!(long.extra, [3; 20]);
}

#[test]
fn refuses_a_table_that_ends_beyond_the_file() {
    let bytes = table_bytes(&[entry("1", "one", &[])]).expect("within the limits");
    for cut in [0, 39, bytes.len() - 1] {
        let (storage, header) = with_table(1, &bytes[..cut]);
        let error = read(&storage, &header).expect_err("cut");
        assert!(matches!(error, Error::Corrupt(_)), "cut at {cut}: {error}");
    }
}

#[test]
fn refuses_a_table_that_is_not_at_a_cluster_behind_the_header() {
    for offset in [0, 1 << 15, (1 << 16) + 8] {
        let error = read(&MemoryStorage::new(), &header(1, offset)).expect_err("misplaced");
        assert!(matches!(error, Error::Corrupt(_)), "at {offset:#x}: {error}");
    }
}

#[test]
fn refuses_too_many_snapshots_too_much_extra_data_and_too_long_a_table() {
    let beyond = |result: Result<Vec<SnapshotEntry>>| match result.expect_err("beyond a limit") {
        Error::Limit(limit) => limit.limit,
        other => panic!("{other}"),
    };
    assert_eq!(
        beyond(read(&MemoryStorage::new(), &header(65_537, 1 << 16))),
        65_536
    );

    let mut bytes = table_bytes(&[entry("1", "", &[])]).expect("within the limits");
    bytes[36..40].copy_from_slice(&1025_u32.to_be_bytes());
    let (storage, header) = with_table(1, &bytes);
    assert_eq!(beyond(read(&storage, &header)), 1024);

    // The longest entries possible, as many as go beyond 64 MiB.
    let text = "x".repeat(65_535);
    let longest = entry(&text, &text, &[0; 1024]);
    let entries = vec![longest; 508];
    assert!(matches!(table_bytes(&entries), Err(Error::Limit(_))));
    let fits = table_bytes(&entries[..506]).expect("within the limits");
    let (storage, mut header) = with_table(506, &fits);
    assert_eq!(read(&storage, &header).expect("readable").len(), 506);
    let mut more = fits;
    for entry in &entries[506..] {
        more.resize(more.len().next_multiple_of(8), 0);
        entry.append_to(&mut more).expect("one entry");
    }
    storage.write_at(&more, 1 << 16).expect("memory");
    header.snapshot_count = 508;
    assert_eq!(beyond(read(&storage, &header)), 64 << 20);
}

#[test]
fn refuses_to_write_text_longer_than_its_length_can_say() {
    let error = table_bytes(&[entry("1", &"x".repeat(65_536), &[])]).expect_err("too long");
    assert!(matches!(error, Error::Limit(_)), "{error}");
}
