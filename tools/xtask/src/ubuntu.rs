//! Packages of Ubuntu on a machine of Debian, for a kernel of another distribution.
//!
//! apt gets an own list of sources and own directories, so that nothing of this reaches the machine's configuration.
//! Ubuntu's keys are a package of Debian, so its archive is as well checked as Debian's own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::{apt, shell};

const ARCHIVE: &str = "http://archive.ubuntu.com/ubuntu noble main";
const KEYS: &str = "usr/share/keyrings/ubuntu-archive-keyring.gpg";

/// Makes apt ready for Ubuntu's archive, all of it in `directory`; returns the options with which apt asks there.
pub fn options(directory: &Path) -> Result<Vec<String>> {
    apt::unpack("ubuntu-keyring", &[], directory)?;
    for place in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(directory.join(place)).with_context(|| format!("cannot make {place}"))?;
    }
    let place = directory.display();
    let sources = format!("deb [signed-by={place}/{KEYS}] {ARCHIVE}\n");
    fs::write(directory.join("sources.list"), sources).context("cannot write a list of sources")?;
    let options = [
        format!("Dir::Etc::sourcelist={place}/sources.list"),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State::lists={place}/lists"),
        format!("Dir::Cache={place}/cache"),
        apt::OWN_USER.to_owned(),
    ];
    let options: Vec<String> = options
        .into_iter()
        .flat_map(|option| ["--option".to_owned(), option])
        .collect();
    shell::run(
        shell::command("apt-get")
            .args(&options)
            .args(["--quiet", "update"]),
    )?;
    Ok(options)
}
