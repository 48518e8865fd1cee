use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use qcow2::switch::{LiveDisk, LiveName, OverlayPlan, OverlaySwitch};
use qcow2::{
    Access, Cache, CreateOptions, FileStorage, Image, ImageFormat, ImageOptions, Layer, RawImage, layers,
};

use crate::{DISK, assert_clean, assert_reads, disk, fill};

fn plan(live: LiveName, frozen: &Path) -> OverlayPlan {
    OverlayPlan {
        live,
        frozen: frozen.to_owned(),
        owners: None,
        options: ImageOptions::default(),
    }
}

#[test]
fn the_live_name_is_the_live_disk() {
    let directory = tempfile::tempdir().unwrap();
    let (live, frozen) = (
        directory.path().join("d.qcow2"),
        directory.path().join("s.vmsnap.d.qcow2"),
    );
    let (image, mut content) = disk(&live);
    let at_switch = content.clone();
    let switch = OverlaySwitch::prepare(
        LiveDisk::Qcow2(image.clone()),
        plan(LiveName::InPlace(live.clone()), &frozen),
    );
    let switched = switch.unwrap().switch().unwrap();
    let overlay = switched.image;
    assert!(
        image.write_at(&[1; 512], 0).is_err(),
        "the frozen image is not written to"
    );
    fill(&overlay, &mut content, DISK / 4, DISK / 2, 77);
    overlay.flush().unwrap();
    assert_reads(overlay.as_ref(), &content);
    assert_reads(image.as_ref(), &at_switch);
    switched.frozen.settle().unwrap();
    assert_eq!(overlay.path().as_deref(), Some(live.as_path()));
    assert_eq!(
        layers(overlay.as_ref())[1].path.as_deref(),
        Some(frozen.as_path())
    );

    // The frozen file may be read by others while the overlay is in use; the overlay may not.
    let reader = Image::open_chain(&frozen, &ImageOptions::read_only()).unwrap();
    assert_reads(reader.as_ref(), &at_switch);
    assert!(Image::open_chain(&live, &ImageOptions::read_only()).is_err());
    drop((reader, overlay, image, switched.frozen));
    let again = Image::open_chain(&live, &ImageOptions::default()).unwrap();
    assert_reads(again.as_ref(), &content);
    assert_clean(again.storage());
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        2,
        "no temporary file stays"
    );
}

#[test]
fn a_switch_that_cannot_be_leaves_everything_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let (live, frozen) = (
        directory.path().join("d.qcow2"),
        directory.path().join("frozen.qcow2"),
    );
    let (image, mut content) = disk(&live);
    let prepare = || {
        OverlaySwitch::prepare(
            LiveDisk::Qcow2(image.clone()),
            plan(LiveName::InPlace(live.clone()), &frozen),
        )
    };
    drop(prepare().unwrap());
    let prepared = prepare().unwrap();
    fs::write(&frozen, b"somebody else's").unwrap();
    assert!(prepared.switch().is_err());
    assert!(prepare().is_err());
    fill(&image, &mut content, 0, 4096, 9);
    assert_reads(image.as_ref(), &content);
    assert_eq!(fs::read(&frozen).unwrap(), b"somebody else's");
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        2,
        "no temporary file stays"
    );
}

#[test]
fn a_raw_disk_keeps_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let (raw, name) = (
        directory.path().join("d.raw"),
        directory.path().join("d.raw.qcow2"),
    );
    fs::write(&raw, vec![5; DISK]).unwrap();
    let live = Arc::new(RawImage::open(&raw, Access::ReadWrite, Cache::Writeback).unwrap());
    let plan = plan(LiveName::Beside(name.clone()), &raw);
    let switched = OverlaySwitch::prepare(LiveDisk::Raw(live.clone()), plan)
        .unwrap()
        .switch()
        .unwrap();
    switched.image.write_at(&[6; 1000], 512).unwrap();
    switched.image.flush().unwrap();
    assert!(live.write_at(&[7], 0).is_err());
    assert_eq!(switched.frozen.format(), ImageFormat::Raw);
    drop((switched, live));
    let mut content = vec![5; DISK];
    content[512..1512].fill(6);
    assert_reads(
        Image::open_chain(&name, &ImageOptions::read_only())
            .unwrap()
            .as_ref(),
        &content,
    );
    assert!(fs::read(&raw).unwrap().iter().all(|byte| *byte == 5));
}

#[test]
fn a_disk_without_a_name_is_frozen_under_one() {
    let directory = tempfile::tempdir().unwrap();
    let frozen = directory.path().join("frozen.qcow2");
    let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
    let file: File = rustix::fs::open(
        directory.path(),
        flags,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .unwrap()
    .into();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = FileStorage::open(Path::new(&path), Access::ReadWrite, Cache::Writeback).unwrap();
    qcow2::create(&file, &CreateOptions::new(DISK as u64)).unwrap();
    let image = Arc::new(Image::open_file(Arc::new(file), None, None, &ImageOptions::default()).unwrap());
    let mut content = vec![0; DISK];
    fill(&image, &mut content, 0, DISK / 2, 1);
    let at_switch = content.clone();
    let plan = plan(LiveName::Nameless, &frozen);
    let switched = OverlaySwitch::prepare(LiveDisk::Qcow2(image), plan)
        .unwrap()
        .switch()
        .unwrap();
    fill(&switched.image, &mut content, 1000, DISK / 2, 3);
    switched.image.flush().unwrap();
    assert_reads(switched.image.as_ref(), &content);
    assert_eq!(switched.image.path(), None);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    let reader = Image::open_chain(&frozen, &ImageOptions::read_only()).unwrap();
    assert_reads(reader.as_ref(), &at_switch);
    assert_clean(reader.storage());
}

#[test]
fn a_frozen_name_may_be_in_another_directory() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = directory.path().join("snapshots");
    fs::create_dir(&elsewhere).unwrap();
    let (live, frozen) = (directory.path().join("d.qcow2"), elsewhere.join("frozen.qcow2"));
    let (image, mut content) = disk(&live);
    let plan = plan(LiveName::InPlace(live.clone()), &frozen);
    let switched = OverlaySwitch::prepare(LiveDisk::Qcow2(image), plan)
        .unwrap()
        .switch()
        .unwrap();
    fill(&switched.image, &mut content, 0, 5000, 3);
    drop(switched);
    assert_reads(
        Image::open_chain(&live, &ImageOptions::read_only())
            .unwrap()
            .as_ref(),
        &content,
    );
}

#[test]
fn switches_may_follow_one_another_before_any_is_settled() {
    let directory = tempfile::tempdir().unwrap();
    let live = directory.path().join("d.qcow2");
    let (mut image, mut content) = disk(&live);
    let mut frozen = Vec::new();
    for number in 0..4u8 {
        let plan = plan(
            LiveName::InPlace(live.clone()),
            &directory.path().join(format!("frozen{number}.qcow2")),
        );
        let switched = OverlaySwitch::prepare(LiveDisk::Qcow2(image), plan)
            .unwrap()
            .switch()
            .unwrap();
        frozen.push((switched.frozen, content.clone()));
        image = switched.image;
        fill(
            &image,
            &mut content,
            usize::from(number) * 100_000,
            70_000,
            60 + number,
        );
    }
    image.flush().unwrap();
    for (layer, content) in &frozen {
        assert_reads(layer.layer().as_ref(), content);
        layer.settle().unwrap();
        assert_reads(
            Image::open_chain(layer.path(), &ImageOptions::read_only())
                .unwrap()
                .as_ref(),
            content,
        );
    }
    assert_reads(image.as_ref(), &content);
}
