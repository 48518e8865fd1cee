//! Other qcow2 engines on the same images: where they serve as second readers and writers, and why neither
//! carries the guest's I/O.
//!
//! The tests whose names speak of another engine state what its pinned version does. One that fails after an update
//! tells that the engine has changed, and that the decision (`docs/decisions.md`) can be looked at again.

mod qcow2_common;

use std::fs;
use std::path::Path;

use qcow2_common::ours::Disk;
use qcow2_common::random::{Random, Shadow};
use qcow2_common::{KIB, MIB, Scratch, pattern, peers, qemu, text};

const SIZE: u64 = 16 * MIB;

/// Checks an image and compares it with its shadow.
#[track_caller]
fn judge(image: &Path, shadow: &Shadow) {
    qemu::assert_clean(image);
    qemu::assert_same(image, &shadow.path);
}

/// Runs a script on an image and insists that the engine came to its end.
#[track_caller]
fn obeys(program: &Path, engine: &str, image: &Path, script: &[String]) {
    let end = peers::run(program, engine, image, script);
    assert!(end.status.success(), "{engine}: {}: {}", end.status, end.stderr);
}

/// Random operations in whole sectors, as a script for an engine; the shadow receives them too.
fn sectors(random: &mut Random, shadow: &Shadow, count: u64) -> Vec<String> {
    let line = |_| {
        let len = (1 + random.below(150)) * 512;
        let offset = random.below((SIZE - len) / 512 + 1) * 512;
        if random.below(5) == 0 {
            shadow.zero(offset, len);
            return format!("zero {offset} {len}");
        }
        let seed = random.next() >> 1;
        shadow.fill(offset, len, seed);
        format!("write {offset} {len} {seed}")
    };
    (0..count).map(line).collect()
}

/// The same script for our engine.
fn ours(image: &Path, script: &[String]) {
    let disk = Disk::open(image);
    for line in script {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        match words[0] {
            "write" => disk.fill(number(1), number(2), number(3)),
            "zero" => disk.zero(number(1), number(2)),
            "flush" => disk.flush(),
            other => panic!("{other}"),
        }
    }
    disk.close();
}

#[test]
fn four_engines_take_turns_on_plain_images() {
    let name = "four_engines_take_turns_on_plain_images";
    let Some((_alone, program)) = qemu::alone(name).zip(peers::program(name)) else {
        return;
    };
    let options = [
        "version=v3,cluster_size=4096",
        "version=v3,cluster_size=65536",
        "version=v3,cluster_size=2M",
        "version=v2,cluster_size=65536",
        "version=v3,cluster_size=65536,refcount_bits=1",
        "version=v3,cluster_size=65536,refcount_bits=64",
    ];
    for (number, options) in (1..).zip(options) {
        let scratch = Scratch::new();
        let image = scratch.path("disk.qcow2");
        qemu::create(&image, options, SIZE);
        let shadow = Shadow::create(&scratch.path("shadow.raw"), SIZE);
        let mut random = Random::new(number);
        for turn in 0..3 {
            for engine in ["ours", "qcow2-rs", "imago"] {
                let mut script = sectors(&mut random, &shadow, 12);
                // What the engine itself refuses is not its subject here.
                if options.contains("version=v2") && engine == "imago" {
                    script.retain(|line| line.starts_with("write"));
                    let again = Shadow::open(&shadow.path);
                    // The zeros went to the shadow and not to the image: bring the image up to it.
                    obeys(program, engine, &image, &script);
                    copy_from_shadow(&image, &again);
                } else if engine == "ours" {
                    ours(&image, &script);
                } else {
                    obeys(program, engine, &image, &script);
                }
                eprintln!("{options}: turn {turn} of {engine}");
                judge(&image, &shadow);
            }
            let byte = 1 + random.below(250);
            let offset = random.below(SIZE / KIB - 64) * KIB;
            qemu::io(&image, [format!("write -P {byte} {offset} 64k")]);
            shadow.write(&vec![u8::try_from(byte).expect("a byte"); 65536], offset);
        }
        read_back(program, &image, &shadow, &scratch);
    }
}

/// Brings an image up to its shadow through our engine.
fn copy_from_shadow(image: &Path, shadow: &Shadow) {
    let disk = Disk::open(image);
    disk.write(&shadow.read(0, SIZE), 0);
    disk.close();
}

/// Insists that each engine reads what the shadow holds.
fn read_back(program: &Path, image: &Path, shadow: &Shadow, scratch: &Scratch) {
    let expected = shadow.read(0, SIZE);
    for engine in ["qcow2-rs", "imago"] {
        let dump = scratch.path("dump.raw");
        obeys(program, engine, image, &[format!("dump {}", text(&dump))]);
        assert!(
            fs::read(&dump).expect("the dump") == expected,
            "{engine} reads other bytes"
        );
    }
    assert!(Disk::open(image).read(0, SIZE) == expected, "we read other bytes");
}

#[test]
fn qcow2_rs_destroys_internal_snapshots_where_our_engine_keeps_them() {
    let name = "qcow2_rs_destroys_internal_snapshots_where_our_engine_keeps_them";
    let Some((_alone, program)) = qemu::alone(name).zip(peers::program(name)) else {
        return;
    };
    let scratch = Scratch::new();
    let write = "write 4096 4096 7".to_owned();
    // Returns whether the snapshot and the disk beside it hold what they must after 4 KiB were written.
    let outcome = |engine: &str| {
        let image = scratch.path(&format!("{engine}.qcow2"));
        qemu::create(&image, "version=v3,cluster_size=65536", SIZE);
        qemu::io(&image, ["write -P 0x11 0 64k"]);
        qemu::img(["snapshot", "-c", "s", text(&image)]).good();
        let raw = scratch.path("raw");
        let before = qemu::digest(&image, Some("s"), &raw);
        match engine {
            "ours" => ours(&image, std::slice::from_ref(&write)),
            other => obeys(program, other, &image, std::slice::from_ref(&write)),
        }
        let shadow = Shadow::create(&scratch.path("shadow.raw"), SIZE);
        shadow.write(&[0x11; 65536], 0);
        shadow.fill(4096, 4096, 7);
        let expected = blake3::hash(&shadow.read(0, SIZE));
        let kept = qemu::digest(&image, Some("s"), &raw) == before;
        (
            kept,
            qemu::digest(&image, None, &raw) == expected,
            qemu::check(&image).code,
        )
    };
    assert_eq!(outcome("ours"), (true, true, 0));
    assert_eq!(outcome("imago"), (true, true, 0), "for comparison");
    let (kept, right, _) = outcome("qcow2-rs");
    assert!(
        !kept,
        "qcow2-rs keeps internal snapshots now: look at the decision again"
    );
    assert!(!right, "qcow2-rs writes beside internal snapshots correctly now");
}

#[test]
fn qcow2_rs_refuses_raw_backing_files_where_our_engine_reads_them() {
    let name = "qcow2_rs_refuses_raw_backing_files_where_our_engine_reads_them";
    let Some((_alone, program)) = qemu::alone(name).zip(peers::program(name)) else {
        return;
    };
    let scratch = Scratch::new();
    let (base, image) = (scratch.path("base.raw"), scratch.path("disk.qcow2"));
    let shadow = Shadow::create(&base, SIZE);
    shadow.fill(MIB, MIB, 3);
    // An absolute name: relative ones it looks up in the directory of the process.
    qemu::img([
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        text(&base),
        "-F",
        "raw",
        text(&image),
    ])
    .good();
    let end = peers::run(program, "qcow2-rs", &image, &["write 0 4096 1".to_owned()]);
    assert!(!end.status.success(), "qcow2-rs reads raw backing files now");
    let written = Shadow::create(&scratch.path("shadow.raw"), SIZE);
    written.fill(MIB, MIB, 3);
    let script = ["write 1052672 4096 9".to_owned()];
    written.fill(1_052_672, 4096, 9);
    ours(&image, &script);
    judge(&image, &written);
}

/// Runs the script up to each of its lines and ends the process there, without a flush after the last one.
///
/// Returns after how many of these deaths `qemu-img check` finds corruptions.
fn corrupt_deaths(
    fresh: &Path,
    script: &[String],
    scratch: &Scratch,
    die: impl Fn(&Path, &[String]),
) -> usize {
    let image = scratch.path("killed.qcow2");
    let corrupt = |length: &usize| {
        fs::copy(fresh, &image).expect("a copy of the image");
        die(&image, &script[..*length]);
        qemu::check(&image).code == 2
    };
    (1..=script.len()).filter(corrupt).count()
}

#[test]
fn imago_dies_with_references_that_have_no_refcount_where_our_engine_only_leaks() {
    let name = "imago_dies_with_references_that_have_no_refcount_where_our_engine_only_leaks";
    let Some((_alone, program)) = qemu::alone(name).zip(peers::program(name)) else {
        return;
    };
    let scratch = Scratch::new();
    let fresh = scratch.path("fresh.qcow2");
    qemu::create(&fresh, "version=v3,cluster_size=4096", 256 * MIB);
    // Each write is the first one into the range of another L2 table (2 MiB).
    let script: Vec<String> = (0..12)
        .map(|n| format!("write {} 4096 {n}", n * 2 * MIB))
        .collect();
    let theirs = corrupt_deaths(&fresh, &script, &scratch, |image, lines| {
        obeys(program, "imago", image, &[lines, &["die".to_owned()]].concat());
    });
    assert!(
        theirs > 0,
        "imago orders refcounts before references now: look at the decision again"
    );
    let ours = corrupt_deaths(&fresh, &script, &scratch, |image, lines| {
        let disk = Disk::open(image);
        for (number, _) in (0u64..).zip(lines) {
            disk.fill(number * 2 * MIB, 4096, number);
        }
        disk.die();
    });
    eprintln!(
        "corrupt after death: imago {theirs} of {}, ours {ours}",
        script.len()
    );
    assert_eq!(ours, 0);
}

#[test]
fn imago_loses_flushed_data_in_the_session_after_a_kill_where_our_engine_loses_nothing() {
    let name = "imago_loses_flushed_data_in_the_session_after_a_kill_where_our_engine_loses_nothing";
    let Some((_alone, program)) = qemu::alone(name).zip(peers::program(name)) else {
        return;
    };
    let scratch = Scratch::new();
    let start = 32 * MIB;
    let flushed = start + 64 * KIB;
    // Returns whether what the second session flushed is there, and what the check says.
    let outcome = |engine: &str| {
        let image = scratch.path(&format!("{engine}.qcow2"));
        qemu::create(&image, "version=v3,cluster_size=4096", 64 * MIB);
        let second = [format!("write {flushed} {MIB} 2"), "flush".to_owned()];
        if engine == "ours" {
            let disk = Disk::open(&image);
            disk.fill(start, 4096, 1);
            disk.die();
            ours(&image, &second);
        } else {
            let first = [format!("write {start} 4096 1"), "die".to_owned()];
            obeys(program, engine, &image, &first);
            obeys(program, engine, &image, &second);
        }
        let raw = scratch.path("raw");
        qemu::img(["convert", "-f", "qcow2", "-O", "raw", text(&image), text(&raw)]).good();
        let found = Shadow::open(&raw).read(flushed, MIB);
        (found == pattern(2, flushed, MIB), qemu::check(&image).code == 2)
    };
    assert_eq!(outcome("ours"), (true, false), "(data there, corrupt)");
    let (kept, corrupt) = outcome("imago");
    assert!(
        !kept && corrupt,
        "imago survives a kill before its first flush now"
    );
}
