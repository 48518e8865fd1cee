//! What the operations do, on every width, size and version.

use std::time::{Duration, UNIX_EPOCH};

use super::image::{TestImage, Verdict, options};
use crate::replay::Random;
use crate::snapshots::work::LOADED_BYTES;
use crate::snapshots::{apply, create, delete, find, fingerprint};

/// Every refcount width that can count two, small and large clusters, both versions.
const VARIANTS: [(u32, u32, u32); 11] = [
    (9, 2, 3),
    (9, 4, 3),
    (9, 8, 3),
    (9, 16, 3),
    (9, 32, 3),
    (9, 64, 3),
    (9, 16, 2),
    (12, 16, 3),
    (16, 16, 3),
    (16, 16, 2),
    (21, 64, 3),
];

#[test]
fn random_operations_keep_every_snapshot_and_every_count() {
    random_operations();
}

#[test]
fn random_operations_keep_everything_where_refcounts_do_not_fit_into_memory() {
    LOADED_BYTES.set(1024);
    random_operations();
}

fn random_operations() {
    for (cluster_bits, refcount_bits, version) in VARIANTS {
        let mut image = TestImage::new(&options(cluster_bits, refcount_bits, version));
        let mut random = Random::new(u64::from(cluster_bits * 1000 + refcount_bits + version));
        // Two bits count three references.
        let most = if refcount_bits == 2 { 2 } else { 4 };
        for step in 0..if cluster_bits > 16 { 20 } else { 60 } {
            let what = format!("{cluster_bits} {refcount_bits} {version}, step {step}");
            one_step(&mut image, &mut random, most, &what);
            assert_eq!(image.check(), Verdict::default(), "{what}");
        }
    }
}

/// Writes or changes the snapshots at random and compares what everything holds with what it should.
fn one_step(image: &mut TestImage, random: &mut Random, most: usize, what: &str) {
    let guest = random.below(150);
    let before = image.state();
    let count = image.metadata.snapshots.len();
    let id = |index: usize| before.snapshots[index].0.clone();
    let mut expected = before.clone();
    match random.below(8) {
        0..=2 => image.write(guest, u8::try_from(random.below(256)).expect("a byte")),
        3 => image.write_zeroes(guest, random.one_in(2)),
        // Two compressed clusters in a host cluster are two references of each tree: too many for 2 bits.
        4 if most > 2 => image.write_compressed(guest, 7),
        5 if count < most => {
            let entry = create(&mut image.metadata, "name", UNIX_EPOCH).expect(what);
            expected
                .snapshots
                .push((entry.id().into_owned(), before.active.0, before.active.1.clone()));
            assert_eq!(image.state(), expected, "{what}: create");
        }
        6 if count > 0 => {
            let index = random.index(count);
            apply(&mut image.metadata, &id(index)).expect(what);
            expected.active.1 = before.snapshots[index].2.clone();
            assert_eq!(image.state(), expected, "{what}: apply");
        }
        7 if count > 0 => {
            let index = random.index(count);
            delete(&mut image.metadata, &id(index)).expect(what);
            expected.snapshots.remove(index);
            assert_eq!(image.state(), expected, "{what}: delete");
        }
        _ => {}
    }
    assert_eq!(
        image.state().snapshots,
        expected.snapshots,
        "{what}: writing changes no snapshot"
    );
    let reopened = TestImage::open(image.metadata.storage().clone());
    assert_eq!(reopened.state(), image.state(), "{what}: memory and file agree");
    assert_eq!(reopened.metadata.header, image.metadata.header, "{what}");
}

#[test]
fn an_image_without_snapshots_again_takes_no_more_room_than_before() {
    let mut image = TestImage::new(&options(9, 16, 3));
    image.write_all(0..20, 1);
    let used = |image: &TestImage| {
        let mut refcounts = image.refcounts();
        (0..1000)
            .filter(|number| refcounts.get(crate::HostCluster(*number)).expect("a count") > 0)
            .count()
    };
    let before = used(&image);
    create(&mut image.metadata, "a", UNIX_EPOCH).expect("created");
    image.write_all(5..30, 2);
    create(&mut image.metadata, "b", UNIX_EPOCH).expect("created");
    apply(&mut image.metadata, "a").expect("applied");
    delete(&mut image.metadata, "b").expect("deleted");
    delete(&mut image.metadata, "a").expect("deleted");
    assert_eq!(used(&image), before);
    assert_eq!(image.check(), Verdict::default());
    assert_eq!(image.metadata.header.snapshots_offset, 0);
}

#[test]
fn freed_clusters_are_punched_out() {
    let mut image = TestImage::new(&options(12, 16, 3));
    create(&mut image.metadata, "empty", UNIX_EPOCH).expect("created");
    image.write_all(0..8, 0xaa);
    apply(&mut image.metadata, "empty").expect("applied");
    assert!(
        !image.bytes().contains(&0xaa),
        "the data that nothing refers to is gone"
    );
}

#[test]
fn ids_are_numbered_on_and_are_looked_up_before_names() {
    let mut image = TestImage::new(&options(9, 16, 3));
    let when = UNIX_EPOCH + Duration::new(1_700_000_000, 123);
    create(&mut image.metadata, "2", when).expect("created");
    image.write(0, 1);
    let second = create(&mut image.metadata, "twice", when).expect("created");
    create(&mut image.metadata, "twice", when).expect("created");
    assert_eq!((second.seconds, second.nanoseconds), (1_700_000_000, 123));
    assert_eq!(
        (second.vm_state_bytes(), second.virtual_size_bytes()),
        (0, Some(160 * 512))
    );
    let id =
        |wanted: &str, image: &TestImage| find(&image.metadata, wanted).expect("there").id().into_owned();
    assert_eq!(id("2", &image), "2", "the id wins over the name of another");
    assert_eq!(id("twice", &image), "2", "the first of two with a name");
    delete(&mut image.metadata, "twice").expect("deleted");
    assert_eq!(id("2", &image), "1", "now only a name");
    assert_eq!(create(&mut image.metadata, "", when).expect("created").id(), "4");
}

#[test]
fn a_fingerprint_changes_with_the_snapshot_and_with_nothing_else() {
    let mut image = TestImage::new(&options(9, 16, 3));
    image.write_all(0..100, 1);
    create(&mut image.metadata, "a", UNIX_EPOCH).expect("created");
    let print = |image: &TestImage, id: &str| fingerprint(&image.metadata, id).expect("readable");
    let first = print(&image, "1");
    image.write_all(50..120, 2);
    create(&mut image.metadata, "b", UNIX_EPOCH).expect("created");
    apply(&mut image.metadata, "1").expect("applied");
    image.write(3, 3);
    delete(&mut image.metadata, "2").expect("deleted");
    assert_eq!(print(&image, "1"), first);
    delete(&mut image.metadata, "1").expect("deleted");
    create(&mut image.metadata, "a", UNIX_EPOCH).expect("created");
    assert_eq!(image.metadata.snapshots[0].id(), "1", "the same id and name");
    assert_ne!(print(&image, "1"), first);
}

#[test]
fn a_fingerprint_is_the_digest_of_what_its_description_lists() {
    let mut image = TestImage::new(&options(9, 16, 3));
    image.write(70, 1);
    let entry = create(&mut image.metadata, "name", UNIX_EPOCH).expect("created");
    let file = image.bytes();
    let field = |offset: usize| u64::from_be_bytes(file[offset..offset + 8].try_into().expect("8 bytes"));
    let l1 = usize::try_from(entry.l1_offset).expect("small");
    let mut listed = [&1_u64.to_be_bytes()[..], b"1", &4_u64.to_be_bytes(), b"name"].concat();
    listed.extend((160 * 512_u64).to_be_bytes());
    listed.extend(u64::from(entry.l1_entries).to_be_bytes());
    for index in 0..entry.l1_entries as usize {
        let l1_entry = field(l1 + index * 8) & !(1 << 63);
        listed.extend(l1_entry.to_be_bytes());
        let table = usize::try_from(l1_entry).expect("small");
        for entry in (table..table + 512).step_by(8).take_while(|_| table != 0) {
            listed.extend((field(entry) & !(1 << 63)).to_be_bytes());
        }
    }
    assert_eq!(
        fingerprint(&image.metadata, "1").expect("readable"),
        *blake3::hash(&listed).as_bytes()
    );
}
