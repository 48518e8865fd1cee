//! The initial RAM disk: as high as it may lie below the hole, away from where a kernel unpacks itself.

use std::fs::File;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::arch::boot::memory_map;
use crate::error::{Error, Result};
use crate::memory::PAGE_SIZE;

/// Where an initial RAM disk was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Initrd {
    pub(crate) address: GuestAddress,
    pub(crate) len_bytes: u32,
}

/// Loads the file between `kernel_end` and `limit`, both exclusive.
pub(super) fn load(memory: &GuestMemoryMmap, path: &Path, kernel_end: u64, limit: u64) -> Result<Initrd> {
    let failed = |source| Error::OpenInitrd {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    let limit = limit.min(memory_map::low_ram_end(memory));
    let address = place(len, kernel_end, limit)?;
    let len_bytes = u32::try_from(len).map_err(|_| too_large(len, kernel_end, limit))?;
    memory
        .read_exact_volatile_from(address, &mut file, len_bytes as usize)
        .map_err(|source| failed(std::io::Error::other(source.to_string())))?;
    Ok(Initrd { address, len_bytes })
}

/// Returns the highest whole page from which `len` bytes end below `limit`.
fn place(len: u64, kernel_end: u64, limit: u64) -> Result<GuestAddress> {
    if len == 0 {
        return Err(Error::Initrd {
            problem: "is empty".into(),
        });
    }
    let start = limit.checked_sub(len).map(|start| start - start % PAGE_SIZE);
    match start {
        Some(start) if start >= kernel_end => Ok(GuestAddress(start)),
        _ => Err(too_large(len, kernel_end, limit)),
    }
}

fn too_large(len: u64, kernel_end: u64, limit: u64) -> Error {
    Error::Initrd {
        problem: format!(
            "{len} bytes do not fit between the kernel's end at {kernel_end:#x} and {limit:#x}; give the machine \
             more memory"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lies_as_high_as_it_can() {
        assert_eq!(place(1, 0, 0x10_0000).unwrap(), GuestAddress(0xf_f000));
        assert_eq!(place(0x1000, 0, 0x10_0000).unwrap(), GuestAddress(0xf_f000));
        assert_eq!(place(0x1001, 0, 0x10_0000).unwrap(), GuestAddress(0xf_e000));
        assert_eq!(
            place(0x1000, 0xf_f000, 0x10_0000).unwrap(),
            GuestAddress(0xf_f000)
        );
    }

    #[test]
    fn never_overlaps_the_kernel_or_the_end_of_memory() {
        for (len, kernel_end, limit) in [
            (0x1001, 0xf_f000, 0x10_0000),
            (0x10_0001, 0, 0x10_0000),
            (u64::MAX, 0, 0x10_0000),
        ] {
            let error = place(len, kernel_end, limit).unwrap_err();
            assert!(error.to_string().contains("do not fit"), "{error}");
        }
        assert!(place(0, 0, 0x10_0000).is_err(), "nothing is no RAM disk");
    }
}
