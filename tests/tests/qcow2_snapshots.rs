//! Internal snapshots of one image, made by QEMU and by us in turn, while both write to the disk beside them.

mod qcow2_common;

use qcow2_common::pair::Pair;
use qcow2_common::random::Shadow;
use qcow2_common::{ours, qemu, text};

#[test]
fn internal_snapshots_keep_their_content_and_the_disk_its_own() {
    let Some(_alone) = qemu::alone("internal_snapshots_keep_their_content_and_the_disk_its_own") else {
        return;
    };
    for version in ["v2", "v3"] {
        for (seed, cluster) in (1..).zip(["512", "4k", "64k"]) {
            let options = format!("version={version},cluster_size={cluster}");
            let mut pair = Pair::new(&options, seed);
            for name in ["first", "second", "third"] {
                pair.fill_by_qemu();
                pair.change_by_us();
                pair.snapshot_by_qemu(name);
                pair.change_by_us();
                pair.judge(&format!("{options}: after {name}"));
            }
            qemu::img(["snapshot", "-d", "second", text(&pair.image)]).good();
            pair.snapshots.remove(1);
            pair.run(&options);
        }
    }
}

#[test]
fn our_snapshots_and_those_of_qemu_take_turns_on_the_same_image() {
    let Some(_alone) = qemu::alone("our_snapshots_and_those_of_qemu_take_turns_on_the_same_image") else {
        return;
    };
    let shapes = [
        "version=v2",
        "version=v3",
        "version=v3,cluster_size=512,refcount_bits=8",
        "version=v3,cluster_size=4k,refcount_bits=64",
    ];
    for (seed, options) in (1..).zip(shapes) {
        let mut pair = Pair::new(options, seed);
        for step in 0..9 {
            pair.change_by_us();
            let by_us = pair.random.below(2) == 0;
            let what = snapshot_step(&mut pair, step, by_us);
            pair.judge(&format!("{options}: step {step}: {what}"));
        }
    }
}

/// Creates, applies or deletes a snapshot, by us or by QEMU; returns what was done.
fn snapshot_step(pair: &mut Pair, step: u64, by_us: bool) -> String {
    let who = if by_us { "we" } else { "QEMU" };
    let choice = pair.random.below(5);
    if pair.snapshots.len() < 2 || choice < 2 {
        let name = format!("s{step}");
        if by_us {
            ours::snapshot_create(&pair.image, &name);
        } else {
            qemu::img(["snapshot", "-c", &name, text(&pair.image)]).good();
        }
        pair.note(&name);
        return format!("{who} create {name}");
    }
    let count = pair.snapshots.len() as u64;
    let at = usize::try_from(pair.random.below(count)).expect("small");
    let name = pair.snapshots[at].0.clone();
    if choice < 4 {
        if by_us {
            ours::snapshot_apply(&pair.image, &name);
        } else {
            qemu::img(["snapshot", "-a", &name, text(&pair.image)]).good();
        }
        let raw = pair.scratch.path("applied.raw");
        let words = "convert -f qcow2 -O raw -l";
        qemu::img(words.split(' ').chain([
            format!("snapshot.name={name}").as_str(),
            text(&pair.image),
            text(&raw),
        ]))
        .good();
        std::fs::rename(&raw, &pair.shadow.path).expect("the shadow is replaced");
        pair.shadow = Shadow::open(&pair.shadow.path.clone());
        return format!("{who} apply {name}");
    }
    pair.snapshots.remove(at);
    if by_us {
        ours::snapshot_delete(&pair.image, &name);
    } else {
        qemu::img(["snapshot", "-d", &name, text(&pair.image)]).good();
    }
    format!("{who} delete {name}")
}
