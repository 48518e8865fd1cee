//! Kernels for the Linux guests of the tests, unpacked below `target/guests` and never installed.
//!
//! A kernel is fetched once; the file `package` beside it says which version it is. Where kernels cannot be fetched
//! (no network, not Debian) nothing fails: the tests that want them say `SKIPPED:` and why.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{apt, shell, ubuntu};

/// Something that is fetched: its directory's name, the package, and where the package is.
struct Wanted {
    name: &'static str,
    package: &'static str,
    source: Source,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The distribution's own suites.
    Own,
    /// Debian's backports.
    Newer,
    /// Another distribution's archive.
    Ubuntu,
}

const WANTED: &[Wanted] = &[
    wanted("debian-cloud-6.1", "linux-image-cloud-amd64", Source::Own),
    wanted("debian-generic-6.1", "linux-image-amd64", Source::Own),
    wanted("debian-cloud-6.12", "linux-image-cloud-amd64", Source::Newer),
    wanted("ubuntu-6.8", "linux-image-virtual", Source::Ubuntu),
    wanted("e2fsck", "e2fsck-static", Source::Own),
];

const fn wanted(name: &'static str, package: &'static str, source: Source) -> Wanted {
    Wanted {
        name,
        package,
        source,
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
        ensure!(apt::is_here(), "this machine has no apt-get");
        let directory = self.directory();
        let parent = directory.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let archive = tempfile::tempdir_in(parent).context("cannot make a temporary directory")?;
        let options = match self.source {
            Source::Own => Vec::new(),
            Source::Newer => {
                apt::of_suite(&apt::backports().context("this distribution has no such suite")?)?
            }
            Source::Ubuntu => ubuntu::options(archive.path())?,
        };
        let made = tempfile::tempdir_in(parent).context("cannot make a temporary directory")?;
        let mut file = String::new();
        for package in self.packages(&options)? {
            let unpacked = apt::unpack(&package, &options, made.path())?;
            if file.is_empty() {
                file = unpacked;
            }
        }
        std::fs::write(made.path().join("package"), file)?;
        std::fs::rename(made.keep(), &directory)
            .with_context(|| format!("cannot make {}", directory.display()))
    }

    /// The packages with the content: what a package that only names a kernel depends on, and the modules if they
    /// are apart.
    fn packages(&self, options: &[String]) -> Result<Vec<String>> {
        if !self.package.starts_with("linux-image-") {
            return Ok(vec![self.package.to_owned()]);
        }
        let beginning = |names: Vec<String>, prefix| {
            let mut names = names.into_iter();
            names.find(|name: &String| name.starts_with(prefix))
        };
        let image = beginning(apt::depends(self.package, options)?, "linux-image-")
            .with_context(|| format!("{} names no kernel", self.package))?;
        let modules = beginning(apt::depends(&image, options)?, "linux-modules-");
        Ok(std::iter::once(image).chain(modules).collect())
    }
}
