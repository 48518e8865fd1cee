//! Copying a raw disk: a clone that shares its blocks where the file system can, else only what is not a hole.
//!
//! The source is not written to while it is copied; who sees to that is not known here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// Bytes copied between two looks at whether to go on.
const STEP_BYTES: u64 = 8 << 20;

/// Who is told of every step, and may refuse the next.
pub(crate) type Proceed<'a> = &'a (dyn Fn(u64) -> io::Result<()> + Sync);

/// Makes `target`, which is empty, equal to the first `len_bytes` of `source`; `proceed` is told how many bytes came
/// in at each step.
pub(crate) fn copy_content(
    source: &File,
    target: &File,
    len_bytes: u64,
    proceed: Proceed<'_>,
) -> io::Result<()> {
    proceed(0)?;
    if seek(source, SeekFrom::End(0))? < len_bytes {
        // What is missing would read as zeros.
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // Refused across file systems and by those that cannot share blocks; whatever the reason, a copy may still do.
    if ioctl_ficlone(target, source).is_ok() {
        target.set_len(len_bytes)?;
        return proceed(len_bytes);
    }
    target.set_len(len_bytes)?;
    let mut at = 0;
    while let Some((start, end)) = next_data(source, at, len_bytes)? {
        proceed(start - at)?;
        copy_range(source, target, start, end, proceed)?;
        at = end;
    }
    proceed(len_bytes.saturating_sub(at))
}

/// Finds the next range at or behind `at` that is not a hole.
pub(super) fn next_data(source: &File, at: u64, len_bytes: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= len_bytes {
        return Ok(None);
    }
    let start = match seek(source, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // Block devices do not tell.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, len_bytes))),
        Err(error) => return Err(error.into()),
    };
    if start >= len_bytes {
        return Ok(None);
    }
    let end = seek(source, SeekFrom::Hole(start))?;
    Ok(Some((start, end.min(len_bytes))))
}

fn copy_range(
    source: &File,
    target: &File,
    mut start: u64,
    end: u64,
    proceed: Proceed<'_>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    while start < end {
        let step = STEP_BYTES.min(end - start);
        let copied = match copy_in_kernel(source, target, start, step)? {
            Some(copied) => copied,
            None => copy_through(source, target, start, step, &mut buffer)?,
        };
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        start += copied;
        proceed(copied)?;
    }
    Ok(())
}

/// Copies without the bytes leaving the kernel; nothing if it cannot do that between these two files.
fn copy_in_kernel(source: &File, target: &File, start: u64, len: u64) -> io::Result<Option<u64>> {
    let (mut from, mut to) = (start, start);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    match copy_file_range(source, Some(&mut from), target, Some(&mut to), len) {
        // Some file systems answer so where they cannot copy; a real end is found by reading.
        Ok(0) | Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => Ok(None),
        Ok(copied) => Ok(Some(copied as u64)),
        Err(error) => Err(error.into()),
    }
}

fn copy_through(source: &File, target: &File, start: u64, len: u64, buffer: &mut Vec<u8>) -> io::Result<u64> {
    buffer.resize(usize::try_from(len.min(1 << 20)).unwrap_or(1 << 20), 0);
    let read = source.read_at(buffer, start)?;
    let (bytes, _) = buffer.split_at(read);
    target.write_all_at(bytes, start)?;
    Ok(read as u64)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A file of 64 MiB that is a hole but for one page at each of the given places.
    fn sparse(path: &std::path::Path, places: &[u64]) -> File {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .unwrap();
        file.set_len(64 << 20).unwrap();
        for place in places {
            file.write_all_at(&[0x5a; 4096], *place).unwrap();
        }
        file
    }

    #[test]
    fn a_copy_is_equal_and_as_sparse_as_its_source() {
        let directory = tempfile::tempdir().unwrap();
        let source = sparse(&directory.path().join("source"), &[0, 9 << 20, (64 << 20) - 4096]);
        let target = sparse(&directory.path().join("target"), &[]);
        let told = AtomicU64::new(0);
        let tell = |bytes| {
            told.fetch_add(bytes, Ordering::Relaxed);
            Ok(())
        };
        copy_content(&source, &target, 64 << 20, &tell).unwrap();
        assert_eq!(told.into_inner(), 64 << 20, "holes count as well");
        let read = |name| fs::read(directory.path().join(name)).unwrap();
        assert!(read("source") == read("target"));
        assert!(
            target.metadata().unwrap().blocks() * 512 < 16 << 20,
            "holes were filled"
        );
    }

    #[test]
    fn copying_through_memory_gives_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let source = sparse(&directory.path().join("source"), &[0, 4096]);
        let target = sparse(&directory.path().join("target"), &[]);
        let copied = copy_through(&source, &target, 0, 8192, &mut Vec::new()).unwrap();
        assert_eq!(copied, 8192);
        let mut bytes = [0; 8192];
        target.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0x5a; 8192]);
    }

    #[test]
    fn a_refusal_to_proceed_ends_the_copy() {
        let directory = tempfile::tempdir().unwrap();
        let source = sparse(&directory.path().join("source"), &[0]);
        let target = sparse(&directory.path().join("target"), &[]);
        let refuse = |_| Err(io::Error::other("enough"));
        let error = copy_content(&source, &target, 64 << 20, &refuse).unwrap_err();
        assert_eq!(error.to_string(), "enough");
    }
}
