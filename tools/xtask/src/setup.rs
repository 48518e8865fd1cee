//! Installs what a fresh Debian or Ubuntu machine lacks, and nothing when all is there.
//!
//! Presence is judged by looking for the thing itself (a program, a header), never by asking a package manager, so
//! other systems are served too: there the missing packages are named, and the user installs them.

use std::path::Path;

use anyhow::{Result, bail};

use crate::shell;

/// For what the machine is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Building and running.
    Build,
    /// Building, and the checks.
    Checks,
    /// Building, and the measurements.
    Bench,
    /// All of it.
    Everything,
}

/// Something that is not part of the repository and not fetched by cargo.
struct Requirement {
    /// What needs it.
    needed_for: Need,
    /// Debian's name of the package.
    package: &'static str,
    /// Why it is needed, for messages.
    why: &'static str,
    /// Whether it is here.
    present: fn() -> bool,
}

const REQUIREMENTS: &[Requirement] = &[
    Requirement {
        needed_for: Need::Build,
        package: "gcc",
        why: "compiles the C parts of zstd and links",
        present: || shell::find("cc").is_some(),
    },
    Requirement {
        needed_for: Need::Build,
        package: "libc6-dev",
        why: "C headers, the kernel's among them",
        present: || {
            Path::new("/usr/include/linux/userfaultfd.h").exists()
                && Path::new("/usr/include/stdio.h").exists()
        },
    },
    Requirement {
        needed_for: Need::Build,
        package: "libclang-dev",
        why: "reads the kernel's userfaultfd header for the userfaultfd crate",
        present: libclang_present,
    },
    Requirement {
        needed_for: Need::Checks,
        package: "gdb",
        why: "opens an extracted core in a test",
        present: || shell::find("gdb").is_some(),
    },
    Requirement {
        needed_for: Need::Checks,
        package: "python3-pip",
        why: "brings the spelling checker",
        present: pip_present,
    },
    Requirement {
        needed_for: Need::Bench,
        package: "zstd",
        why: "the command that our writer is measured against",
        present: || shell::find("zstd").is_some(),
    },
];

/// Makes the machine ready for `need`.
pub fn run(need: Need) -> Result<()> {
    let missing = missing(need);
    if missing.is_empty() {
        if need == Need::Everything {
            eprintln!("setup: everything is here");
        }
        return Ok(());
    }
    for requirement in &missing {
        eprintln!("setup: {} is missing ({})", requirement.package, requirement.why);
    }
    let packages: Vec<&str> = missing.iter().map(|requirement| requirement.package).collect();
    if shell::find("apt-get").is_none() {
        bail!(
            "please install what Debian calls {}: this machine has no apt-get",
            packages.join(", ")
        );
    }
    install(&packages)?;
    let left: Vec<&str> = self::missing(need)
        .iter()
        .map(|requirement| requirement.package)
        .collect();
    if !left.is_empty() {
        bail!("still not found after the installation: {}", left.join(", "));
    }
    Ok(())
}

fn missing(need: Need) -> Vec<&'static Requirement> {
    let concerned = |of: Need| of == Need::Build || of == need || need == Need::Everything;
    REQUIREMENTS
        .iter()
        .filter(|requirement| concerned(requirement.needed_for) && !(requirement.present)())
        .collect()
}

/// Installs packages with apt-get, as root or through sudo; refreshes the package lists only if that is needed.
fn install(packages: &[&str]) -> Result<()> {
    let is_root = shell::capture(shell::command("id").arg("-u"))?.trim() == "0";
    let line = format!(
        "apt-get install --yes --no-install-recommends {}",
        packages.join(" ")
    );
    if !is_root && shell::find("sudo").is_none() {
        bail!("cannot install packages: not root, and no sudo here; as root, run: {line}");
    }
    let apt_get = |arguments: &[&str]| {
        let mut command = shell::command(if is_root { "env" } else { "sudo" });
        if !is_root {
            command.stdin(std::process::Stdio::inherit()).arg("env");
        }
        command
            .arg("DEBIAN_FRONTEND=noninteractive")
            .arg("apt-get")
            .args(arguments);
        shell::run(&mut command)
    };
    let install = [&["install", "--yes", "--no-install-recommends"], packages].concat();
    if apt_get(&install).is_ok() {
        return Ok(());
    }
    eprintln!("setup: refreshing the package lists and trying again");
    apt_get(&["update"])
        .and_then(|()| apt_get(&install))
        .map_err(|error| error.context(format!("as root, run: {line}")))
}

/// Whether bindgen will find libclang together with the headers that come with it.
fn libclang_present() -> bool {
    let told = std::env::var_os("LIBCLANG_PATH").is_some();
    let versions = ["/usr/lib/clang", "/usr/lib64/clang"]
        .map(str::to_owned)
        .into_iter();
    let debian = names("/usr/lib").filter(|name| name.starts_with("llvm-"));
    let mut places = versions.chain(debian.map(|name| format!("/usr/lib/{name}/lib/clang")));
    let headers = places.any(|place| {
        names(&place).any(|version| Path::new(&format!("{place}/{version}/include/stddef.h")).exists())
    });
    told || (headers && library_present())
}

/// Whether a `libclang.so` lies where the clang-sys crate looks.
fn library_present() -> bool {
    let debian = names("/usr/lib")
        .filter(|name| name.starts_with("llvm-"))
        .map(|name| format!("/usr/lib/{name}/lib"));
    let common = ["/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu"].map(str::to_owned);
    let mut places = debian.chain(common);
    places.any(|place| {
        names(&place).any(|name| name.starts_with("libclang.so") || name.starts_with("libclang-"))
    })
}

fn pip_present() -> bool {
    shell::command("python3")
        .args(["-m", "pip", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Names of what lies in a directory; none when there is no such directory.
fn names(directory: &str) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}
