//! QEMU's program for disk images, with everything that it is linked with, so that it runs in an initramfs too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A file by its name beside the others, and where it is.
type Part = (String, PathBuf);

/// The program's parts on this machine.
#[derive(Debug)]
pub struct QemuImg {
    program: PathBuf,
    loader: String,
    parts: Vec<Part>,
}

impl QemuImg {
    /// Finds the program; `None` where there is none.
    ///
    /// # Errors
    /// When the program is there, but not what it is linked with.
    pub fn find() -> Result<Option<Self>> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = std::env::split_paths(&path).map(|directory| directory.join("qemu-img"));
        let Some(program) = places.find(|place| place.is_file()) else {
            return Ok(None);
        };
        let output = Command::new("ldd")
            .arg(&program)
            .output()
            .context("cannot run ldd")?;
        ensure!(output.status.success(), "ldd {}", program.display());
        let parts = linked_with(&String::from_utf8_lossy(&output.stdout));
        let loader = parts.iter().find(|(name, _)| name.starts_with("ld-"));
        let (loader, _) = loader.context("ldd names no loader")?;
        Ok(Some(Self {
            program,
            loader: loader.clone(),
            parts,
        }))
    }

    /// How it is run from where it was found.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        vec![self.program.display().to_string()]
    }

    /// How it is run from `place`, where [`files`](Self::files) were put.
    #[must_use]
    pub fn command_in(&self, place: &Path) -> Vec<String> {
        let at = |name: &str| place.join(name).display().to_string();
        let library_path = place.display().to_string();
        vec![
            at(&self.loader),
            "--library-path".to_owned(),
            library_path,
            at("qemu-img"),
        ]
    }

    /// The program and all that it is linked with, by name.
    ///
    /// # Errors
    /// When a part cannot be read.
    pub fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let program = ("qemu-img".to_owned(), self.program.clone());
        std::iter::once(&program)
            .chain(&self.parts)
            .map(|(name, path)| {
                let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
                Ok((name.clone(), content))
            })
            .collect()
    }
}

/// Reads what `ldd` prints: `NAME => PATH (ADDRESS)` for a library, `PATH (ADDRESS)` for the loader.
fn linked_with(said: &str) -> Vec<Part> {
    said.lines()
        .filter_map(|line| {
            let line = line.trim();
            let path = line.split_once("=> ").map_or(line, |(_, path)| path);
            let path = Path::new(path.split_whitespace().next()?);
            let name = line.split_whitespace().next()?.rsplit('/').next()?;
            path.is_absolute().then(|| (name.to_owned(), path.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_libraries_and_the_loader() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibz.so.1 => /lib/x86/libz.so.1 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let parts = linked_with(said);
        let expected = [
            ("libz.so.1".to_owned(), PathBuf::from("/lib/x86/libz.so.1")),
            (
                "ld-linux-x86-64.so.2".to_owned(),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2"),
            ),
        ];
        assert_eq!(parts, expected);
    }
}
