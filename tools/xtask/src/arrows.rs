//! The arrows between the workspace's crates, held against the table in `docs/architecture.md`.
//!
//! The page is the table: people and this check read the same lines. A missing row, a row without a crate and an
//! arrow that is not in the table all fail.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell::{self, SaidNo};

const TABLE: &str = "docs/architecture.md";

/// Which crates each crate depends on, or may depend on.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// Compares the workspace with the table.
pub fn run() -> Result<()> {
    let page =
        std::fs::read_to_string(shell::root().join(TABLE)).with_context(|| format!("cannot read {TABLE}"))?;
    let allowed = allowed(&page)?;
    let metadata = shell::capture(shell::cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let found = found(&serde_json::from_str(&metadata).context("output of cargo metadata")?)?;
    let wrong = violations(&allowed, &found);
    if !wrong.is_empty() {
        bail!(SaidNo(format!(
            "crate arrows: {} (the table is in {TABLE})",
            wrong.join("; ")
        )));
    }
    let count: usize = found.values().map(BTreeSet::len).sum();
    eprintln!(
        "deps: {count} arrows between {} crates, all of them in {TABLE}",
        found.len()
    );
    Ok(())
}

/// Reads the table between the two `arrows` markers.
fn allowed(page: &str) -> Result<Arrows> {
    let (_, rest) = page
        .split_once("<!-- arrows -->")
        .context("docs/architecture.md has no arrows table")?;
    let (table, _) = rest
        .split_once("<!-- /arrows -->")
        .context("the arrows table has no end")?;
    let mut arrows = Arrows::new();
    for row in table.lines().filter(|row| row.starts_with("| `")) {
        let names: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        let (from, to) = names.split_first().context("an empty row in the arrows table")?;
        arrows.insert(
            (*from).to_owned(),
            to.iter().map(|name| (*name).to_owned()).collect(),
        );
    }
    Ok(arrows)
}

/// Reads the arrows of every kind (also of tests and build scripts) out of `cargo metadata`.
fn found(metadata: &Value) -> Result<Arrows> {
    let mut arrows = Arrows::new();
    for package in metadata["packages"]
        .as_array()
        .context("cargo metadata names no packages")?
    {
        let from = package["name"].as_str().context("a package without a name")?;
        let dependencies = package["dependencies"]
            .as_array()
            .context("a package without dependencies")?;
        let inside = dependencies
            .iter()
            .filter(|dependency| dependency["path"].is_string());
        let to = inside
            .filter_map(|dependency| dependency["name"].as_str())
            .map(str::to_owned);
        arrows.insert(from.to_owned(), to.filter(|to| to != from).collect());
    }
    Ok(arrows)
}

/// Says in words what of `found` is not `allowed`, and which rows have no crate.
fn violations(allowed: &Arrows, found: &Arrows) -> Vec<String> {
    let mut wrong = Vec::new();
    for (from, to) in found {
        match allowed.get(from) {
            None => wrong.push(format!("{from} has no row")),
            Some(may) => wrong.extend(
                to.difference(may)
                    .map(|to| format!("{from} -> {to} is not allowed")),
            ),
        }
    }
    wrong.extend(
        allowed
            .keys()
            .filter(|from| !found.contains_key(*from))
            .map(|from| format!("{from} does not exist")),
    );
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str =
        "<!-- arrows -->\n| package | may depend on |\n|---|---|\n| `a` | |\n| `b` | `a` |\n<!-- /arrows -->";

    fn check(from: &str, to: &str) -> Vec<String> {
        let metadata = serde_json::json!({ "packages": [
            { "name": "a", "dependencies": [] },
            { "name": "b", "dependencies": [] },
            { "name": from, "dependencies": [{ "name": to, "path": "/p" }, { "name": "serde" }] },
        ] });
        violations(
            &allowed(PAGE).expect("a table"),
            &found(&metadata).expect("packages"),
        )
    }

    #[test]
    fn allows_what_the_table_allows() {
        assert!(check("b", "a").is_empty());
    }

    #[test]
    fn refuses_an_arrow_that_points_up() {
        assert_eq!(check("a", "b"), ["a -> b is not allowed"]);
    }

    #[test]
    fn refuses_a_crate_without_a_row() {
        assert_eq!(check("c", "a"), ["c has no row"]);
    }

    #[test]
    fn refuses_a_row_without_a_crate() {
        let metadata = serde_json::json!({ "packages": [{ "name": "a", "dependencies": [] }] });
        let wrong = violations(
            &allowed(PAGE).expect("a table"),
            &found(&metadata).expect("packages"),
        );
        assert_eq!(wrong, ["b does not exist"]);
    }
}
