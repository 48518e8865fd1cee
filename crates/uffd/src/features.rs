//! Feature bits of `UFFDIO_API`, by name.
//!
//! The numbers are the kernel's ABI (`include/uapi/linux/userfaultfd.h`); they are repeated here
//! because installed kernel headers are often older than the running kernel.

use std::fmt;
use std::ops::BitOr;

/// A set of userfaultfd features.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(u64);

impl Features {
    /// No feature: what every kernel has.
    pub const NONE: Features = Features(0);
    /// Write-protect faults on anonymous memory (Linux 5.7).
    pub const PAGEFAULT_FLAG_WP: Features = Features(1 << 0);
    /// An event for memory given back by `madvise` (Linux 4.11).
    pub const EVENT_REMOVE: Features = Features(1 << 3);
    /// Missing faults on hugetlbfs (Linux 4.11).
    pub const MISSING_HUGETLBFS: Features = Features(1 << 4);
    /// Missing faults on shared memory (Linux 4.11).
    pub const MISSING_SHMEM: Features = Features(1 << 5);
    /// The faulting thread's id comes with the event (Linux 4.14).
    pub const THREAD_ID: Features = Features(1 << 8);
    /// Minor faults on shared memory (Linux 5.14).
    pub const MINOR_SHMEM: Features = Features(1 << 10);
    /// Write-protect faults on shared memory and hugetlbfs (Linux 5.19).
    pub const WP_HUGETLBFS_SHMEM: Features = Features(1 << 12);
    /// Write protection covers anonymous pages that are not there yet (Linux 6.4).
    pub const WP_UNPOPULATED: Features = Features(1 << 13);
    /// Pages can be poisoned (Linux 6.6).
    pub const POISON: Features = Features(1 << 14);
    /// Write protection is lifted by the kernel, for tracking without faults to user space (Linux 6.7).
    pub const WP_ASYNC: Features = Features(1 << 15);
    /// Pages can be moved (Linux 6.8).
    pub const MOVE: Features = Features(1 << 16);

    const NAMES: [(Features, &'static str); 11] = [
        (Self::PAGEFAULT_FLAG_WP, "PAGEFAULT_FLAG_WP"),
        (Self::EVENT_REMOVE, "EVENT_REMOVE"),
        (Self::MISSING_HUGETLBFS, "MISSING_HUGETLBFS"),
        (Self::MISSING_SHMEM, "MISSING_SHMEM"),
        (Self::THREAD_ID, "THREAD_ID"),
        (Self::MINOR_SHMEM, "MINOR_SHMEM"),
        (Self::WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM"),
        (Self::WP_UNPOPULATED, "WP_UNPOPULATED"),
        (Self::POISON, "POISON"),
        (Self::WP_ASYNC, "WP_ASYNC"),
        (Self::MOVE, "MOVE"),
    ];

    /// The set with exactly these bits, unknown ones included.
    pub const fn from_bits(bits: u64) -> Self {
        Features(bits)
    }

    /// The bits as `UFFDIO_API` has them.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether every feature of `other` is in this set.
    pub const fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// The features of this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Features) -> Features {
        Features(self.0 & !other.0)
    }

    /// Looks a feature up by its kernel name without the `UFFD_FEATURE_` prefix.
    pub fn by_name(name: &str) -> Option<Features> {
        Self::NAMES
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(feature, _)| *feature)
    }

    /// Names of the features in this set, without the `UFFD_FEATURE_` prefix; unknown bits are left out.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .iter()
            .filter(move |(feature, _)| self.contains(*feature))
            .map(|(_, name)| *name)
    }
}

impl BitOr for Features {
    type Output = Features;

    fn bitor(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Self::NAMES.iter().fold(0, |bits, (feature, _)| bits | feature.0);
        let mut separator = "";
        for name in self.names() {
            write!(f, "{separator}{name}")?;
            separator = " ";
        }
        if self.0 & !known != 0 {
            write!(f, "{separator}{:#x}", self.0 & !known)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_feature() {
        for (feature, name) in Features::NAMES {
            assert_eq!(Features::by_name(name), Some(feature));
        }
    }

    #[test]
    fn display_names_known_bits_and_shows_unknown_ones() {
        let features = Features::WP_ASYNC | Features::from_bits(1 << 40);
        assert_eq!(features.to_string(), "WP_ASYNC 0x10000000000");
    }
}
