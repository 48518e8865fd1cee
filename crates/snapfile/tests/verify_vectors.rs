//! Verifying names the clause that each invalid test vector breaks, and finds nothing in the valid ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapfile::verify::{Depth, VerifyOptions, VerifyReport, verify};
use snapfile::{Error, Snapshot};

fn vectors(kind: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fmt-spec/vectors")
        .join(kind);
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|name| name == "vmsnap"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

/// Verifies a vector, with the base of the incremental ones as its parent where it is that.
fn check(path: &Path) -> Result<VerifyReport, Error> {
    let file = fs::read(path).unwrap();
    let base = vectors("valid")
        .into_iter()
        .find(|path| path.ends_with("parent-base.vmsnap"))
        .unwrap();
    let base = Arc::new(Snapshot::open(base).unwrap());
    let names_base = file.windows(32).any(|window| window == base.root_digest().0);
    let is_child =
        names_base && Snapshot::open(path).is_ok_and(|snapshot| snapshot.header().parent.is_some());
    let options = VerifyOptions {
        depth: Depth::Deep,
        parent: is_child.then_some(base),
        ..VerifyOptions::default()
    };
    verify(&file, &options)
}

#[test]
fn valid_vectors_are_sound() {
    for path in vectors("valid") {
        let report = check(&path).unwrap();
        assert_eq!(report.damage, [], "{}", path.display());
    }
}

#[test]
fn invalid_vectors_are_named_by_the_clause_they_break() {
    for path in vectors("invalid") {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (clause, _) = name.split_once('-').unwrap();
        let found: Vec<&str> = match check(&path) {
            Ok(report) => report
                .damage
                .iter()
                .map(|damage| damage.problem.clause())
                .collect(),
            Err(error) => error.clause().into_iter().collect(),
        };
        assert!(found.contains(&clause), "{name}: found {found:?}");
    }
}
