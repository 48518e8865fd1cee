//! Comparing by digest gives what comparing byte by byte gives, whatever the files are cut into.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers of these guests are small"
)]

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::{Guest, fixed_options, open};
use proptest::collection::vec;
use proptest::prelude::*;
use snapfile::diff::{Diff, DiffOptions, FieldValue, Granularity, GuestRange, diff};
use snapfile::{
    Codec, Encoding, Error, MemoryRegion, Parent, ParentError, Section, SectionKind, Writer, WriterOptions,
};

const PAGE: usize = 4096;

/// A page of memory before and after.
#[derive(Clone, Copy, Debug)]
struct Page {
    before: u8,
    after: u8,
}

/// Mostly equal pages, of few contents, so that zero, fill and duplicate chunks occur.
fn page() -> impl Strategy<Value = Page> {
    (0..4u8, 0..4u8, 0..10u8).prop_map(|(before, other, change)| Page {
        before,
        after: if change == 0 { other } else { before },
    })
}

/// Content 0 is zero, 1 repeats a pattern, the others differ from byte to byte.
fn fill(content: u8, page: &mut [u8]) {
    for (place, byte) in page.iter_mut().enumerate() {
        *byte = match content {
            0 | 1 => content,
            _ => (place * usize::from(content) % 253) as u8,
        };
    }
}

fn guest(regions: &[(u64, Vec<Page>)], content: impl Fn(&Page) -> u8) -> Guest {
    let memory = |pages: &Vec<Page>| {
        let mut memory = vec![0; pages.len() * PAGE];
        memory
            .chunks_mut(PAGE)
            .zip(pages)
            .for_each(|(bytes, page)| fill(content(page), bytes));
        memory
    };
    Guest::new(
        regions
            .iter()
            .map(|(address, pages)| (*address, memory(pages)))
            .collect(),
    )
}

/// The definition: pages that differ, neighbours joined, and single bytes that differ.
fn by_bytes(before: &Guest, after: &Guest) -> (Vec<GuestRange>, u64) {
    let mut ranges: Vec<GuestRange> = Vec::new();
    let mut changed = 0;
    for (number, region) in before.map.regions().iter().enumerate() {
        let pages = before.regions[number]
            .chunks(PAGE)
            .zip(after.regions[number].chunks(PAGE));
        for (address, (one, other)) in (region.guest_address..).step_by(PAGE).zip(pages) {
            changed += one.iter().zip(other).filter(|(one, other)| one != other).count() as u64;
            match ranges.last_mut() {
                _ if one == other => {}
                Some(last) if last.guest_address + last.len_bytes == address => last.len_bytes += PAGE as u64,
                _ => ranges.push(GuestRange {
                    guest_address: address,
                    len_bytes: PAGE as u64,
                }),
            }
        }
    }
    (ranges, changed)
}

fn compare(before: &[u8], after: &[u8], options: DiffOptions<'_>) -> Diff {
    diff(&open(before).unwrap(), &open(after).unwrap(), &options).unwrap()
}

fn write(guest: &Guest, chunk_log2: u32, codec: Codec) -> Vec<u8> {
    guest.write(fixed_options(1 << chunk_log2, codec)).0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn diff_equals_a_comparison_byte_by_byte(
        first in vec(page(), 1..150),
        second in vec(page(), 1..40),
        logs in (12..=19u32, 12..=19u32),
        touching in any::<bool>(),
    ) {
        let gap = if touching { 0 } else { 0x100_0000 };
        let regions = [(0x1000, first.clone()), (0x1000 + (first.len() * PAGE) as u64 + gap, second)];
        let before = guest(&regions, |page| page.before);
        let after = guest(&regions, |page| page.after);
        let (ranges, changed) = by_bytes(&before, &after);
        let files = [write(&before, logs.0, Codec::Lz4), write(&after, logs.1, Codec::Zstd { level: 1 })];

        let found = compare(&files[0], &files[1], DiffOptions::default());
        prop_assert_eq!(found.same_state, ranges.is_empty());
        prop_assert_eq!(&found.memory.ranges, &ranges);
        prop_assert_eq!(found.memory.changed_bytes, Some(changed));
        prop_assert_eq!(found.memory.range_count, ranges.len() as u64);
        prop_assert_eq!(found.memory.differing_bytes, ranges.iter().map(|range| range.len_bytes).sum::<u64>());
        prop_assert_eq!(found.memory.compared_bytes, before.map.len_bytes());

        // By chunk, nothing is decoded, and every differing page lies in a range that is named.
        let by_chunk = DiffOptions { granularity: Granularity::Chunk, ..DiffOptions::default() };
        let coarse = compare(&files[0], &files[1], by_chunk);
        prop_assert_eq!(coarse.memory.decoded_bytes, 0);
        for range in &ranges {
            prop_assert!(coarse.memory.ranges.iter().any(|named| named.guest_address <= range.guest_address
                && named.guest_address + named.len_bytes >= range.guest_address + range.len_bytes));
        }
    }
}

/// Memory of `pages` pages of which every other one differs from [`plain_guest`]'s.
fn striped_guest(pages: usize) -> Guest {
    let page = |number: usize| Page {
        before: 2,
        after: if number.is_multiple_of(2) { 3 } else { 2 },
    };
    guest(&[(0, (0..pages).map(page).collect())], |page| page.after)
}

fn plain_guest(pages: usize) -> Guest {
    guest(&[(0, vec![Page { before: 2, after: 2 }; pages])], |page| {
        page.before
    })
}

#[test]
fn equal_chunks_are_not_decoded() {
    let mut after = plain_guest(4096);
    after.regions[0][5000 * 1000] ^= 1;
    let (before, after) = (
        write(&plain_guest(4096), 16, Codec::Raw),
        write(&after, 16, Codec::Raw),
    );
    let found = compare(&before, &after, DiffOptions::default());
    assert_eq!(
        (found.memory.decoded_bytes, found.memory.changed_bytes),
        (65536, Some(1))
    );
    assert_eq!(
        found.memory.ranges,
        [GuestRange {
            guest_address: 5000 * 1000 / 4096 * 4096,
            len_bytes: 4096
        }]
    );
}

#[test]
fn the_list_of_ranges_is_bounded_and_the_counts_are_not() {
    let (before, after) = (
        write(&plain_guest(10_000), 16, Codec::Raw),
        write(&striped_guest(10_000), 16, Codec::Raw),
    );
    let found = compare(
        &before,
        &after,
        DiffOptions {
            max_ranges: 7,
            ..DiffOptions::default()
        },
    );
    let first: Vec<u64> = found
        .memory
        .ranges
        .iter()
        .map(|range| range.guest_address / 4096)
        .collect();
    assert_eq!(first, [0, 2, 4, 6, 8, 10, 12]);
    assert_eq!(
        (found.memory.range_count, found.memory.differing_bytes),
        (5000, 5000 * 4096)
    );
}

#[test]
fn regions_that_only_one_snapshot_has_are_named_and_the_others_compared() {
    let shared = (0, vec![Page { before: 2, after: 3 }; 4]);
    let before = guest(
        &[shared.clone(), (0x10_0000, vec![Page { before: 2, after: 2 }; 2])],
        |page| page.before,
    );
    let after = guest(
        &[shared, (0x20_0000, vec![Page { before: 2, after: 2 }; 2])],
        |page| page.after,
    );
    let found = compare(
        &write(&before, 12, Codec::Raw),
        &write(&after, 16, Codec::Raw),
        DiffOptions::default(),
    );
    assert_eq!(
        found.regions_only_before,
        [MemoryRegion {
            guest_address: 0x10_0000,
            len_bytes: 8192
        }]
    );
    assert_eq!(
        found.regions_only_after,
        [MemoryRegion {
            guest_address: 0x20_0000,
            len_bytes: 8192
        }]
    );
    assert_eq!(
        found.memory.ranges,
        [GuestRange {
            guest_address: 0,
            len_bytes: 16384
        }]
    );
    assert!(!found.same_state);
}

#[test]
fn a_missing_parent_is_needed_by_page_but_not_by_chunk() {
    let base = write(&plain_guest(256), 16, Codec::Raw);
    let mut later = plain_guest(256);
    later.regions[0][0] ^= 1;
    let parent = Parent {
        snapshot: Arc::new(open(&base).unwrap()),
        hint: String::new(),
    };
    let options = WriterOptions {
        parent: Some(parent),
        fixed_identity: None,
        ..fixed_options(65536, Codec::Raw)
    };
    let child = later.write(options).0;
    let other = write(&striped_guest(256), 16, Codec::Raw);
    let (child, other) = (open(&child).unwrap(), open(&other).unwrap());
    let by_page = diff(&child, &other, &DiffOptions::default());
    assert!(
        matches!(by_page, Err(Error::Parent(ParentError::Missing { .. }))),
        "{by_page:?}"
    );
    let by_chunk = DiffOptions {
        granularity: Granularity::Chunk,
        ..DiffOptions::default()
    };
    assert_eq!(diff(&child, &other, &by_chunk).unwrap().memory.range_count, 1);
    let child = child.with_parent(Arc::new(open(&base).unwrap())).unwrap();
    assert_eq!(
        diff(&child, &other, &DiffOptions::default())
            .unwrap()
            .memory
            .range_count,
        128
    );
}

#[test]
fn the_callback_can_stop_it() {
    let (before, after) = (
        write(&plain_guest(256), 16, Codec::Raw),
        write(&striped_guest(256), 16, Codec::Raw),
    );
    let stop = |_, _| ControlFlow::Break(());
    let options = DiffOptions {
        progress: Some(&stop),
        ..DiffOptions::default()
    };
    let outcome = diff(&open(&before).unwrap(), &open(&after).unwrap(), &options);
    assert!(matches!(outcome, Err(Error::Cancelled)));
}

fn with_sections(sections: &[(SectionKind, &str, &[u8])]) -> Vec<u8> {
    let guest = plain_guest(4);
    let writer = Writer::new(Vec::new(), &guest.map, fixed_options(16384, Codec::Raw)).unwrap();
    writer.put_zero(0..1).unwrap();
    for (kind, name, payload) in sections {
        let (kind, name, payload) = (*kind, (*name).to_owned(), payload.to_vec());
        writer
            .put_section(&Section {
                kind,
                name,
                version: 1,
                encoding: Encoding::Cbor,
                payload,
            })
            .unwrap();
    }
    writer.finish().unwrap().0
}

#[test]
fn registers_are_named_and_the_story_of_a_file_is_no_difference_of_state() {
    use SectionKind::{Provenance, VmState};
    let rip = |value: u8| [b"\xa1\x64regs\xa2\x63rip\x18", &[value][..], b"\x63rax\x01"].concat();
    let before = with_sections(&[
        (VmState, "vcpu/0", &rip(0x10)),
        (Provenance, "", b"\xa1\x61t\x01"),
    ]);
    let told_later = with_sections(&[
        (VmState, "vcpu/0", &rip(0x10)),
        (Provenance, "", b"\xa1\x61t\x02"),
    ]);
    let moved = with_sections(&[(VmState, "vcpu/0", &rip(0x20)), (VmState, "device/new", b"\xa0")]);

    let found = compare(&before, &told_later, DiffOptions::default());
    assert!(found.same_state);
    assert_eq!((found.sections.len(), found.sections[0].is_state()), (1, false));

    let found = compare(&before, &moved, DiffOptions::default());
    let keys: Vec<_> = found
        .sections
        .iter()
        .map(|section| section.key().unwrap())
        .collect();
    assert!(!found.same_state);
    assert_eq!(
        keys,
        [(VmState, "vcpu/0"), (VmState, "device/new"), (Provenance, "")]
    );
    let [change] = &found.sections[0].fields.as_ref().unwrap()[..] else {
        panic!("one register moved")
    };
    assert_eq!(change.path, "regs.rip");
    assert_eq!(
        (&change.before, &change.after),
        (&Some(FieldValue::Integer(0x10)), &Some(FieldValue::Integer(0x20)))
    );
}

#[test]
fn payloads_that_are_not_what_they_claim_still_compare() {
    let before = with_sections(&[(SectionKind::VmState, "vm", b"\xff\xff")]);
    let after = with_sections(&[(SectionKind::VmState, "vm", b"\xa0")]);
    let found = compare(&before, &after, DiffOptions::default());
    assert!(!found.same_state && found.sections[0].fields.is_none());
}
