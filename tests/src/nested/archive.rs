//! An initramfs: a cpio archive in the "newc" form that the kernel unpacks, compressed with zstd.

use anyhow::{Context, Result};

/// First bytes of every entry.
const MAGIC: &str = "070701";

/// File types in a mode, as in `stat`.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// An archive that grows.
#[derive(Debug)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Begins an archive with `/dev/console`, without which init has no standard output.
    pub fn new() -> Result<Self> {
        let mut archive = Self {
            bytes: Vec::new(),
            entries: 0,
        };
        archive.directory("dev")?;
        archive.entry("dev/console", CHARACTER | 0o600, (5, 1), &[])?;
        Ok(archive)
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a file that may be executed.
    pub fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.entry(path, REGULAR | 0o755, (0, 0), content)
    }

    /// Ends the archive and compresses it.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        zstd::bulk::compress(&self.bytes, 1).context("compressing an initramfs")
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        self.entries += 1;
        let size = u32::try_from(content.len()).with_context(|| format!("{path} is too large"))?;
        let name_bytes = u32::try_from(path.len() + 1)?;
        // inode, mode, uid, gid, links, mtime, size, device, device of a node, name, checksum
        let (major, minor) = device;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_bytes,
            0,
        ];
        self.bytes.extend(MAGIC.as_bytes());
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_the_last_is_the_trailer() {
        let mut archive = Archive::new().expect("an archive");
        archive.file("init", b"hello").expect("a small file");
        let packed = archive.finish().expect("it compresses");
        let bytes = zstd::bulk::decompress(&packed, 1 << 20).expect("it decompresses");
        let text = String::from_utf8_lossy(&bytes);
        let heads: Vec<usize> = text.match_indices(MAGIC).map(|(at, _)| at).collect();
        assert_eq!(heads.len(), 4);
        assert!(heads.iter().all(|at| at % 4 == 0), "{heads:?}");
        assert!(text.contains("hello") && text[heads[3]..].contains("TRAILER!!!"));
    }
}
