//! `snaptool restore`: memory and vmstate as plain files.
//!
//! All outputs are made in one pass: every chunk is decoded once and goes to each file that wants
//! memory. A file appears under its name only when all outputs are complete.

mod core_file;
mod memory;
mod parallel;
mod target;

use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::json;
use snapfile::{SectionKind, Snapshot};

use crate::Outcome;
use crate::cli::RestoreArgs;
use crate::interrupt;
use crate::open;
use crate::output::{Output, size};
use crate::progress::Progress;
use crate::vmstate;
use core_file::Contents;
use target::Target;

/// A file that was written, as `--json` shows it.
#[derive(Serialize)]
struct Written {
    /// `memory`, `elf_core` or `vmstate`.
    what: &'static str,
    file: String,
    /// Length of the file; holes count.
    file_bytes: u64,
    /// What is in an ELF core.
    #[serde(skip_serializing_if = "Option::is_none")]
    core: Option<Contents>,
}

/// Runs the command.
pub fn run(args: &RestoreArgs) -> anyhow::Result<Outcome> {
    refuse_overwriting_inputs(args)?;
    interrupt::install()?;
    let snapshot = open::open_with_parents(&args.file, &args.parents)?;
    let memory = args
        .memory
        .as_deref()
        .map(|path| target::raw_memory(path, &snapshot))
        .transpose()?;
    let core = args
        .elf_core
        .as_deref()
        .map(|path| core_file::create(path, &snapshot, args.addresses, args.program))
        .transpose()
        .with_context(|| args.file.display().to_string())?;
    let (core, contents) = core.unzip();
    let vmstate = match args.vmstate.as_deref() {
        Some(path) => Some(vmstate_text(&snapshot).with_context(|| path.display().to_string())?),
        None => None,
    };

    let targets: Vec<&Target> = memory.iter().chain(&core).collect();
    if !targets.is_empty() {
        let progress = Progress::new("restore");
        memory::extract(&snapshot, &targets, &progress).with_context(|| args.file.display().to_string())?;
    }
    let mut written = Vec::new();
    for (what, target, core) in [("memory", memory, None), ("elf_core", core, contents)] {
        if let Some(target) = target {
            written.push(Written {
                what,
                file: target.path().display().to_string(),
                file_bytes: target.commit()?,
                core,
            });
        }
    }
    let mut output = Output::new();
    if let (Some(path), Some(text)) = (args.vmstate.as_deref(), vmstate) {
        if path == Path::new("-") {
            output.line(&text)?;
        } else {
            let file_bytes = target::write_text(path, &text)?;
            written.push(Written {
                what: "vmstate",
                file: path.display().to_string(),
                file_bytes,
                core: None,
            });
        }
    }
    report(output, args, &written)?;
    Ok(Outcome::Good)
}

/// The vmstate as JSON, with what is needed to know where it is from.
fn vmstate_text(snapshot: &Snapshot) -> anyhow::Result<String> {
    let document = json!({
        "root_digest": snapshot.root_digest(),
        "memory_map": snapshot.memory_map().regions(),
        "parts": vmstate::sections_json(snapshot, SectionKind::VmState, "")?,
        "platform": vmstate::sections_json(snapshot, SectionKind::Platform, "")?,
        "disks": vmstate::sections_json(snapshot, SectionKind::DiskTable, "")?,
    });
    Ok(serde_json::to_string_pretty(&document)?)
}

fn report(mut output: Output, args: &RestoreArgs, written: &[Written]) -> anyhow::Result<()> {
    let stdout_is_taken = args.vmstate.as_deref() == Some(Path::new("-"));
    if args.json && !stdout_is_taken {
        output.json(&json!({ "file": args.file.display().to_string(), "written": written }))?;
    } else if !stdout_is_taken {
        for item in written {
            let key = item.what.replace('_', " ");
            output.fact(&key, format_args!("{} ({})", item.file, size(item.file_bytes)))?;
            if let Some(core) = &item.core {
                core.print(&mut output)?;
            }
        }
    }
    Ok(output.finish()?)
}

/// An output must not replace the snapshot it is made from, nor another output.
fn refuse_overwriting_inputs(args: &RestoreArgs) -> anyhow::Result<()> {
    let inputs = std::iter::once(&args.file).chain(&args.parents.files);
    let outputs: Vec<_> = [&args.memory, &args.elf_core, &args.vmstate]
        .into_iter()
        .flatten()
        .collect();
    for output in &outputs {
        if inputs.clone().any(|input| same_file(input, output)) {
            bail!("{}: is the snapshot itself", output.display());
        }
        if outputs.iter().filter(|other| other == &output).count() > 1 {
            bail!("{}: named for two outputs", output.display());
        }
    }
    Ok(())
}

fn same_file(left: &Path, right: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
    identity(left).is_some_and(|left| Some(left) == identity(right))
}
