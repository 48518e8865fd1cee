//! A fixed histogram of durations: four buckets to each power of two, recorded from any thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets per power of two, as a binary logarithm.
const STEPS_LOG2: u32 = 2;
const STEPS: usize = 1 << STEPS_LOG2;
/// Powers of two of a nanosecond that are told apart: up to about 18 minutes.
const POWERS: usize = 40;

/// Durations by size. A percentile is exact to a quarter of a power of two and never too small.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; POWERS * STEPS],
    max_ns: AtomicU64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Histogram {
            buckets: [const { AtomicU64::new(0) }; POWERS * STEPS],
            max_ns: AtomicU64::new(0),
        }
    }

    pub(crate) fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(ns)].fetch_add(1, Ordering::Relaxed);
        self.max_ns.fetch_max(ns, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .sum()
    }

    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns.load(Ordering::Relaxed))
    }

    /// A duration that at least `percent` of the recorded ones do not exceed.
    pub(crate) fn percentile(&self, percent: u64) -> Duration {
        let wanted = (self.count() * percent).div_ceil(100);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket.load(Ordering::Relaxed);
            if seen >= wanted && wanted > 0 {
                return Duration::from_nanos(upper_bound(index)).min(self.max());
            }
        }
        self.max()
    }
}

fn bucket(ns: u64) -> usize {
    let power = ns.max(1).ilog2();
    let step = ns.checked_shr(power.wrapping_sub(STEPS_LOG2)).unwrap_or(0) % STEPS as u64;
    (power as usize * STEPS + usize::try_from(step).unwrap_or(0)).min(POWERS * STEPS - 1)
}

/// The largest duration that falls into the bucket.
fn upper_bound(index: usize) -> u64 {
    let (power, step) = (index / STEPS, index as u64 % STEPS as u64);
    if power < STEPS_LOG2 as usize {
        return (1 << (power + 1)) - 1;
    }
    let width = 1u64 << (power - STEPS_LOG2 as usize);
    (1u64 << power) + (step + 1) * width - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_falls_into_a_bucket_that_holds_it() {
        for ns in (0..5000).chain([1 << 20, (1 << 20) + 1, (1 << 33) - 1]) {
            let index = bucket(ns);
            assert!(upper_bound(index) >= ns, "{ns} ns above bucket {index}");
            assert!(
                index == 0 || upper_bound(index - 1) < ns || ns < 8,
                "{ns} ns below bucket {index}"
            );
        }
    }

    #[test]
    fn percentiles_are_within_a_quarter_power_of_two() {
        let histogram = Histogram::new();
        for us in 1..=1000 {
            histogram.record(Duration::from_micros(us));
        }
        let p50 = histogram.percentile(50);
        assert!(
            p50 >= Duration::from_micros(500) && p50 <= Duration::from_micros(625),
            "{p50:?}"
        );
        assert_eq!(histogram.percentile(100), Duration::from_micros(1000));
        assert_eq!(histogram.count(), 1000);
    }

    #[test]
    fn empty_histogram_has_zero_percentiles() {
        assert_eq!(Histogram::new().percentile(99), Duration::ZERO);
    }
}
