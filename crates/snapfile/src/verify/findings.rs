//! The damage found so far: bounded, shared by all threads, and what becomes of an error.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Corruption, Error, GuestRanges, LimitExceeded, Result};

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A clause of the specification is broken.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// The file has no footer: its writer was stopped, or its end is lost.
    #[error("incomplete: no footer at the end of its {len_bytes} bytes")]
    Incomplete {
        /// Bytes that are there.
        len_bytes: u64,
    },
    /// A count or length is beyond what the format allows.
    #[error(transparent)]
    LimitExceeded(#[from] LimitExceeded),
}

impl Problem {
    /// Returns the clause of the specification that is broken, such as `8.6`.
    pub fn clause(&self) -> &'static str {
        match self {
            Self::Corrupt(corruption) => corruption.clause(),
            Self::Incomplete { .. } => "10.2",
            Self::LimitExceeded(exceeded) => exceeded.clause(),
        }
    }

    /// Returns a short, stable name of the problem.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Corrupt(corruption) => corruption.name(),
            Self::Incomplete { .. } => "Incomplete",
            Self::LimitExceeded(_) => "LimitExceeded",
        }
    }

    /// Returns the file offset of the broken structure, if it has one.
    pub fn offset(&self) -> Option<u64> {
        match self {
            Self::Corrupt(corruption) => corruption.offset(),
            Self::Incomplete { len_bytes } => Some(*len_bytes),
            Self::LimitExceeded(_) => None,
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What is wrong.
    pub problem: Problem,
    /// Guest memory that is lost with it, also where other chunks refer to the broken one.
    pub guest: GuestRanges,
    /// The data chunk that is lost, if it is one.
    pub(super) chunk: Option<u64>,
}

/// Collects damage from all threads, at most a given number.
pub(super) struct Findings {
    max: usize,
    /// The findings kept, and how many more there were.
    collected: Mutex<(Vec<Damage>, u64)>,
    /// Set once frames could not be recognised, so that counts of frames prove nothing any more.
    lost_frames: AtomicBool,
}

impl Findings {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            collected: Mutex::default(),
            lost_frames: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<Damage>, u64)> {
        self.collected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, damage: Damage) {
        let mut collected = self.lock();
        let (kept, omitted) = &mut *collected;
        if kept.iter().any(|known| known.problem == damage.problem) {
            return;
        }
        if kept.len() < self.max {
            kept.push(damage)
        } else {
            *omitted += 1
        }
    }

    /// Records a broken clause.
    pub(super) fn corrupt(&self, corruption: Corruption) {
        let guest = corruption.guest_ranges().cloned().unwrap_or_default();
        self.add(Damage {
            problem: corruption.into(),
            guest,
            chunk: None,
        });
    }

    /// Records what an error says about the file; returns `None` then, and the error if it is not
    /// about damage.
    pub(super) fn note<T>(&self, result: Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => return Ok(Some(value)),
            Err(Error::Corrupt(corruption)) => self.corrupt(corruption),
            Err(Error::Incomplete { len_bytes }) => self.plain(Problem::Incomplete { len_bytes }),
            Err(Error::LimitExceeded(exceeded)) => self.plain(exceeded.into()),
            Err(other) => return Err(other),
        }
        Ok(None)
    }

    /// The same as [`Findings::note`], for a structure that is known to cover some guest memory.
    pub(super) fn note_with<T>(
        &self,
        result: Result<T>,
        guest: impl FnOnce() -> GuestRanges,
    ) -> Result<Option<T>> {
        match result {
            Err(Error::Corrupt(corruption)) => {
                self.add(Damage {
                    problem: corruption.into(),
                    guest: guest(),
                    chunk: None,
                });
                Ok(None)
            }
            other => self.note(other),
        }
    }

    fn plain(&self, problem: Problem) {
        self.add(Damage {
            problem,
            guest: GuestRanges::default(),
            chunk: None,
        });
    }

    /// Records damage for which the whole of a data chunk is lost.
    pub(super) fn lost_chunk(&self, chunk: u64, corruption: Corruption, guest: GuestRanges) {
        self.add(Damage {
            problem: corruption.into(),
            guest,
            chunk: Some(chunk),
        });
    }

    /// Returns whether nothing was found so far.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().0.is_empty()
    }

    pub(super) fn lose_frames(&self) {
        self.lost_frames.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_lost_frames(&self) -> bool {
        self.lost_frames.load(Ordering::Relaxed)
    }

    /// Returns the data chunks that are lost.
    pub(super) fn lost_chunks(&self) -> Vec<u64> {
        self.lock().0.iter().filter_map(|damage| damage.chunk).collect()
    }

    /// Adds guest memory to the findings that lose `chunk`.
    pub(super) fn extend(&self, chunk: u64, guest: &GuestRanges) {
        for damage in self
            .lock()
            .0
            .iter_mut()
            .filter(|damage| damage.chunk == Some(chunk))
        {
            damage.guest.0.extend_from_slice(&guest.0);
        }
    }

    /// Returns the findings in file order, and how many more there were.
    pub(super) fn into_sorted(self) -> (Vec<Damage>, u64) {
        let (mut damage, omitted) = self
            .collected
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        damage.sort_by_key(|damage| {
            let guest = damage.guest.0.first().map(|range| range.start);
            (
                Reverse(damage.problem.offset().is_some()),
                damage.problem.offset(),
                guest,
            )
        });
        (damage, omitted)
    }
}
