//! Regenerates the test vectors and holds them against the frozen ones in `fmt-spec/vectors`.
//!
//! A frozen file that comes out otherwise, or not at all, says no: files of a released format stay readable, and
//! written the same, for ever. A file that is not there yet is added.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell::{self, SaidNo};

/// The example of `snapfile` that writes the vectors.
const GENERATOR: &str = "vectors";

const FROZEN: &str = "fmt-spec/vectors";

/// Regenerates and compares.
pub fn run() -> Result<()> {
    let made = tempfile::tempdir().context("cannot make a temporary directory")?;
    let what = [
        "run",
        "--quiet",
        "--locked",
        "--package",
        "snapfile",
        "--example",
        GENERATOR,
        "--",
    ];
    shell::run(shell::cargo().args(what).arg(made.path()))?;
    compare(made.path(), &shell::root().join(FROZEN))
}

fn compare(made: &Path, frozen: &Path) -> Result<()> {
    let (new, old) = (files(made)?, files(frozen)?);
    let mut wrong: Vec<String> = old
        .difference(&new)
        .map(|name| format!("{} is not made any more", name.display()))
        .collect();
    for name in &new {
        let bytes = read(&made.join(name))?;
        if !old.contains(name) {
            add(&frozen.join(name), &bytes)?;
            eprintln!("vectors: new: {}", name.display());
        } else if bytes != read(&frozen.join(name))? {
            wrong.push(format!("{} has changed", name.display()));
        }
    }
    if !wrong.is_empty() {
        bail!(SaidNo(format!("vectors: {}", wrong.join("; "))));
    }
    eprintln!(
        "vectors: {} files, those that were frozen are unchanged",
        new.len()
    );
    Ok(())
}

/// Every file below `directory`, by its path from there.
fn files(directory: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).with_context(|| format!("cannot list {}", next.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if let Ok(name) = entry.path().strip_prefix(directory) {
                found.insert(name.to_owned());
            }
        }
    }
    Ok(found)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn add(file: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    std::fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            add(&directory.path().join(name), text.as_bytes()).expect("a file");
        }
        directory
    }

    #[test]
    fn adds_a_vector_that_is_new() {
        let (made, frozen) = (
            directory(&[("valid/a", "1"), ("valid/b", "2")]),
            directory(&[("valid/a", "1")]),
        );
        compare(made.path(), frozen.path()).expect("nothing frozen has changed");
        assert_eq!(read(&frozen.path().join("valid/b")).expect("it was added"), b"2");
    }

    #[test]
    fn refuses_a_frozen_vector_that_changed() {
        let (made, frozen) = (directory(&[("a", "1")]), directory(&[("a", "2")]));
        assert!(
            compare(made.path(), frozen.path())
                .expect_err("a changed")
                .is::<SaidNo>()
        );
        assert_eq!(read(&frozen.path().join("a")).expect("it is still there"), b"2");
    }

    #[test]
    fn refuses_a_frozen_vector_that_vanished() {
        let (made, frozen) = (directory(&[]), directory(&[("a", "1")]));
        assert!(
            compare(made.path(), frozen.path())
                .expect_err("a is gone")
                .is::<SaidNo>()
        );
    }
}
