//! Makes the test vectors of the specification: `cargo run -p snapfile --example vectors [DIRECTORY]`.
//!
//! Vectors are frozen: a file that exists is not made again. The manifest says what a reader finds
//! in each, as stated here and not as read back.

mod invalid;
#[path = "../../tests/common/patch.rs"]
#[allow(dead_code, reason = "the tests need more of it")]
mod patch;
mod valid;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fmt-spec/vectors");
    let directory = std::env::args().nth(1).map_or(default, PathBuf::from);
    let mut manifest = String::from(
        "# What a reader finds in each test vector. Made by `cargo run -p snapfile --example vectors`.\n\
         # `random` and `stream`: the clause that a reader of every section and chunk (digests compared)\n\
         # reports, at random and front to back; `ok` if it has no reason to look there.\n",
    );
    for vector in valid::vectors()? {
        freeze(&directory.join("valid").join(vector.name), &vector.bytes)?;
        write!(manifest, "\n{}", vector.manifest)?;
    }
    for vector in invalid::vectors()? {
        freeze(&directory.join("invalid").join(vector.name), &vector.bytes)?;
        let parent = vector
            .parent
            .map(|parent| format!("parent = \"{parent}\"\n"))
            .unwrap_or_default();
        write!(
            manifest,
            "\n[[invalid]]\nfile = \"{}\"\nkind = \"{}\"\nclause = \"{}\"\nrandom = \"{}\"\nstream = \"{}\"\n{parent}",
            vector.name, vector.kind, vector.clause, vector.random, vector.stream
        )?;
    }
    std::fs::write(directory.join("manifest.toml"), manifest)?;
    Ok(())
}

/// Writes a file unless it exists.
fn freeze(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, bytes)
}
