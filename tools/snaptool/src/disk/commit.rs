//! `snaptool disk commit`: what an overlay holds goes into its backing file.

use anyhow::{Context, ensure};
use qcow2::commit::CommitOptions;
use qcow2::{FrozenOwner, ImageFormat};
use serde_json::json;
use snapfile::Snapshot;

use super::{image, steps};
use crate::Outcome;
use crate::cli::disk::CommitArgs;
use crate::output::{Output, printable, size};
use crate::progress::Progress;

/// Runs the command.
pub fn run(args: &CommitArgs) -> anyhow::Result<Outcome> {
    let path = &args.image.path;
    ensure!(
        image::format(path, args.image.format)? == ImageFormat::Qcow2,
        "{}: a raw file has no backing file",
        path.display()
    );
    let options = CommitOptions {
        force: args.force,
        owner_exists: is_there,
    };
    let report = {
        let progress = Progress::new("commit");
        qcow2::commit::commit(path, &options, &mut steps(&progress))
            .with_context(|| path.display().to_string())?
    };
    let backing = report.backing.display().to_string();
    let mut output = Output::new();
    if args.json {
        output.json(&json!({
            "file": path.display().to_string(),
            "backing_file": backing,
            "written_bytes": report.written_bytes,
            "zeroed_bytes": report.zeroed_bytes,
        }))?;
    } else {
        output.fact(
            &path.display().to_string(),
            format_args!(
                "{} written to {}, {} of it made zeros",
                size(report.written_bytes),
                printable(&backing),
                size(report.zeroed_bytes)
            ),
        )?;
    }
    output.finish()?;
    Ok(Outcome::Good)
}

/// Whether the snapshot file is still there: another file of its name needs nothing, one that cannot be read may.
fn is_there(owner: &FrozenOwner) -> bool {
    match Snapshot::open(&owner.snapshot) {
        Ok(snapshot) => snapshot.header().file_id.0 == owner.file_id,
        Err(_) => owner.snapshot.symlink_metadata().is_ok(),
    }
}
