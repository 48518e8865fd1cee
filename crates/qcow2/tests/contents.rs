//! `map` and `compare` beside qemu-img's, on chains of many shapes; `diff` beside the bytes that qemu-img reads.

mod second_opinion;

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use qcow2::compare::{Compare, Comparison, compare};
use qcow2::diff::{DiffReport, DiffSide, diff};
use qcow2::map::{Extent, map};
use qcow2::{Access, Cache, Chain, ImageFormat};
use second_opinion::{
    OPTIONS, add_snapshots, alone, can_have_snapshots, filled, patch, present, qemu_img, qemu_io, run, text,
};

/// Opens a chain to read it.
fn chain(path: &Path, format: ImageFormat) -> Chain {
    Chain::open(path, format, Access::ReadOnly, Cache::Writeback).expect("open")
}

/// Compares our map of an image with qemu-img's.
fn same_map(what: &str, path: &Path, format: ImageFormat) {
    let mut ours: Vec<Extent> = Vec::new();
    let collect = &mut |extent: &Extent| {
        ours.push(*extent);
        Ok(())
    };
    map(&chain(path, format), collect).expect("map");
    let theirs = qemu_img(&["map", "--output=json", "-f", format.name(), text(path)]);
    let theirs: Vec<serde_json::Value> = serde_json::from_str(&theirs).expect("json");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let mut ours = serde_json::to_value(ours).expect("json");
        let fields = ours.as_object_mut().expect("object");
        fields.remove("layer");
        if fields["offset"].is_null() {
            fields.remove("offset");
        }
        assert_eq!(&ours, theirs, "{what}");
    }
    assert_eq!(ours.len(), theirs.len(), "{what}: {theirs:#?}");
}

/// Makes an overlay with another cluster size, and writes into it.
fn overlay(directory: &Path, name: &str, base: &str, base_format: &str, options: &str) -> PathBuf {
    let path = directory.join(name);
    let arguments = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        options,
        "-b",
        base,
        "-F",
        base_format,
    ];
    qemu_img(&[&arguments[..], &[text(&path), "20M"]].concat());
    qemu_io(
        &path,
        &[
            "write -P 11 700k 100k",
            "write -z 4M 1M",
            "write -P 12 16M 200k",
            "write -P 13 19M 1M",
        ],
    );
    path
}

/// A raw image with holes.
fn raw(directory: &Path) -> PathBuf {
    let path = directory.join("base.raw");
    qemu_img(&["create", "-q", "-f", "raw", text(&path), "10M"]);
    patch(&path, 0, &[1; 100_000]);
    patch(&path, 5 << 20, &[2; 1 << 20]);
    path
}

#[test]
fn maps_are_qemus() {
    if !present("maps_are_qemus") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("tempdir");
    let directory = directory.path();
    // Where much of the file is holes, qemu-img takes metadata for allocated ahead and looks for holes itself.
    let sparse = |options: &str| options.contains("preallocation") || options.contains("cluster_size=2M");
    for options in OPTIONS.iter().filter(|options| !sparse(options)) {
        let path = filled(directory, "base.qcow2", options);
        same_map(options, &path, ImageFormat::Qcow2);
        if can_have_snapshots(options) {
            add_snapshots(&path);
            same_map(options, &path, ImageFormat::Qcow2);
        }
        let path = overlay(
            directory,
            "overlay.qcow2",
            "base.qcow2",
            "qcow2",
            "cluster_size=65536",
        );
        same_map(&format!("overlay on {options}"), &path, ImageFormat::Qcow2);
        let path = overlay(
            directory,
            "third.qcow2",
            "overlay.qcow2",
            "qcow2",
            "cluster_size=4096",
        );
        same_map(&format!("second overlay on {options}"), &path, ImageFormat::Qcow2);
    }
    let base = raw(directory);
    same_map("raw", &base, ImageFormat::Raw);
    let path = overlay(directory, "on_raw.qcow2", "base.raw", "raw", "cluster_size=65536");
    same_map("overlay on raw", &path, ImageFormat::Qcow2);
}

/// Compares two images with both and returns our answer.
fn compared(first: (&Path, ImageFormat), second: (&Path, ImageFormat), strict: bool) -> Comparison {
    let options = Compare { strict_size: strict };
    let (one, other) = (chain(first.0, first.1), chain(second.0, second.1));
    let ours = compare(&one, &other, options, &mut |_, _| ControlFlow::Continue(())).expect("compare");
    drop((one, other));
    let mut arguments = vec!["compare", "-f", first.1.name(), "-F", second.1.name()];
    if strict {
        arguments.push("-s");
    }
    arguments.extend([text(first.0), text(second.0)]);
    let output = run("qemu-img", &arguments);
    let same = ours == Comparison::Identical;
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(i32::from(!same)), "{ours:?}: {said}");
    ours
}

#[test]
fn comparisons_have_qemus_answer() {
    if !present("comparisons_have_qemus_answer") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("tempdir");
    let directory = directory.path();
    let base = filled(directory, "base.qcow2", "cluster_size=65536");
    let path = overlay(
        directory,
        "overlay.qcow2",
        "base.qcow2",
        "qcow2",
        "cluster_size=4096",
    );
    let converted = directory.join("converted.raw");
    let packed = directory.join("packed.qcow2");
    qemu_img(&[
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        text(&path),
        text(&converted),
    ]);
    let zstd = "compression_type=zstd,cluster_size=8192";
    let arguments = ["convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o", zstd];
    qemu_img(&[&arguments[..], &[text(&path), text(&packed)]].concat());
    let overlay = (path.as_path(), ImageFormat::Qcow2);
    let raw = (converted.as_path(), ImageFormat::Raw);
    let packed = (packed.as_path(), ImageFormat::Qcow2);
    for (first, second) in [(overlay, raw), (packed, overlay), (raw, packed)] {
        assert_eq!(compared(first, second, false), Comparison::Identical);
    }
    let on_base = compared(overlay, (base.as_path(), ImageFormat::Qcow2), false);
    assert_eq!(on_base, Comparison::ContentDiffers { offset: 700 << 10 });
    patch(&converted, (19 << 20) + 12345, &[99]);
    let changed = Comparison::ContentDiffers {
        offset: (19 << 20) + 12345,
    };
    assert_eq!(compared(overlay, raw, false), changed);
}

#[test]
fn disks_of_different_sizes_are_equal_while_the_rest_is_zeros() {
    if !present("disks_of_different_sizes_are_equal_while_the_rest_is_zeros") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("tempdir");
    let (short, long) = (
        directory.path().join("short.raw"),
        directory.path().join("long.qcow2"),
    );
    qemu_img(&["create", "-q", "-f", "raw", text(&short), "1M"]);
    qemu_img(&["create", "-q", "-f", "qcow2", text(&long), "8M"]);
    patch(&short, 1000, b"both");
    qemu_io(&long, &["write -P 0 0 64k"]);
    let output = run(
        "qemu-img",
        &["dd", "-f", "raw", "-O", "qcow2", "if=/dev/null", "of=/dev/null"],
    );
    drop(output);
    let (short, long) = (
        (short.as_path(), ImageFormat::Raw),
        (long.as_path(), ImageFormat::Qcow2),
    );
    assert_eq!(
        compared(short, long, false),
        Comparison::ContentDiffers { offset: 1000 }
    );
    patch(short.0, 1000, &[0; 4]);
    assert_eq!(compared(short, long, false), Comparison::Identical);
    let sizes = Comparison::SizeDiffers {
        first_bytes: 1 << 20,
        second_bytes: 8 << 20,
    };
    assert_eq!(compared(short, long, true), sizes);
    qemu_io(long.0, &["write -P 1 7M 512"]);
    assert_eq!(
        compared(short, long, false),
        Comparison::ContentDiffers { offset: 7 << 20 }
    );
}

/// The ranges in which two states of an image differ.
fn differences(path: &Path, before: &DiffSide, after: &DiffSide) -> (Vec<Range<u64>>, DiffReport) {
    let mut ranges = Vec::new();
    let collect = &mut |range| {
        ranges.push(range);
        Ok(())
    };
    let report = diff(&chain(path, ImageFormat::Qcow2), before, after, collect).expect("diff");
    (ranges, report)
}

/// What qemu-img reads of a state of an image.
fn content(path: &Path, state: &DiffSide) -> Vec<u8> {
    let raw = path.with_extension("content");
    let mut arguments = vec!["convert", "-f", "qcow2", "-O", "raw"];
    let snapshot = match state {
        DiffSide::Active => None,
        DiffSide::Snapshot(name) => Some(format!("snapshot.name={name}")),
    };
    if let Some(snapshot) = &snapshot {
        arguments.extend(["-l", snapshot]);
    }
    arguments.extend([text(path), text(&raw)]);
    qemu_img(&arguments);
    std::fs::read(&raw).expect("read")
}

/// The ranges of sectors in which two contents differ.
fn differing(before: &[u8], after: &[u8]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (number, (before, after)) in before.chunks(512).zip(after.chunks(512)).enumerate() {
        let start = number as u64 * 512;
        if before != after {
            match ranges.last_mut().filter(|range| range.end == start) {
                Some(range) => range.end += 512,
                None => ranges.push(start..start + 512),
            }
        }
    }
    ranges
}

#[test]
fn differences_are_exactly_those_of_the_bytes() {
    if !present("differences_are_exactly_those_of_the_bytes") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("tempdir");
    let directory = directory.path();
    filled(directory, "base.qcow2", "cluster_size=16384");
    for options in OPTIONS.iter().filter(|options| can_have_snapshots(options)) {
        let own = filled(directory, "own.qcow2", options);
        let preallocated = options.contains("preallocation");
        let above =
            (!preallocated).then(|| overlay(directory, "above.qcow2", "base.qcow2", "qcow2", options));
        for path in std::iter::once(own).chain(above) {
            add_snapshots(&path);
            let state = |name: &str| DiffSide::Snapshot(name.to_owned());
            let states = [state("first"), state("second"), DiffSide::Active];
            let contents: Vec<Vec<u8>> = states.iter().map(|state| content(&path, state)).collect();
            for (before, after) in [(0, 1), (1, 2), (2, 0), (1, 1)] {
                let (ranges, report) = differences(&path, &states[before], &states[after]);
                let expected = differing(&contents[before], &contents[after]);
                assert_eq!(ranges, expected, "{options}: {before} and {after}");
                let sum: u64 = ranges.iter().map(|range| range.end - range.start).sum();
                assert_eq!(report.differing_bytes, sum);
                assert_eq!(before == after, ranges.is_empty());
            }
        }
    }
}

#[test]
fn what_states_share_is_not_read() {
    if !present("what_states_share_is_not_read") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("image.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=4096",
        text(&path),
        "64M",
    ]);
    qemu_io(&path, &["write -P 1 0 8M"]);
    qemu_img(&["snapshot", "-c", "before", text(&path)]);
    qemu_io(&path, &["write -P 1 1M 8k", "write -P 2 3M 512"]);
    let before = DiffSide::Snapshot("before".to_owned());
    let (ranges, report) = differences(&path, &before, &DiffSide::Active);
    assert_eq!(
        ranges,
        vec![Range {
            start: 3 << 20,
            end: (3 << 20) + 512
        }]
    );
    assert_eq!(report.compared_bytes, 3 * 4096);
}
