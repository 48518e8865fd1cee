//! `snapvm builtin-elf`: writes the built-in guest as an ELF file.

use std::fs;

use anyhow::Context;

use crate::cli::BuiltinElfArgs;
use crate::outcome::Outcome;

/// `snapvm builtin-elf`.
pub fn run(args: &BuiltinElfArgs) -> anyhow::Result<Outcome> {
    let bytes = vmm::builtin::elf(&args.builtin.describe().options(), args.cpus, args.memory)?;
    fs::write(&args.file, bytes).with_context(|| format!("cannot write {}", args.file.display()))?;
    Ok(Outcome::Good)
}
