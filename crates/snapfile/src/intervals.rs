//! A set of numbers that is kept as runs, so that its memory follows what was really described.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of `u64`, as disjoint runs that do not touch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intervals {
    /// First number of each run, and the number after its last.
    runs: BTreeMap<u64, u64>,
}

impl Intervals {
    /// Adds a run that is not empty; returns the first number that was there already, if any.
    pub(crate) fn insert(&mut self, run: Range<u64>) -> Option<u64> {
        let before = self
            .runs
            .range(..=run.start)
            .next_back()
            .map(|(start, end)| (*start, *end));
        if before.is_some_and(|(_, end)| end > run.start) {
            return Some(run.start);
        }
        let after = self
            .runs
            .range(run.start..)
            .next()
            .map(|(start, end)| (*start, *end));
        if let Some((start, _)) = after.filter(|(start, _)| *start < run.end) {
            return Some(start);
        }
        let mut joined = run;
        if let Some((start, _)) = before.filter(|(_, end)| *end == joined.start) {
            joined.start = start;
        }
        if let Some((start, end)) = after.filter(|(start, _)| *start == joined.end) {
            joined.end = end;
            self.runs.remove(&start);
        }
        self.runs.insert(joined.start, joined.end);
        None
    }

    /// Returns whether the number is in the set.
    pub(crate) fn contains(&self, number: u64) -> bool {
        self.runs
            .range(..=number)
            .next_back()
            .is_some_and(|(_, end)| *end > number)
    }

    /// Returns the first number below `end` that is not in the set.
    pub(crate) fn first_missing(&self, end: u64) -> Option<u64> {
        let missing = match self.runs.first_key_value() {
            Some((0, run_end)) => *run_end,
            _ => 0,
        };
        (missing < end).then_some(missing)
    }

    /// Returns how many numbers are in the set.
    pub(crate) fn count(&self) -> u64 {
        self.runs.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(runs in prop::collection::vec((0u64..60, 1u64..9), 0..40)) {
            let mut intervals = Intervals::default();
            let mut model = std::collections::BTreeSet::new();
            for (start, len) in runs {
                let run = start..start + len;
                let twice = run.clone().find(|number| model.contains(number));
                prop_assert_eq!(intervals.insert(run.clone()).is_some(), twice.is_some());
                if twice.is_none() {
                    model.extend(run);
                }
                prop_assert_eq!(intervals.count(), model.len() as u64);
            }
            for number in 0..70 {
                prop_assert_eq!(intervals.contains(number), model.contains(&number));
            }
            let missing = (0..50).find(|number| !model.contains(number));
            prop_assert_eq!(intervals.first_missing(50), missing);
        }
    }
}
