//! The oracle's findings and refusals.

use std::fmt;

/// Mismatches that a report keeps; more are only counted.
const KEPT_MISMATCHES: usize = 64;

/// The outcome of comparing pages of guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OracleReport {
    /// Pages compared in every byte.
    pub pages_checked: u64,
    /// Pages whose content cannot be known: boot area, and each vCPU's mailbox and stack.
    pub pages_excluded: u64,
    /// Pages that differ.
    pub mismatch_count: u64,
    /// The first 64 of those.
    pub mismatches: Vec<Mismatch>,
}

impl OracleReport {
    /// Returns whether every page that was compared is as it must be.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.mismatch_count == 0
    }

    /// Adds the findings of another part of memory.
    pub fn merge(&mut self, other: Self) {
        self.pages_checked += other.pages_checked;
        self.pages_excluded += other.pages_excluded;
        self.mismatch_count += other.mismatch_count;
        let room = KEPT_MISMATCHES.saturating_sub(self.mismatches.len());
        self.mismatches.extend(other.mismatches.into_iter().take(room));
    }

    pub(super) fn add(&mut self, mismatch: Mismatch) {
        self.mismatch_count += 1;
        if self.mismatches.len() < KEPT_MISMATCHES {
            self.mismatches.push(mismatch);
        }
    }
}

/// What a page of guest memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Program, parameters, tables: never changes after loading.
    Control,
    /// A page that a vCPU rewrites.
    WorkingSet {
        /// The vCPU that owns the page.
        cpu: u32,
        /// Its last complete step that wrote the page; below the pages of its part, the loader wrote it.
        step: u64,
    },
    /// Nobody writes here: zero.
    Unused,
}

/// A page that is not as it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Guest physical address of the page.
    pub gpa: u64,
    /// Offset in the page of the first eight-byte word that differs.
    pub offset: usize,
    /// The word that has to be there.
    pub expected: u64,
    /// The word that is there.
    pub found: u64,
    /// What the page is for.
    pub kind: PageKind,
}

impl Mismatch {
    /// Finds the first difference of two pages that differ.
    pub(super) fn new(gpa: u64, kind: PageKind, expected: &[u8], found: &[u8]) -> Self {
        let words = |page: &[u8]| -> Vec<u64> {
            page.as_chunks()
                .0
                .iter()
                .map(|word| u64::from_le_bytes(*word))
                .collect()
        };
        let (expected, found) = (words(expected), words(found));
        let at = expected
            .iter()
            .zip(&found)
            .position(|(a, b)| a != b)
            .expect("the pages differ");
        Self {
            gpa,
            offset: at * 8,
            expected: expected[at],
            found: found[at],
            kind,
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            gpa,
            offset,
            expected,
            found,
            kind,
        } = self;
        write!(
            f,
            "page {gpa:#x}: word at offset {offset:#x} is {found:#018x}, must be {expected:#018x}"
        )?;
        match kind {
            PageKind::Control => write!(f, " (control area)"),
            PageKind::WorkingSet { cpu, step } => write!(f, " (last written by vCPU {cpu} at step {step})"),
            PageKind::Unused => write!(f, " (never written)"),
        }
    }
}

/// Memory or registers that the oracle cannot judge.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OracleError {
    /// The memory is not a built-in guest's.
    #[error("no built-in guest: page {gpa:#x} is not its parameter page")]
    NoGuest {
        /// Guest physical address where the page should be.
        gpa: u64,
    },
    /// The guest is of another program version.
    #[error("built-in guest of version {found}, only version {known} is known")]
    Version {
        /// Version in the parameter page.
        found: u32,
        /// Version of this program.
        known: u32,
    },
    /// The parameter page is damaged.
    #[error("parameter page {gpa:#x} contradicts itself")]
    Parameters {
        /// Guest physical address of the page.
        gpa: u64,
    },
    /// The registers are of another number of vCPUs.
    #[error("registers of {found} vCPUs for a guest with {expected}")]
    Cpus {
        /// The guest's vCPUs.
        expected: u32,
        /// Registers given.
        found: usize,
    },
    /// A register holds what it cannot hold at this point of the program.
    #[error("vCPU {cpu}: register {register} cannot be {value:#x} at this instruction")]
    Register {
        /// Number of the vCPU.
        cpu: u32,
        /// Name of the register.
        register: &'static str,
        /// Its value.
        value: u64,
    },
}
