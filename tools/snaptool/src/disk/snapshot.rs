//! `snaptool disk snapshot`: internal snapshots.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use qcow2::{Access, Metadata, SnapshotEntry, SnapshotInfo, snapshots};
use serde_json::{Value as Json, json};

use super::image::{self, Sharing};
use crate::Outcome;
use crate::cli::disk::{ImageArgs, SnapshotCommand};
use crate::output::{Output, printable, size};

/// Runs the command.
pub fn run(command: &SnapshotCommand) -> anyhow::Result<Outcome> {
    match command {
        SnapshotCommand::List {
            image,
            force_share,
            fingerprint,
            json,
        } => list(image, Sharing::forced(*force_share), *fingerprint, *json),
        SnapshotCommand::Create { name, image, json } => create(name, image, *json),
        SnapshotCommand::Apply { snapshot, image } => {
            let done = format!("as of snapshot {}", printable(snapshot));
            change(image, &done, |metadata| snapshots::apply(metadata, snapshot))
        }
        SnapshotCommand::Delete { snapshot, image } => {
            let done = format!("without snapshot {}", printable(snapshot));
            change(image, &done, |metadata| snapshots::delete(metadata, snapshot))
        }
    }
}

fn list(
    image: &ImageArgs,
    sharing: Sharing,
    with_fingerprint: bool,
    as_json: bool,
) -> anyhow::Result<Outcome> {
    let metadata = image::open_metadata(image, Access::ReadOnly, sharing)?;
    let infos = qcow2::info(&metadata)?.snapshots;
    let mut output = Output::new();
    let mut objects = Vec::new();
    for info in &infos {
        let fingerprint = match with_fingerprint {
            true => Some(fingerprint(&metadata, &info.id).with_context(|| image.path.display().to_string())?),
            false => None,
        };
        if as_json {
            objects.push(to_json(info, fingerprint.as_deref())?);
            continue;
        }
        let fingerprint = fingerprint.map_or(String::new(), |text| format!(", fingerprint {text}"));
        output.fact("snapshot", format_args!("{}{fingerprint}", describe(info)))?;
    }
    if as_json {
        output.json(&json!({ "file": image.path.display().to_string(), "snapshots": objects }))?;
    } else if infos.is_empty() {
        output.fact("snapshots", "none")?;
    }
    output.finish()?;
    Ok(Outcome::Good)
}

fn create(name: &str, image: &ImageArgs, as_json: bool) -> anyhow::Result<Outcome> {
    let mut metadata = image::open_metadata(image, Access::ReadWrite, Sharing::Locked)?;
    settled(image, snapshots::create(&mut metadata, name, SystemTime::now()))?;
    // A new snapshot is the last one of the table.
    let infos = qcow2::info(&metadata)?.snapshots;
    let info = infos.last().context("the new snapshot is not in the table")?;
    let mut output = Output::new();
    if as_json {
        output.json(&to_json(info, None)?)?;
    } else {
        output.fact("snapshot", describe(info))?;
    }
    output.finish()?;
    Ok(Outcome::Good)
}

/// Changes an image and says what was done.
fn change(
    image: &ImageArgs,
    done: &str,
    work: impl FnOnce(&mut Metadata) -> qcow2::Result<SnapshotEntry>,
) -> anyhow::Result<Outcome> {
    let mut metadata = image::open_metadata(image, Access::ReadWrite, Sharing::Locked)?;
    settled(image, work(&mut metadata))?;
    let mut output = Output::new();
    output.fact(&image.path.display().to_string(), done)?;
    output.finish()?;
    Ok(Outcome::Good)
}

/// What was done stays done where only the clean-up behind it failed; the user is told how to catch up.
fn settled<T>(image: &ImageArgs, result: qcow2::Result<T>) -> anyhow::Result<()> {
    let path = image.path.display();
    match result {
        Ok(_) => Ok(()),
        Err(error @ qcow2::Error::Leaked { .. }) => {
            let error = anyhow::Error::from(error);
            anstream::eprintln!(
                "snaptool: {path}: {error:#}; `snaptool disk repair --what leaks` frees them"
            );
            Ok(())
        }
        Err(error) => Err(error).with_context(|| path.to_string()),
    }
}

/// `1, before-upgrade, 2026-01-31T12:00:00Z, 20.0 GiB`
pub fn describe(info: &SnapshotInfo) -> String {
    let when = UNIX_EPOCH + Duration::new(info.seconds.into(), 0);
    let when = humantime::format_rfc3339_seconds(when);
    let mut text = format!("{}, {}, {when}", printable(&info.id), printable(&info.name));
    if let Some(bytes) = info.virtual_size_bytes {
        text += &format!(", {}", size(bytes));
    }
    if info.vm_state_bytes > 0 {
        text += &format!(", with {} of machine state", size(info.vm_state_bytes));
    }
    text
}

fn to_json(info: &SnapshotInfo, fingerprint: Option<&str>) -> anyhow::Result<Json> {
    let mut object = serde_json::to_value(info)?;
    if let (Json::Object(fields), Some(text)) = (&mut object, fingerprint) {
        fields.insert("fingerprint".to_owned(), text.into());
    }
    Ok(object)
}

/// The fingerprint by which a machine's snapshot knows an internal one (sections 4.5).
pub fn fingerprint(metadata: &Metadata, id: &str) -> anyhow::Result<String> {
    let bytes = snapshots::fingerprint(metadata, id)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
