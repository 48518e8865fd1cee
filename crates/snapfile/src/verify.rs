//! Is a file sound, and if not, what exactly is lost?
//!
//! The one idea: verifying is not opening. A reader stops at the first broken clause; this looks at
//! everything that can still be looked at and reports all damage, each with the structure, its
//! offset, the clause of the specification and the guest memory that goes with it.
//!
//! - `structures` reads what a random reader reads: header, footer, map, directory, index root.
//! - `index` reads every leaf: counts, chunk references, the root digest from the chunk digests.
//! - `walk` goes over the file frame by frame, so that every byte lies under a checksum that is
//!   checked; `frame` says what a frame must hold. They work without an index as well, and find
//!   their way back after a frame whose length cannot be trusted.
//! - `fingerprint` shows that index and frames describe the same chunks without holding either;
//!   `mismatch` names what is wrong if they do not.

mod findings;
mod fingerprint;
mod frame;
mod frame_map;
mod index;
mod mismatch;
mod sequence;
mod stream;
mod structures;
mod walk;

use std::fmt;
use std::num::NonZero;
use std::ops::ControlFlow;
use std::sync::Arc;

pub use findings::{Damage, Problem};
pub use stream::verify_stream;

use crate::error::{ParentError, Result};
use crate::reader::Snapshot;
use crate::storage::ReadAt;
use findings::Findings;
use structures::Structures;

/// How much is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Header, footer, memory map, directory, index, and the frame headers of sections.
    Quick,
    /// Every byte of the file: all checksums, all structures, the root digest by the chunk digests
    /// that the file states.
    #[default]
    Checksums,
    /// The same, and every chunk is decoded and its digest computed, also those in parents.
    Deep,
}

/// Told how many bytes of the file are verified, out of how many; may stop the verification.
pub type VerifyProgress<'a> = &'a (dyn Fn(u64, u64) -> ControlFlow<()> + Sync);

/// How a file is verified.
#[derive(Clone)]
pub struct VerifyOptions<'a> {
    /// How much is looked at; every checksum by default.
    pub depth: Depth,
    /// Most findings that are reported one by one; the rest is counted. A thousand by default.
    pub max_findings: usize,
    /// Threads that verify; as many as there are processors by default.
    pub threads: NonZero<usize>,
    /// The parent of an incremental snapshot; [`Depth::Deep`] cannot do without.
    pub parent: Option<Arc<Snapshot>>,
    /// Called now and then, from any of the threads.
    pub progress: Option<VerifyProgress<'a>>,
}

impl Default for VerifyOptions<'_> {
    fn default() -> Self {
        Self {
            depth: Depth::default(),
            max_findings: 1000,
            threads: std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN),
            parent: None,
            progress: None,
        }
    }
}

impl fmt::Debug for VerifyOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyOptions")
            .field("depth", &self.depth)
            .field("max_findings", &self.max_findings)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// All damage in file order, at most [`VerifyOptions::max_findings`].
    pub damage: Vec<Damage>,
    /// Findings beyond those.
    pub omitted: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Bytes whose checksum was checked; the whole file if it is sound and the depth not quick.
    pub checked_bytes: u64,
    /// Frames that were checked.
    pub frames: u64,
    /// Chunks that were decoded and whose digest was computed.
    pub decoded_chunks: u64,
}

impl VerifyReport {
    /// Returns whether nothing was found.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.omitted == 0
    }
}

/// Verifies a snapshot file.
///
/// Damage of any kind is no error but in the report.
///
/// # Errors
/// A file that cannot be read, that a newer reader is needed for, or whose parent is needed and not
/// given; [`crate::Error::Cancelled`] when the progress callback said so.
pub fn verify(storage: &dyn ReadAt, options: &VerifyOptions<'_>) -> Result<VerifyReport> {
    let file_bytes = storage.len()?;
    let findings = Findings::new(options.max_findings);
    let structures = Structures::read(storage, file_bytes, &findings)?;
    let mut report = VerifyReport {
        damage: Vec::new(),
        omitted: 0,
        file_bytes,
        checked_bytes: structures.checked_bytes,
        frames: structures.frames,
        decoded_chunks: 0,
    };
    if options.depth == Depth::Quick {
        let index = index::read(storage, &structures, Depth::Quick, &findings)?;
        report.checked_bytes += index.checked_bytes;
        report.frames += index.leaves;
    } else {
        check_parent(&structures, options, &findings)?;
        let index = index::read(storage, &structures, options.depth, &findings)?;
        let walked = walk::walk(storage, &structures, &index, options, &findings)?;
        report.checked_bytes = walked.checked_bytes;
        report.frames = walked.frames;
        report.decoded_chunks = walked.decoded_chunks;
    }
    index::add_duplicates(storage, &structures, &findings)?;
    (report.damage, report.omitted) = findings.into_sorted();
    Ok(report)
}

/// Refuses to go deep without the parent, unless there is damage to report, and with a wrong one.
fn check_parent(structures: &Structures, options: &VerifyOptions<'_>, findings: &Findings) -> Result<()> {
    let Some(reference) = structures
        .header
        .as_ref()
        .and_then(|header| header.parent.as_ref())
    else {
        return Ok(());
    };
    let needed = options.depth == Depth::Deep && structures.has_parent_chunks();
    match &options.parent {
        Some(parent) if parent.root_digest() != reference.root_digest => {
            let (expected, found) = (reference.root_digest, parent.root_digest());
            Err(ParentError::RootDigest { expected, found }.into())
        }
        None if needed && findings.is_empty() => {
            let (root_digest, hint) = (reference.root_digest, reference.hint.clone());
            Err(ParentError::Missing { root_digest, hint }.into())
        }
        _ => Ok(()),
    }
}
