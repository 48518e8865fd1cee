//! Our operations in turn with `qemu-img snapshot` and writes of `qemu-io`, beside a model of what each snapshot holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use qcow2::replay::Random;
use qcow2::{Error, snapshots};

use crate::content::{alone, as_qemu_reads, as_we_read, assert_clean, ids, metadata};
use crate::second_opinion::{filled, qemu_img, qemu_io, run, text};

/// Environment variable with the number of steps for each set of options.
const STEPS: &str = "QCOW2_SNAPSHOT_STEPS";
const STEPS_BY_DEFAULT: u64 = 6;
/// Snapshots that an image has at most.
const MOST: usize = 3;

/// An image, and what is known of its content.
struct Model {
    path: PathBuf,
    active: String,
    snapshots: BTreeMap<String, String>,
    random: Random,
}

/// An operation on snapshots.
#[derive(Clone, Copy)]
enum Action {
    Create,
    Apply,
    Delete,
}

/// Goes through random steps on an image of some options; after each of them everything is as it should be.
fn interleave(test: &str, options: &str, seed: u64) {
    let Some(_alone) = alone(test) else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let path = filled(directory.path(), "disk.qcow2", options);
    let active = as_qemu_reads(&path, None);
    let mut model = Model {
        path,
        active,
        snapshots: BTreeMap::new(),
        random: Random::new(seed),
    };
    let steps = std::env::var(STEPS)
        .ok()
        .and_then(|steps| steps.parse().ok())
        .unwrap_or(STEPS_BY_DEFAULT);
    for step in 0..steps {
        let what = model.step(step, options);
        let what = format!("{options}, seed {seed}, step {step}: {what}");
        assert_clean(&model.path, &what);
        model.compare(&what);
    }
}

impl Model {
    /// Does one thing with one of the two programs and returns what it was.
    fn step(&mut self, step: u64, options: &str) -> String {
        let ours = self.random.one_in(2);
        let who = if ours { "ours" } else { "qemu-img" };
        let count = self.snapshots.len();
        // The first steps make sure that there is something to share.
        match (self.random.below(5), step) {
            (_, 0) | (0, _) if count < MOST => {
                let name = format!("name {step}");
                let done = self.run(Action::Create, &name, ours);
                if done {
                    let id = ids(&self.path).pop().expect("the new one is the last");
                    assert!(
                        self.snapshots.insert(id, self.active.clone()).is_none(),
                        "a new id"
                    );
                }
                format!("{who} creates: {done}")
            }
            (1, _) if count > 0 => {
                let id = self.any();
                let done = self.run(Action::Apply, &id, ours);
                if done {
                    self.active.clone_from(&self.snapshots[&id]);
                }
                format!("{who} applies {id}: {done}")
            }
            (2, _) if count > 0 => {
                let id = self.any();
                // Steps give names that occur once, and `qemu-img` deletes by name.
                let name = name_of(&self.path, &id);
                assert!(
                    self.run(Action::Delete, &name, ours),
                    "nothing keeps a snapshot from being deleted"
                );
                self.snapshots.remove(&id);
                format!("{who} deletes {id}")
            }
            _ => self.write(options),
        }
    }

    fn any(&mut self) -> String {
        let index = self.random.index(self.snapshots.len());
        self.snapshots.keys().nth(index).cloned().expect("a snapshot")
    }

    /// Runs an operation with one program and returns whether it was done. Where refcounts are too narrow for one
    /// program, they are for the other.
    fn run(&self, action: Action, wanted: &str, ours: bool) -> bool {
        // What QEMU cannot count to the end it leaves half counted, with corruptions: that is undone.
        let before = fs::read(&self.path).expect("the image");
        let qemus = || {
            let option = match action {
                Action::Create => "-c",
                Action::Apply => "-a",
                Action::Delete => "-d",
            };
            let done = run("qemu-img", &["snapshot", option, wanted, text(&self.path)])
                .status
                .success();
            if !done {
                fs::write(&self.path, &before).expect("the image");
            }
            done
        };
        let mine = || {
            let mut metadata = metadata(&self.path);
            let result = match action {
                Action::Create => snapshots::create(&mut metadata, wanted, SystemTime::now()),
                Action::Apply => snapshots::apply(&mut metadata, wanted),
                Action::Delete => snapshots::delete(&mut metadata, wanted),
            };
            match result {
                Ok(_) => true,
                Err(Error::Limit(_)) => false,
                Err(error) => panic!("{error}"),
            }
        };
        if ours {
            let done = mine();
            assert!(done || !qemus(), "what we refuse, QEMU refuses");
            return done;
        }
        let done = qemus();
        match action {
            // QEMU counts the references that come before those that go; we count those that stay not at all.
            Action::Apply => done || mine(),
            Action::Create | Action::Delete => {
                assert!(done || !mine(), "what QEMU refuses, we refuse");
                done
            }
        }
    }

    /// Writes, zeroes or discards somewhere; the content that results is taken as it is.
    fn write(&mut self, options: &str) -> String {
        let offset = self.random.below(15 << 20) & !511;
        let len = (1 + self.random.below(600)) * 512;
        let pattern = self.random.below(255);
        let command = match self.random.below(4) {
            0 if !options.contains("compat=0.10") => format!("write -z {offset} {len}"),
            1 => format!("discard {offset} {len}"),
            _ => format!("write -P {pattern} {offset} {len}"),
        };
        qemu_io(&self.path, &[&command]);
        self.active = as_qemu_reads(&self.path, None);
        command
    }

    fn compare(&self, what: &str) {
        assert_eq!(
            as_qemu_reads(&self.path, None),
            self.active,
            "{what}: the active disk"
        );
        assert_eq!(ids(&self.path).len(), self.snapshots.len(), "{what}");
        for (id, content) in &self.snapshots {
            assert_eq!(
                as_qemu_reads(&self.path, Some(id)),
                *content,
                "{what}: snapshot {id}"
            );
            assert_eq!(
                as_we_read(&self.path, id),
                *content,
                "{what}: snapshot {id} as we read it"
            );
        }
    }
}

/// The name of the snapshot with an id.
fn name_of(path: &Path, id: &str) -> String {
    let metadata = metadata(path);
    snapshots::find(&metadata, id).expect("there").name().into_owned()
}

/// A test for each set of options.
macro_rules! interleaved_with_qemu {
    ($($name:ident: $options:literal, $seed:literal;)*) => {
        $(#[test]
        fn $name() {
            interleave(stringify!($name), $options, $seed);
        })*
    };
}

interleaved_with_qemu! {
    clusters_of_512_bytes_keep_every_snapshot: "cluster_size=512", 1;
    clusters_of_512_bytes_of_version_2_keep_every_snapshot: "cluster_size=512,compat=0.10", 2;
    clusters_of_64_kib_keep_every_snapshot: "cluster_size=65536", 3;
    clusters_of_64_kib_of_version_2_keep_every_snapshot: "compat=0.10", 4;
    clusters_of_2_mib_keep_every_snapshot: "cluster_size=2M", 5;
    refcounts_of_2_bits_keep_every_snapshot: "cluster_size=4096,refcount_bits=2,preallocation=metadata", 13;
    refcounts_of_4_bits_keep_every_snapshot: "cluster_size=65536,refcount_bits=4,preallocation=metadata", 6;
    refcounts_of_8_bits_keep_every_snapshot: "cluster_size=4096,refcount_bits=8", 7;
    refcounts_of_32_bits_keep_every_snapshot: "cluster_size=2048,refcount_bits=32", 8;
    refcounts_of_64_bits_keep_every_snapshot: "cluster_size=1024,refcount_bits=64", 9;
    zstd_keeps_every_snapshot: "cluster_size=65536,compression_type=zstd", 10;
    preallocated_metadata_keep_every_snapshot: "cluster_size=4096,preallocation=metadata", 11;
    lazy_refcounts_keep_every_snapshot: "cluster_size=4096,lazy_refcounts=on", 12;
}

/// An image over a backing file, with QEMU and us in turn (the disks of iotest 267).
#[test]
fn what_shows_through_from_a_backing_file_is_kept_too() {
    let Some(_alone) = alone("what_shows_through_from_a_backing_file_is_kept_too") else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let base = filled(directory.path(), "base.qcow2", "cluster_size=4096");
    let path = directory.path().join("disk.qcow2");
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        text(&base),
        text(&path),
    ]);
    let first = as_qemu_reads(&path, None);
    snapshots::create(&mut metadata(&path), "first", SystemTime::now()).expect("created");
    qemu_io(&path, &["write -P 1 5M 1M", "write -z 0 64k"]);
    let second = as_qemu_reads(&path, None);
    qemu_img(&["snapshot", "-c", "second", text(&path)]);
    snapshots::apply(&mut metadata(&path), "first").expect("applied");
    assert_eq!(as_qemu_reads(&path, None), first);
    assert_clean(&path, "applied");
    snapshots::apply(&mut metadata(&path), "second").expect("applied");
    snapshots::delete(&mut metadata(&path), "first").expect("deleted");
    assert_eq!(as_qemu_reads(&path, None), second);
    assert_eq!(as_qemu_reads(&path, Some("2")), second);
    assert_clean(&path, "deleted");
}

/// Clusters that read as zeros and are allocated nowhere (iotest 062).
#[test]
fn zero_clusters_without_room_take_part() {
    let Some(_alone) = alone("zero_clusters_without_room_take_part") else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", text(&path), "64M"]);
    qemu_io(&path, &["write -z 0 16M", "write -z -u 32M 1M"]);
    snapshots::create(&mut metadata(&path), "zeros", SystemTime::now()).expect("created");
    assert_clean(&path, "created");
    qemu_io(&path, &["write -P 1 1M 1M"]);
    snapshots::apply(&mut metadata(&path), "zeros").expect("applied");
    snapshots::delete(&mut metadata(&path), "zeros").expect("deleted");
    assert_clean(&path, "deleted");
    qemu_io(&path, &["read -P 0 0 64M"]);
}

/// Where QEMU refuses for want of bits, so do we, and nothing has changed (iotest 112).
#[test]
fn narrow_refcounts_are_refused_as_qemu_refuses_them() {
    let Some(_alone) = alone("narrow_refcounts_are_refused_as_qemu_refuses_them") else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    for (bits, most) in [(1, 0), (2, 2)] {
        let path = directory.path().join(format!("{bits}.qcow2"));
        qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &format!("refcount_bits={bits}"),
            text(&path),
            "64M",
        ]);
        qemu_io(&path, &["write -P 1 0 1M"]);
        for number in 0..most {
            snapshots::create(&mut metadata(&path), &number.to_string(), SystemTime::now()).expect("it fits");
        }
        let before = fs::read(&path).expect("the image");
        snapshots::create(&mut metadata(&path), "more", SystemTime::now()).expect_err("it does not fit");
        assert!(
            fs::read(&path).expect("the image") == before,
            "nothing is written"
        );
        assert_clean(&path, "refused");
        let qemus = run("qemu-img", &["snapshot", "-c", "more", text(&path)]);
        assert!(!qemus.status.success(), "QEMU refuses it, too");
    }
}
