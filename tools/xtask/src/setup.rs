//! Installs what a fresh Debian or Ubuntu machine lacks, and nothing when all is there.
//!
//! Presence is judged by looking for the thing itself (a program, a header), never by asking a package manager, so
//! other systems are served too: there the missing packages are named, and the user installs them.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{apt, guests, shell};

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
    /// Whether Debian 12's own version is too old, and its backports suite is asked instead.
    newer: bool,
    /// Whether it is here.
    present: fn() -> bool,
}

const REQUIREMENTS: &[Requirement] = &[
    Requirement {
        needed_for: Need::Build,
        package: "gcc",
        why: "compiles the C parts of zstd and links",
        newer: false,
        present: || shell::find("cc").is_some(),
    },
    Requirement {
        needed_for: Need::Build,
        package: "libc6-dev",
        why: "C headers, the kernel's among them",
        newer: false,
        present: || {
            Path::new("/usr/include/linux/userfaultfd.h").exists()
                && Path::new("/usr/include/stdio.h").exists()
        },
    },
    Requirement {
        needed_for: Need::Build,
        package: "libclang-dev",
        why: "reads the kernel's userfaultfd header for the userfaultfd crate",
        newer: false,
        present: libclang_present,
    },
    Requirement {
        needed_for: Need::Checks,
        package: "gdb",
        why: "opens an extracted core in a test",
        newer: false,
        present: || shell::find("gdb").is_some(),
    },
    Requirement {
        needed_for: Need::Checks,
        package: "python3-pip",
        why: "brings the spelling checker",
        newer: false,
        present: pip_present,
    },
    Requirement {
        needed_for: Need::Checks,
        package: "qemu-system-x86",
        why: "offers nested virtualisation to Linux guests on a machine without",
        newer: true,
        present: || shell::find("qemu-system-x86_64").is_some(),
    },
    Requirement {
        needed_for: Need::Checks,
        package: "qemu-utils",
        why: "must stay as new as QEMU itself",
        newer: true,
        present: || shell::find("qemu-img").is_some(),
    },
    Requirement {
        needed_for: Need::Checks,
        package: "e2fsprogs",
        why: "makes the file systems of Linux guests",
        newer: false,
        present: || find_admin("mke2fs"),
    },
    Requirement {
        needed_for: Need::Checks,
        package: "xz-utils",
        why: "unpacks modules of newer kernels",
        newer: false,
        present: || shell::find("xz").is_some(),
    },
    Requirement {
        needed_for: Need::Bench,
        package: "zstd",
        why: "the command that our writer is measured against",
        newer: false,
        present: || shell::find("zstd").is_some(),
    },
];

/// Makes the machine ready for `need`.
pub fn run(need: Need) -> Result<()> {
    install_missing(need)?;
    if matches!(need, Need::Checks | Need::Everything) {
        guests::fetch();
    }
    if need == Need::Everything {
        eprintln!("setup: everything is here");
    }
    Ok(())
}

fn install_missing(need: Need) -> Result<()> {
    let missing = missing(need);
    if missing.is_empty() {
        return Ok(());
    }
    for requirement in &missing {
        eprintln!("setup: {} is missing ({})", requirement.package, requirement.why);
    }
    if !apt::is_here() {
        bail!(
            "please install what Debian calls {}: this machine has no apt-get",
            names_of(&missing).join(", ")
        );
    }
    let suite = apt::backports();
    let (newer, usual): (Vec<_>, Vec<_>) = missing
        .into_iter()
        .partition(|requirement| requirement.newer && suite.is_some());
    if !usual.is_empty() {
        apt::install(&names_of(&usual), None)?;
    }
    if !newer.is_empty() {
        apt::install(&names_of(&newer), suite.as_deref())?;
    }
    let left = self::missing(need);
    if !left.is_empty() {
        bail!(
            "still not found after the installation: {}",
            names_of(&left).join(", ")
        );
    }
    Ok(())
}

fn names_of(requirements: &[&Requirement]) -> Vec<&'static str> {
    requirements
        .iter()
        .map(|requirement| requirement.package)
        .collect()
}

fn missing(need: Need) -> Vec<&'static Requirement> {
    let concerned = |of: Need| of == Need::Build || of == need || need == Need::Everything;
    REQUIREMENTS
        .iter()
        .filter(|requirement| concerned(requirement.needed_for) && !(requirement.present)())
        .collect()
}

/// Whether a program for administrators is here; their directories are not in everybody's `PATH`.
fn find_admin(program: &str) -> bool {
    let usual = ["/usr/sbin", "/sbin"].map(|place| Path::new(place).join(program));
    shell::find(program).is_some() || usual.iter().any(|file| file.is_file())
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
