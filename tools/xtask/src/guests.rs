//! Kernels for the Linux guests of the tests, unpacked below `target/guests` and never installed.
//!
//! A kernel is fetched once; the file `package` beside it says which version it is. Where kernels cannot be fetched
//! (no network, not Debian) nothing fails: the tests that want them say `SKIPPED:` and why.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{apt, shell};

/// Something that is fetched: its directory's name, the package, and how the package is found.
struct Wanted {
    name: &'static str,
    package: &'static str,
    /// Whether the package only names the one that has the content, as `linux-image-amd64` does.
    is_meta: bool,
    newer: bool,
}

const WANTED: &[Wanted] = &[
    kernel("debian-cloud-6.1", "linux-image-cloud-amd64", false),
    kernel("debian-generic-6.1", "linux-image-amd64", false),
    kernel("debian-cloud-6.12", "linux-image-cloud-amd64", true),
    Wanted {
        name: "e2fsck",
        package: "e2fsck-static",
        is_meta: false,
        newer: false,
    },
];

const fn kernel(name: &'static str, package: &'static str, newer: bool) -> Wanted {
    Wanted {
        name,
        package,
        is_meta: true,
        newer,
    }
}

/// Fetches what is not here yet; says on standard error what could not be had.
pub fn fetch() {
    let mut refreshed = false;
    for wanted in WANTED.iter().filter(|wanted| !wanted.is_here()) {
        let mut fetched = wanted.fetch();
        if fetched.is_err() && apt::is_here() && !refreshed {
            refreshed = true;
            fetched = apt::refresh().and_then(|()| wanted.fetch());
        }
        if let Err(error) = fetched {
            eprintln!(
                "setup: no {}: {error:#}; to provide it by hand, unpack such a package into {}",
                wanted.name,
                wanted.directory().display()
            );
        }
    }
}

impl Wanted {
    fn directory(&self) -> PathBuf {
        shell::target_dir().join("guests").join(self.name)
    }

    /// A directory that is there is complete: it appears by one rename.
    fn is_here(&self) -> bool {
        self.directory().is_dir()
    }

    fn fetch(&self) -> Result<()> {
        anyhow::ensure!(apt::is_here(), "this machine has no apt-get");
        let suite = self.newer.then(apt::backports).flatten();
        anyhow::ensure!(
            !self.newer || suite.is_some(),
            "this distribution has no such suite"
        );
        let package = if self.is_meta {
            let mut depends = apt::depends(self.package, suite.as_deref())?.into_iter();
            depends
                .find(|name| name.starts_with("linux-image-"))
                .with_context(|| format!("{} names no kernel", self.package))?
        } else {
            self.package.to_owned()
        };
        let directory = self.directory();
        let parent = directory.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let made = tempfile::tempdir_in(parent).context("cannot make a temporary directory")?;
        let file = apt::unpack(&package, made.path())?;
        std::fs::write(made.path().join("package"), file)?;
        std::fs::rename(made.keep(), &directory)
            .with_context(|| format!("cannot make {}", directory.display()))
    }
}
