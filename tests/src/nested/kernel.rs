//! A distribution's kernel with its modules, as unpacked from its package.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The driver of the generation id of virtual machines.
pub const GENERATION_ID_MODULE: &str = "vmgenid";

/// A kernel below `target/guests`.
#[derive(Debug)]
pub struct Kernel {
    /// Name of its directory.
    pub name: String,
    /// Version of its package.
    pub package: String,
    /// The image.
    pub image: PathBuf,
    config: String,
    modules: PathBuf,
}

/// A module as an initramfs carries it.
#[derive(Debug)]
pub struct Module {
    /// Name of its file, without compression.
    pub file: String,
    /// The module itself.
    pub bytes: Vec<u8>,
}

impl Kernel {
    /// Finds the kernel that is unpacked in `directory`.
    pub fn open(directory: &Path) -> Result<Self> {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        let boot = directory.join("boot");
        let image = only(&boot, "vmlinuz-")?;
        let release = image.file_name().unwrap_or_default().to_string_lossy();
        let release = release.trim_start_matches("vmlinuz-").to_owned();
        Ok(Self {
            name: name.into_owned(),
            package: fs::read_to_string(directory.join("package")).unwrap_or_else(|_| release.clone()),
            config: fs::read_to_string(boot.join(format!("config-{release}"))).unwrap_or_default(),
            modules: directory.join("lib/modules").join(release),
            image,
        })
    }

    /// Whether the driver of the generation id is here: in the image, or among the modules, of which some
    /// distributions leave it out.
    pub fn knows_generation_id(&self) -> Result<bool> {
        let is_module = self
            .files()?
            .iter()
            .any(|file| module_name(file) == GENERATION_ID_MODULE);
        Ok(is_module || self.has_built_in("CONFIG_VMGENID"))
    }

    fn has_built_in(&self, option: &str) -> bool {
        self.config.lines().any(|line| line == format!("{option}=y"))
    }

    /// Reads modules and all that they need, in the order in which they must be loaded.
    ///
    /// Those that are part of the kernel's image, or that this kernel does not have at all, are left out.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let files = self.files()?;
        let mut loaded = BTreeSet::new();
        let mut order = Vec::new();
        for name in names {
            collect(&files, name, &mut loaded, &mut order)?;
        }
        Ok(order)
    }

    /// Every module file.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut open = vec![self.modules.join("kernel")];
        while let Some(directory) = open.pop() {
            let entries =
                fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
            for entry in entries {
                let path = entry?.path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    found.push(path);
                }
            }
        }
        Ok(found)
    }
}

/// Adds a module after those that it needs.
fn collect(
    files: &[PathBuf],
    name: &str,
    loaded: &mut BTreeSet<String>,
    order: &mut Vec<Module>,
) -> Result<()> {
    let name = name.replace('-', "_");
    let named = |path: &&PathBuf| module_name(path) == name;
    let Some(path) = files.iter().find(named).filter(|_| loaded.insert(name.clone())) else {
        return Ok(());
    };
    let bytes = read(path)?;
    for needed in needs(&bytes) {
        collect(files, &needed, loaded, order)?;
    }
    order.push(Module {
        file: format!("{name}.ko"),
        bytes,
    });
    Ok(())
}

fn module_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

/// Reads a module, which may be compressed.
fn read(path: &Path) -> Result<Vec<u8>> {
    let packed = || fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    match path.extension().and_then(OsStr::to_str) {
        Some("xz") => unpack_xz(path),
        Some("zst") => zstd::decode_all(&packed()?[..]).with_context(|| format!("{}", path.display())),
        _ => packed(),
    }
}

fn unpack_xz(path: &Path) -> Result<Vec<u8>> {
    let output = Command::new("xz")
        .arg("--decompress")
        .arg("--stdout")
        .arg(path)
        .output()
        .context("cannot run xz")?;
    ensure!(
        output.status.success(),
        "xz {}: {}",
        path.display(),
        output.status
    );
    Ok(output.stdout)
}

/// The modules that a module says it needs, in the fields `depends` and `softdep` of its description.
fn needs(module: &[u8]) -> Vec<String> {
    let fields = module
        .split(|byte| *byte == 0)
        .filter_map(|field| std::str::from_utf8(field).ok());
    let mut needed = Vec::new();
    for field in fields {
        if let Some(names) = field.strip_prefix("depends=") {
            needed.extend(
                names
                    .split(',')
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned),
            );
        }
        if let Some(names) = field.strip_prefix("softdep=pre: ") {
            let before = names.split(" post: ").next().unwrap_or_default();
            needed.extend(before.split_whitespace().map(str::to_owned));
        }
    }
    needed
}

/// The one file of a directory whose name begins so.
fn only(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut found = entries.flatten().map(|entry| entry.path()).filter(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    });
    found
        .next()
        .with_context(|| format!("no {prefix} in {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_module_needs() {
        let module =
            b"\x7fELF\0license=GPL\0softdep=pre: crc32c\0depends=mbcache,jbd2\0name=ext4\0depends=\0";
        assert_eq!(needs(module), ["crc32c", "mbcache", "jbd2"]);
    }
}
