//! Guest physical memory: its layout, its mappings on the host, its slots in KVM.
//!
//! The range from 3 GiB to 4 GiB is a hole kept for the local APICs, the I/O APIC and memory-mapped
//! devices, as every PC has it; memory beyond 3 GiB continues at 4 GiB. Each range is one mapping and one
//! memory slot, numbered in address order.

#![expect(
    unsafe_code,
    reason = "advising the kernel on a mapping, giving mappings to KVM"
)]

use std::fs::File;
use std::{fmt, io};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags};
use serde::{Deserialize, Serialize};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

use crate::config::{Backing, MachineConfig};
use crate::error::{Error, Result};

/// Bytes of a guest page.
pub(crate) const PAGE_SIZE: u64 = 4096;
/// First address of the hole below 4 GiB.
pub(crate) const HOLE_START: u64 = 3 << 30;
/// First address beyond the hole.
pub(crate) const HOLE_END: u64 = 4 << 30;

/// A contiguous range of guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryRange {
    /// First guest physical address, a multiple of the page size.
    pub guest_address: u64,
    /// Length in bytes, a multiple of the page size and not zero.
    pub len_bytes: u64,
}

/// Returns where `memory_bytes` of guest memory lie: below the hole, and the rest from 4 GiB.
#[must_use]
pub fn memory_ranges(memory_bytes: u64) -> Vec<MemoryRange> {
    let low = memory_bytes.min(HOLE_START);
    let mut ranges = vec![MemoryRange {
        guest_address: 0,
        len_bytes: low,
    }];
    if memory_bytes > low {
        ranges.push(MemoryRange {
            guest_address: HOLE_END,
            len_bytes: memory_bytes - low,
        });
    }
    ranges
}

/// Maps fresh, zero guest memory as the configuration asks for it.
///
/// # Errors
/// The configuration is invalid, or the host has not enough address space or memory.
pub fn create_guest_memory(config: &MachineConfig) -> Result<GuestMemoryMmap> {
    config.validate()?;
    create_guest_memory_for(
        &memory_ranges(config.memory_bytes),
        config.backing,
        config.transparent_huge_pages,
    )
}

/// Maps fresh, zero guest memory at the given ranges, which are in address order: the memory of a
/// machine that is to be restored.
///
/// # Errors
/// The ranges overlap or are no multiples of pages, or the host has not enough memory.
pub fn create_guest_memory_for(
    ranges: &[MemoryRange],
    backing: Backing,
    transparent_huge_pages: bool,
) -> Result<GuestMemoryMmap> {
    let file = match backing {
        Backing::Anonymous => None,
        Backing::Memfd => Some(create_memfd(ranges)?),
    };
    let mut offset = 0;
    let mut regions = Vec::with_capacity(ranges.len());
    for range in ranges {
        check_range(range)?;
        let file_offset = file.as_ref().map(|file| try_clone_at(file, offset)).transpose()?;
        let mapping = map(range, file_offset)?;
        if backing == Backing::Anonymous {
            advise_huge_pages(&mapping, transparent_huge_pages)?;
        }
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.guest_address)).ok_or_else(|| {
            Error::Memory {
                problem: format!("{range} leaves the address space"),
            }
        })?;
        regions.push(region);
        offset += range.len_bytes;
    }
    GuestMemoryMmap::from_regions(regions).map_err(|source| Error::Memory {
        problem: source.to_string(),
    })
}

/// Returns the ranges of a guest memory.
pub(crate) fn ranges_of(memory: &GuestMemoryMmap) -> Vec<MemoryRange> {
    memory
        .iter()
        .map(|region| MemoryRange {
            guest_address: region.start_addr().raw_value(),
            len_bytes: region.len(),
        })
        .collect()
}

/// Registers every region of `memory` with KVM, one slot each, in address order.
pub(crate) fn register_slots(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<()> {
    for (slot, region) in (0u32..).zip(memory.iter()) {
        let description = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY:
        // - The range is a live mapping of exactly this size; guest regions do not overlap.
        // - The machine holds the guest memory for as long as the VM, so the mapping outlives the slot.
        let registered = unsafe { vm.set_user_memory_region(description) };
        registered.map_err(|source| Error::Kvm {
            operation: "KVM_SET_USER_MEMORY_REGION",
            source,
        })?;
    }
    Ok(())
}

fn check_range(range: &MemoryRange) -> Result<()> {
    let problem = |rule: &str| {
        Err(Error::Memory {
            problem: format!("{range} {rule}"),
        })
    };
    if range.len_bytes == 0 {
        return problem("is empty");
    }
    if !range.guest_address.is_multiple_of(PAGE_SIZE) || !range.len_bytes.is_multiple_of(PAGE_SIZE) {
        return problem("is not made of whole pages");
    }
    match range.guest_address.checked_add(range.len_bytes) {
        Some(end) if end <= HOLE_START || range.guest_address >= HOLE_END => Ok(()),
        Some(_) => problem("reaches into the hole below 4 GiB"),
        None => problem("leaves the address space"),
    }
}

fn create_memfd(ranges: &[MemoryRange]) -> Result<File> {
    let failed = |operation| {
        move |source: rustix::io::Errno| Error::Io {
            operation,
            source: source.into(),
        }
    };
    let total = ranges
        .iter()
        .try_fold(0u64, |sum, range| sum.checked_add(range.len_bytes))
        .ok_or_else(|| Error::Memory {
            problem: "more than 2^64 bytes".into(),
        })?;
    let fd = rustix::fs::memfd_create("guest-memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(failed("memfd_create"))?;
    rustix::fs::ftruncate(&fd, total).map_err(failed("ftruncate of the memfd"))?;
    // A mapping of a file that may shrink can raise SIGBUS at any access; this one cannot.
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(failed("sealing the memfd"))?;
    Ok(File::from(fd))
}

fn try_clone_at(file: &File, offset: u64) -> Result<FileOffset> {
    let clone = file.try_clone().map_err(|source| Error::Io {
        operation: "dup of the memfd",
        source,
    })?;
    Ok(FileOffset::new(clone, offset))
}

fn map(range: &MemoryRange, file_offset: Option<FileOffset>) -> Result<MmapRegion> {
    let too_large = |_| Error::Memory {
        problem: format!("{range} is too large for this host"),
    };
    let len = usize::try_from(range.len_bytes).map_err(too_large)?;
    let builder = MmapRegionBuilder::new(len).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let builder = match file_offset {
        Some(file_offset) => builder
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(file_offset),
        None => builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE),
    };
    builder.build().map_err(|source| Error::Memory {
        problem: format!("mapping {range}: {source}"),
    })
}

/// Asks for, or against, transparent huge pages, whatever the host's default is. A kernel without them
/// refuses both; that is an error only if they were asked for.
fn advise_huge_pages(mapping: &MmapRegion, wanted: bool) -> Result<()> {
    let advice = if wanted {
        libc::MADV_HUGEPAGE
    } else {
        libc::MADV_NOHUGEPAGE
    };
    // SAFETY:
    // - The range is exactly the mapping that `mapping` owns.
    // - The advice changes the page size behind the range, never its contents.
    let result = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), advice) };
    if result != 0 && wanted {
        return Err(Error::Io {
            operation: "madvise(MADV_HUGEPAGE)",
            source: io::Error::last_os_error(),
        });
    }
    Ok(())
}

impl fmt::Display for MemoryRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "range {:#x}+{:#x}", self.guest_address, self.len_bytes)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_leaves_the_hole_below_four_gib_free() {
        let at = |guest_address, len_bytes| MemoryRange {
            guest_address,
            len_bytes,
        };
        assert_eq!(memory_ranges(GIB), [at(0, GIB)]);
        assert_eq!(memory_ranges(3 * GIB), [at(0, 3 * GIB)]);
        assert_eq!(memory_ranges(3 * GIB + 4096), [at(0, 3 * GIB), at(4 * GIB, 4096)]);
    }

    #[test]
    fn both_backings_give_zero_memory_that_holds_what_is_written() {
        let ranges = [
            MemoryRange {
                guest_address: 0,
                len_bytes: 2 << 20,
            },
            MemoryRange {
                guest_address: HOLE_END,
                len_bytes: 1 << 20,
            },
        ];
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let memory = create_guest_memory_for(&ranges, backing, backing == Backing::Anonymous).unwrap();
            assert_eq!(ranges_of(&memory), ranges);
            let high = GuestAddress(HOLE_END + 0x1000);
            assert_eq!(memory.read_obj::<u64>(high).unwrap(), 0);
            memory.write_obj(7u64, high).unwrap();
            assert_eq!(memory.read_obj::<u64>(high).unwrap(), 7);
            assert_eq!(
                memory.read_obj::<u64>(GuestAddress(0x1000)).unwrap(),
                0,
                "regions share no page"
            );
        }
    }

    #[test]
    fn refuses_ranges_that_break_a_rule() {
        let at = |guest_address, len_bytes| MemoryRange {
            guest_address,
            len_bytes,
        };
        let cases: [&[MemoryRange]; 7] = [
            &[],
            &[at(0, 0)],
            &[at(1, 4096)],
            &[at(0, 4097)],
            &[at(HOLE_START - 4096, 8192)],
            &[at(u64::MAX - 4095, 4096)],
            &[at(0, 8192), at(4096, 4096)],
        ];
        for ranges in cases {
            for backing in [Backing::Anonymous, Backing::Memfd] {
                let result = create_guest_memory_for(ranges, backing, false);
                assert!(
                    matches!(result, Err(Error::Memory { .. })),
                    "{ranges:?}: {result:?}"
                );
            }
        }
    }
}
