use std::fs;
use std::os::unix::fs::FileExt;

use tempfile::TempDir;
use vmm::DiskFormat;

use super::*;
use crate::disk::Fingerprint;

const LEN: u64 = 1 << 20;

/// A snapshot `out.vmsnap` of which only the copy of its disk `data` is there.
struct Scene {
    directory: TempDir,
    entry: DiskEntry,
    copies: BTreeMap<String, String>,
    given: BTreeMap<String, PathBuf>,
}

impl Scene {
    fn set() -> Self {
        let directory = TempDir::new().unwrap();
        let copy = File::create_new(directory.path().join("out.vmsnap.data.raw")).unwrap();
        copy.set_len(LEN).unwrap();
        copy.write_all_at(b"content", 100).unwrap();
        let content = fs::read(directory.path().join("out.vmsnap.data.raw")).unwrap();
        Self {
            directory,
            entry: DiskEntry {
                id: "data".to_owned(),
                format: "raw".to_owned(),
                virtual_size_bytes: LEN,
                readonly: false,
                fingerprint: Some(Fingerprint(*blake3::hash(&content).as_bytes())),
            },
            copies: [("data".to_owned(), "out.vmsnap.data.raw".to_owned())].into(),
            given: BTreeMap::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Prepares the disk for a restore of the snapshot of that name; returns where it is.
    fn prepare(&self, snapshot: &str) -> Result<(WorkingDisks, PathBuf)> {
        let mut disks = [DiskConfig {
            id: "data".to_owned(),
            file: self.path("d.raw"),
            format: DiskFormat::Raw,
            readonly: self.entry.readonly,
        }];
        let places = Places {
            snapshot: &self.path(snapshot),
            copies: &self.copies,
            given: &self.given,
        };
        let working = prepare(std::slice::from_ref(&self.entry), &mut disks, &places)?;
        let [disk] = disks;
        Ok((working, disk.file))
    }

    fn refusal(&self, snapshot: &str) -> DiskError {
        match self.prepare(snapshot).unwrap_err() {
            Error::Disk { id, source } if id == "data" => source,
            error => panic!("{error}"),
        }
    }

    fn files(&self) -> usize {
        fs::read_dir(self.directory.path()).unwrap().count()
    }
}

#[test]
fn the_guest_works_on_a_copy_of_the_copy_that_never_has_a_name() {
    let scene = Scene::set();
    let (working, path) = scene.prepare("out.vmsnap").unwrap();
    assert_eq!(scene.files(), 1, "the working copy has a name");
    let opened = File::options().write(true).read(true).open(&path).unwrap();
    working.opened();
    opened.write_all_at(b"changed", 100).unwrap();
    scene.prepare("out.vmsnap").unwrap();
}

#[test]
fn a_working_copy_that_was_asked_for_stays_unless_the_restore_fails() {
    let mut scene = Scene::set();
    let target = scene.path("mine.raw");
    scene.given.insert("data".to_owned(), target.clone());
    let (working, path) = scene.prepare("out.vmsnap").unwrap();
    assert_eq!(path, target);
    drop(working);
    assert!(!target.exists(), "the restore failed, and its copy was left");
    scene.prepare("out.vmsnap").unwrap().0.opened();
    assert!(target.exists());
    assert!(matches!(scene.refusal("out.vmsnap"), DiskError::Exists { .. }));
    assert!(target.exists(), "a refusal removed a file that was there before");
}

#[test]
fn a_copy_is_found_when_the_snapshot_was_renamed_alone_or_with_it() {
    let scene = Scene::set();
    scene.prepare("renamed.vmsnap").unwrap();
    fs::rename(
        scene.path("out.vmsnap.data.raw"),
        scene.path("renamed.vmsnap.data.raw"),
    )
    .unwrap();
    scene.prepare("renamed.vmsnap").unwrap();
    assert!(matches!(scene.refusal("out.vmsnap"), DiskError::Missing { .. }));
}

#[test]
fn a_recorded_name_never_leads_out_of_the_directory() {
    let mut scene = Scene::set();
    fs::create_dir(scene.path("sub")).unwrap();
    let absolute = scene.path("out.vmsnap.data.raw").to_str().unwrap().to_owned();
    for name in [absolute.as_str(), "../out.vmsnap.data.raw", "sub/x", "..", ""] {
        scene.copies.insert("data".to_owned(), name.to_owned());
        assert!(
            matches!(scene.refusal("sub/other.vmsnap"), DiskError::Missing { .. }),
            "{name}"
        );
    }
}

#[test]
fn a_file_of_another_length_or_content_is_refused_and_nothing_is_left() {
    let scene = Scene::set();
    let copy = File::options()
        .write(true)
        .open(scene.path("out.vmsnap.data.raw"))
        .unwrap();
    copy.write_all_at(b"C", 100).unwrap();
    assert!(matches!(scene.refusal("out.vmsnap"), DiskError::Changed { .. }));
    copy.set_len(LEN * 2).unwrap();
    assert!(
        matches!(scene.refusal("out.vmsnap"), DiskError::Size { expected: LEN, found, .. } if found == 2 * LEN)
    );
    assert_eq!(scene.files(), 1);
}

#[test]
fn a_disk_that_was_not_copied_must_be_given_unless_the_guest_only_reads_it() {
    let mut scene = Scene::set();
    scene.entry.fingerprint = None;
    assert!(matches!(scene.refusal("out.vmsnap"), DiskError::NotCopied));
    fs::copy(scene.path("out.vmsnap.data.raw"), scene.path("d.raw")).unwrap();
    scene.given.insert("data".to_owned(), scene.path("d.raw"));
    assert_eq!(scene.prepare("out.vmsnap").unwrap().1, scene.path("d.raw"));
    scene.given.clear();
    scene.entry.readonly = true;
    assert_eq!(scene.prepare("out.vmsnap").unwrap().1, scene.path("d.raw"));
    assert_eq!(scene.files(), 2, "a disk used where it is was copied");
}
