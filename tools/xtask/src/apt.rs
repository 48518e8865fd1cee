//! Debian's package manager: installing as root, downloading as anybody, and the suite with newer versions.
//!
//! Debian 12 has a QEMU and kernels that are too old for some of the tests; its backports suite has newer ones. The
//! suite is added to the configuration when something from it is wanted; apt takes nothing else from it by itself.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Where the suite is written down.
const SOURCES: &str = "/etc/apt/sources.list.d/vmsnap-backports.sources";

/// As root apt would download as somebody else, who may not write into our directories.
pub const OWN_USER: &str = "APT::Sandbox::User=root";

/// Whether this machine has apt.
pub fn is_here() -> bool {
    shell::find("apt-get").is_some()
}

/// Name of the suite with newer versions; `None` where the distribution's own are new enough.
pub fn backports() -> Option<String> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        let mut lines = release.lines();
        lines
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    let old = field("ID")? == "debian" && field("VERSION_ID")? == "12";
    old.then(|| field("VERSION_CODENAME"))
        .flatten()
        .map(|name| format!("{name}-backports"))
}

/// Installs packages, as root or through sudo, from `suite` if one is named; refreshes the lists if that is needed.
pub fn install(packages: &[&str], suite: Option<&str>) -> Result<()> {
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    if let Some(suite) = suite {
        add_suite(suite)?;
        arguments.extend(["--target-release", suite]);
    }
    arguments.extend(packages);
    let line = format!("as root, run: apt-get {}", arguments.join(" "));
    if apt_get(&arguments).with_context(|| line.clone())?.is_ok() {
        return Ok(());
    }
    refresh().and_then(|()| apt_get(&arguments)?).context(line)
}

/// Refreshes the package lists.
pub fn refresh() -> Result<()> {
    eprintln!("setup: refreshing the package lists");
    apt_get(&["update"])?
}

/// The options with which apt asks for packages of `suite`, which is added if need be.
pub fn of_suite(suite: &str) -> Result<Vec<String>> {
    add_suite(suite)?;
    Ok(vec!["--target-release".to_owned(), suite.to_owned()])
}

/// The packages that a package depends on; apt is asked with `options`.
pub fn depends(package: &str, options: &[String]) -> Result<Vec<String>> {
    let mut command = shell::command("apt-cache");
    command.args(options);
    let described = shell::capture(command.args(["show", "--no-all-versions", package]))?;
    let depends = described
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))
        .with_context(|| format!("{package} depends on nothing"))?;
    let names = depends.split(", ").filter_map(|one| one.split(' ').next());
    Ok(names.map(str::to_owned).collect())
}

/// Downloads a package and unpacks it into `directory`; returns the name of the package's file.
pub fn unpack(package: &str, options: &[String], directory: &Path) -> Result<String> {
    let made = tempfile::tempdir().context("cannot make a temporary directory")?;
    let mut download = shell::command("apt-get");
    download.args(["--quiet", "--option", OWN_USER]).args(options);
    download.args(["download", package]);
    shell::run(download.current_dir(made.path()))?;
    let file = std::fs::read_dir(made.path())?
        .next()
        .with_context(|| format!("{package} was not downloaded"))??;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    shell::run(
        shell::command("dpkg-deb")
            .arg("--extract")
            .arg(file.path())
            .arg(directory),
    )?;
    Ok(file.file_name().to_string_lossy().into_owned())
}

/// Adds a suite of the mirror that is configured already, unless it is there.
fn add_suite(suite: &str) -> Result<()> {
    let mut list = shell::command("apt-get");
    list.args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
    ]);
    let listed = shell::capture(&mut list)?;
    let mut targets = listed.lines().filter_map(|line| line.split_once(' '));
    if targets.clone().any(|(_, release)| release == suite) {
        return Ok(());
    }
    let codename = suite.trim_end_matches("-backports");
    let (mirror, _) = targets
        .find(|(_, release)| *release == codename)
        .with_context(|| format!("apt knows no mirror of {codename}"))?;
    let text = format!(
        "# Added by `cargo xtask setup` of vmsnap, for a newer QEMU and newer guest kernels.\n\
         Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    let made = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    std::fs::write(made.path(), text).context("cannot write a temporary file")?;
    eprintln!("setup: adding the suite {suite} in {SOURCES}");
    shell::run(
        as_root("install")?
            .args(["--mode=644"])
            .arg(made.path())
            .arg(SOURCES),
    )?;
    refresh()
}

/// Runs apt-get as root. The outer result says whether that could be tried.
fn apt_get(arguments: &[&str]) -> Result<Result<()>> {
    let mut command = as_root("env")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    Ok(shell::run(command.args(arguments)))
}

/// A command that runs as root, through sudo if need be.
fn as_root(program: &str) -> Result<Command> {
    if shell::capture(shell::command("id").arg("-u"))?.trim() == "0" {
        return Ok(shell::command(program));
    }
    if shell::find("sudo").is_none() {
        bail!("not root, and no sudo here");
    }
    let mut command = shell::command("sudo");
    command.stdin(Stdio::inherit()).arg(program);
    Ok(command)
}
