use std::fs;
use std::os::unix::fs::FileExt;

use tempfile::TempDir;
use vmm::DiskFormat;

use super::*;
use crate::disk::fingerprint::mtime_ns;
use crate::disk::names::format_name;
use crate::disk::{Fingerprint, InternalEntry, LayerKind};

const LEN: u64 = 1 << 20;

/// A snapshot `out.vmsnap` of which only the files of its disk `data` are there.
struct Scene {
    directory: TempDir,
    entry: DiskEntry,
    layers: BTreeMap<String, Vec<LayerRecord>>,
    given: BTreeMap<String, PathBuf>,
    how: DisksRestore,
    check: bool,
}

impl Scene {
    /// A disk that was kept by a copy.
    fn copied() -> Self {
        let scene = Self::with(DisksMode::Copy, DiskFormat::Raw);
        let copy = File::create_new(scene.path("out.vmsnap.data.raw")).unwrap();
        copy.set_len(LEN).unwrap();
        copy.write_all_at(b"content", 100).unwrap();
        scene.recorded(&["out.vmsnap.data.raw"])
    }

    /// A disk that was kept by an overlay over a qcow2 image, which has a raw file below it.
    fn frozen() -> Self {
        let scene = Self::with(DisksMode::Overlay, DiskFormat::Qcow2);
        fs::create_dir(scene.path("images")).unwrap();
        let base = File::create_new(scene.path("images/base.raw")).unwrap();
        base.set_len(LEN).unwrap();
        base.write_all_at(b"content", 4096).unwrap();
        let backing = qcow2::Backing::new("base.raw", qcow2::ImageFormat::Raw);
        scene.make_image(
            "images/out.vmsnap.data.qcow2",
            &qcow2::CreateOptions::overlay(LEN, backing),
        );
        scene.recorded(&["images/out.vmsnap.data.qcow2", "images/base.raw"])
    }

    fn with(mode: DisksMode, format: DiskFormat) -> Self {
        Self {
            directory: TempDir::new().unwrap(),
            entry: DiskEntry {
                id: "data".to_owned(),
                format: format_name(format).to_owned(),
                virtual_size_bytes: LEN,
                readonly: false,
                mode,
                internal: None,
                layers: Vec::new(),
            },
            layers: BTreeMap::new(),
            given: BTreeMap::new(),
            how: DisksRestore::Overlay,
            check: false,
        }
    }

    fn make_image(&self, name: &str, options: &qcow2::CreateOptions) {
        let mut file = File::options();
        let file = file.read(true).write(true).create_new(true).open(self.path(name));
        let storage = qcow2::FileStorage::from_file(file.unwrap(), qcow2::Access::ReadWrite);
        qcow2::create(&storage, options).unwrap();
    }

    /// Takes the files as they are into table and record.
    fn recorded(mut self, names: &[&str]) -> Self {
        let hash = |name: &&str| Fingerprint(*blake3::hash(&fs::read(self.path(name)).unwrap()).as_bytes());
        self.entry.layers = names.iter().map(hash).collect();
        let record = |name: &&str| {
            let metadata = fs::metadata(self.path(name)).unwrap();
            LayerRecord {
                path: name.into(),
                format: name.rsplit('.').next().unwrap().to_owned(),
                length_bytes: metadata.len(),
                mtime_ns: mtime_ns(&metadata),
            }
        };
        let records = names.iter().map(record).collect();
        self.layers.insert("data".to_owned(), records);
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Opens the disk for a restore of the snapshot of that name; returns where its own file is.
    fn open(&self, snapshot: &str) -> Result<(ReadyDisks, PathBuf)> {
        let mut configs = [DiskConfig {
            readonly: self.entry.readonly,
            ..DiskConfig::new("data", self.path("d.raw"))
        }];
        let places = Places {
            owner: FrozenFor {
                snapshot: self.path(snapshot),
                file_id: [9; 16],
            },
            layers: &self.layers,
            given: &self.given,
            how: self.how,
            check: self.check,
            known: &KnownFingerprints::default(),
        };
        let ready = open_disks(std::slice::from_ref(&self.entry), &mut configs, &places)?;
        let [config] = configs;
        Ok((ready, config.file))
    }

    /// Opens the disk, which stays open as long as the answer.
    fn opened(&self) -> (Vec<Disk>, PathBuf) {
        let (mut ready, path) = self.open("out.vmsnap").unwrap();
        let disks = ready.finish().unwrap();
        ready.keep();
        (disks, path)
    }

    fn refusal(&self, snapshot: &str) -> DiskError {
        match self.open(snapshot).unwrap_err() {
            Error::Disk { id, source } if id == "data" => source,
            error => panic!("{error}"),
        }
    }

    fn files(&self) -> usize {
        fs::read_dir(self.directory.path()).unwrap().count()
    }

    fn change(&self, name: &str, offset: u64) {
        let file = File::options().write(true).open(self.path(name)).unwrap();
        file.write_all_at(b"C", offset).unwrap();
    }
}

#[test]
fn the_guest_works_on_a_copy_of_the_copy_that_never_has_a_name() {
    let scene = Scene::copied();
    let (_disks, path) = scene.opened();
    assert_eq!(scene.files(), 1, "the working copy has a name");
    assert!(path.starts_with("/proc/self/fd"));
    scene.open("out.vmsnap").unwrap();
}

#[test]
fn a_file_that_was_asked_for_stays_unless_the_restore_fails() {
    for mut scene in [Scene::copied(), Scene::frozen()] {
        let target = scene.path("mine");
        scene.given.insert("data".to_owned(), target.clone());
        let (ready, path) = scene.open("out.vmsnap").unwrap();
        assert_eq!(path, target);
        drop(ready);
        assert!(!target.exists(), "the restore failed, and its file was left");
        drop(scene.opened());
        assert!(target.exists());
        assert!(matches!(scene.refusal("out.vmsnap"), DiskError::Exists { .. }));
        assert!(target.exists(), "a refusal removed a file that was there before");
    }
}

#[test]
fn a_copy_is_found_when_the_snapshot_was_renamed_alone_or_with_it() {
    let scene = Scene::copied();
    scene.open("renamed.vmsnap").unwrap();
    fs::rename(
        scene.path("out.vmsnap.data.raw"),
        scene.path("renamed.vmsnap.data.raw"),
    )
    .unwrap();
    scene.open("renamed.vmsnap").unwrap();
    assert!(matches!(scene.refusal("out.vmsnap"), DiskError::Missing { .. }));
}

#[test]
fn the_recorded_name_of_a_copy_never_leads_out_of_the_directory() {
    let mut scene = Scene::copied();
    fs::create_dir(scene.path("sub")).unwrap();
    let absolute = scene.path("out.vmsnap.data.raw");
    for name in [
        absolute.as_path(),
        Path::new("../out.vmsnap.data.raw"),
        Path::new("sub/x"),
        Path::new(".."),
        Path::new(""),
    ] {
        scene.layers.get_mut("data").unwrap()[0].path = name.to_owned();
        assert!(
            matches!(scene.refusal("sub/other.vmsnap"), DiskError::Missing { .. }),
            "{name:?}"
        );
    }
}

#[test]
fn a_copy_of_another_length_or_content_is_refused_and_nothing_is_left() {
    let scene = Scene::copied();
    scene.change("out.vmsnap.data.raw", 100);
    assert!(matches!(scene.refusal("out.vmsnap"), DiskError::Changed { .. }));
    let copy = File::options()
        .write(true)
        .open(scene.path("out.vmsnap.data.raw"));
    copy.unwrap().set_len(LEN * 2).unwrap();
    assert!(
        matches!(scene.refusal("out.vmsnap"), DiskError::Size { expected: LEN, found, .. } if found == 2 * LEN)
    );
    assert_eq!(scene.files(), 1);
}

#[test]
fn each_guest_gets_an_overlay_that_says_to_which_snapshot_its_base_belongs() {
    let mut scene = Scene::frozen();
    let (first, _) = scene.opened();
    let (second, _) = scene.opened();
    assert_eq!(scene.files(), 1, "an overlay has a name");
    assert_eq!((first[0].depth(), second[0].depth()), (3, 3));
    let named = scene.path("own.qcow2");
    scene.given.insert("data".to_owned(), named.clone());
    drop(scene.opened());
    let chain = layers::open_chain(&named, DiskFormat::Qcow2).unwrap();
    let header = chain.layers[0].header.as_ref().unwrap();
    let owners = header.frozen_backing().unwrap().unwrap().owners;
    assert_eq!(
        (owners[0].snapshot.clone(), owners[0].file_id),
        (scene.path("out.vmsnap"), [9; 16])
    );
}

#[test]
fn an_image_that_was_touched_is_compared_and_one_that_was_changed_is_refused_by_name() {
    let scene = Scene::frozen();
    for name in ["images/out.vmsnap.data.qcow2", "images/base.raw"] {
        let bytes = fs::read(scene.path(name)).unwrap();
        fs::write(scene.path(name), &bytes).unwrap();
    }
    drop(scene.opened());
    scene.change("images/base.raw", 4096);
    match scene.refusal("out.vmsnap") {
        DiskError::Changed {
            what: LayerKind::Image,
            path,
            ..
        } => assert_eq!(path, scene.path("images/base.raw")),
        error => panic!("{error}"),
    }
}

#[test]
fn a_change_that_leaves_length_and_time_alone_is_found_when_asked_for() {
    let mut scene = Scene::frozen();
    let path = scene.path("images/base.raw");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    scene.change("images/base.raw", 4096);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_modified(time).unwrap();
    drop(scene.opened());
    scene.check = true;
    assert!(matches!(scene.refusal("out.vmsnap"), DiskError::Changed { .. }));
}

#[test]
fn an_image_that_is_missing_is_named_wherever_it_is_in_the_chain() {
    let scene = Scene::frozen();
    fs::rename(scene.path("images/base.raw"), scene.path("images/moved.raw")).unwrap();
    let refused = scene.refusal("out.vmsnap");
    let causes = std::iter::successors(Some(&refused as &dyn std::error::Error), |error| error.source());
    let text: Vec<_> = causes.map(ToString::to_string).collect();
    assert!(text.join(": ").contains("base.raw"), "{text:?}");
    fs::remove_file(scene.path("images/out.vmsnap.data.qcow2")).unwrap();
    match scene.refusal("out.vmsnap") {
        DiskError::Missing { path, .. } => assert_eq!(path, scene.path("images/out.vmsnap.data.qcow2")),
        error => panic!("{error}"),
    }
}

#[test]
fn a_frozen_image_that_was_put_beside_the_snapshot_is_found() {
    let mut scene = Scene::frozen();
    for name in ["out.vmsnap.data.qcow2", "base.raw"] {
        fs::rename(scene.path(&format!("images/{name}")), scene.path(name)).unwrap();
    }
    scene.layers.get_mut("data").unwrap()[0].path = "/nowhere/out.vmsnap.data.qcow2".into();
    drop(scene.opened());
}

#[test]
fn a_chain_of_another_length_is_refused() {
    let mut scene = Scene::frozen();
    scene.entry.layers.pop();
    assert!(matches!(
        scene.refusal("out.vmsnap"),
        DiskError::Depth {
            expected: 1,
            found: 2,
            ..
        }
    ));
}

#[test]
fn only_internal_snapshots_are_brought_back_in_place() {
    for mut scene in [Scene::copied(), Scene::frozen()] {
        scene.how = DisksRestore::InPlace;
        assert!(matches!(
            scene.refusal("out.vmsnap"),
            DiskError::NotInPlace { .. }
        ));
    }
}

#[test]
fn a_disk_that_was_only_recorded_must_be_given_unless_the_guest_only_reads_it() {
    let mut scene = Scene::with(DisksMode::None, DiskFormat::Raw);
    assert!(matches!(scene.refusal("out.vmsnap"), DiskError::NotKept));
    let disk = File::create_new(scene.path("d.raw")).unwrap();
    disk.set_len(LEN).unwrap();
    scene.given.insert("data".to_owned(), scene.path("d.raw"));
    assert_eq!(scene.opened().1, scene.path("d.raw"));
    scene.given.clear();
    scene.entry.readonly = true;
    let mut scene = scene.recorded(&["d.raw"]);
    assert_eq!(scene.opened().1, scene.path("d.raw"));
    assert_eq!(scene.files(), 1, "a disk used where it is was copied");
    scene.change("d.raw", 0);
    assert!(matches!(scene.refusal("out.vmsnap"), DiskError::Changed { .. }));
    scene.entry.virtual_size_bytes *= 2;
    scene.entry.layers.clear();
    assert!(matches!(scene.refusal("out.vmsnap"), DiskError::Size { .. }));
}

/// A disk that was kept by an internal snapshot of an image that was written to afterwards.
fn with_internal() -> Scene {
    let mut scene = Scene::with(DisksMode::Internal, DiskFormat::Qcow2);
    scene.make_image("d.qcow2", &qcow2::CreateOptions::new(LEN));
    let config = DiskConfig {
        format: DiskFormat::Qcow2,
        ..DiskConfig::new("data", scene.path("d.qcow2"))
    };
    let disk = Disk::open(&config).unwrap();
    let created = disk.create_internal_snapshot("out.vmsnap").unwrap();
    let fingerprint = crate::disk::DiskSource::internal_fingerprint(&disk, &created.id).unwrap();
    drop(disk);
    scene = scene.recorded(&["d.qcow2"]);
    scene.entry.layers = vec![fingerprint];
    scene.entry.internal = Some(InternalEntry {
        id: created.id,
        name: created.name,
    });
    scene
}

#[test]
fn an_internal_snapshot_is_shown_below_an_overlay_or_applied() {
    let mut scene = with_internal();
    let (disks, path) = scene.opened();
    assert!(path.starts_with("/proc/self/fd"));
    assert_eq!(scene.files(), 1, "the overlay has a name");
    drop(disks);
    scene.how = DisksRestore::InPlace;
    let (disks, path) = scene.opened();
    assert_eq!((path, disks[0].depth()), (scene.path("d.qcow2"), 1));
    drop(disks);
    scene.given.insert("data".to_owned(), scene.path("own.qcow2"));
    assert!(matches!(
        scene.refusal("out.vmsnap"),
        DiskError::TakesNoFile { .. }
    ));
}

#[test]
fn an_internal_snapshot_is_found_below_the_overlays_of_later_ones() {
    let mut scene = with_internal();
    let config = DiskConfig {
        format: DiskFormat::Qcow2,
        ..DiskConfig::new("data", scene.path("d.qcow2"))
    };
    let disk = Disk::open(&config).unwrap();
    let owner = vmm::FrozenFor {
        snapshot: scene.path("later.vmsnap"),
        file_id: [3; 16],
    };
    let overlay = disk.prepare_overlay(&scene.path("frozen.qcow2"), &owner).unwrap();
    overlay.switch().unwrap().settle().unwrap();
    drop(disk);
    let (disks, path) = scene.opened();
    assert!(path.starts_with("/proc/self/fd"));
    drop(disks);
    scene.how = DisksRestore::InPlace;
    assert!(matches!(scene.refusal("out.vmsnap"), DiskError::Internal { .. }));
}

#[test]
fn an_internal_snapshot_that_was_deleted_or_made_anew_is_refused() {
    let mut scene = with_internal();
    scene.entry.layers = vec![Fingerprint([7; 32])];
    assert!(matches!(
        scene.refusal("out.vmsnap"),
        DiskError::Changed {
            what: LayerKind::Internal,
            ..
        }
    ));
    scene.entry.internal.as_mut().unwrap().id = "77".to_owned();
    assert!(matches!(scene.refusal("out.vmsnap"), DiskError::Internal { .. }));
}
