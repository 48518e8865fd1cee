//! The parameter page: settings as the guest reads them, and the oracle after it.
//!
//! The page holds more than the settings, namely what the guest would have to compute from them. So a
//! page is decoded by taking the settings, encoding them again, and insisting on the same page: it is
//! right in every byte or refused. A checksum covers the settings that nothing else depends on.

use crate::builtin::OracleError;
use crate::builtin::content::{Page, ZERO_PAGE};
use crate::builtin::layout::{MAX_CPUS, MAX_WORKING_SET, PAGE_SIZE, PARAMETERS, entry, index, parameter};
use crate::builtin::parameters::{MAX_PAGES_PER_SECOND, Parameters, WORDS_PER_PAGE};
use crate::builtin::sequence::{Stride, mix};

const MAGIC: u64 = u64::from_le_bytes(*b"VMSguest");
const VERSION: u32 = 1;
/// The guest's timer counts nanoseconds, and ticks every millisecond.
const TIMER_COUNT: u32 = 1_000_000;
const TICKS_PER_SECOND: u64 = 1000;
/// Words of the working set written, roughly, between two events.
const WORDS_PER_EVENT: u32 = 128;
/// Where guest physical addresses end.
const MAX_ADDRESS: u64 = 1 << 46;

/// A parameter page being written.
struct PageWriter(Page);

impl PageWriter {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let at = index(at);
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_u32(&mut self, at: u64, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    fn put_u64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
}

impl Parameters {
    /// Writes the parameter page.
    pub(crate) fn encode(&self) -> Page {
        let mut page = PageWriter(ZERO_PAGE);
        page.put_u64(parameter::MAGIC, MAGIC);
        page.put_u32(parameter::VERSION, VERSION);
        page.put_u32(parameter::CPUS, self.cpus);
        page.put_u64(parameter::SEED, self.seed);
        page.put_u64(parameter::PAGES_PER_CPU, self.pages_per_cpu);
        page.put_u64(parameter::BYTES_PER_CPU, self.pages_per_cpu * PAGE_SIZE);
        page.put_u64(parameter::LOW_PAGES, self.low_pages);
        page.put_u64(parameter::HIGH_ADDRESS, self.high_address);
        page.put_u32(parameter::WORDS_AFTER_STAMP, self.words_per_step - 1);
        page.put(parameter::INCOMPRESSIBLE_PERCENT, &[self.incompressible_percent]);
        page.put_u32(parameter::PAGES_PER_SECOND, self.pages_per_second);
        page.put_u32(parameter::FLAGS, self.flags());
        page.put_u64(
            parameter::CREDIT_PER_TICK,
            (u64::from(self.pages_per_second) << 32) / TICKS_PER_SECOND,
        );
        page.put_u32(parameter::TIMER_COUNT, TIMER_COUNT);
        // Rare enough to cost little, frequent enough for gaps of a millisecond to show.
        page.put_u32(
            parameter::STEPS_PER_EVENT,
            (WORDS_PER_EVENT / (self.words_per_step + 3)).max(1),
        );
        for cpu in 0..self.cpus {
            self.put_entry(cpu, &mut page);
        }
        for (number, Stride { stride, inverse }) in (0..).zip(self.strides()) {
            page.put_u64(parameter::STRIDES + number * 16, stride);
            page.put_u64(parameter::STRIDES + number * 16 + 8, inverse);
        }
        let words = page.0.as_chunks().0;
        let checksum = words
            .iter()
            .fold(0, |sum, word| mix(sum ^ u64::from_le_bytes(*word)));
        page.put_u64(parameter::CHECKSUM, checksum);
        page.0
    }

    fn put_entry(&self, cpu: u32, page: &mut PageWriter) {
        let at = parameter::CPU_ENTRIES + u64::from(cpu) * parameter::ENTRY_LEN;
        let part_end = (u64::from(cpu) + 1) * self.pages_per_cpu;
        page.put_u64(at + entry::PART_END, self.write_address(part_end));
        page.put_u64(at + entry::FIRST_STAMP, Self::stamp(cpu, 0));
        page.put_u64(at + entry::ROUND_SEED, self.round_seed(cpu));
        page.put_u64(at + entry::SOURCE_FACTOR, self.source_factor(cpu));
        if self.starts_zero {
            page.put_u64(
                at + entry::MAY_BE_ZERO_BELOW,
                Self::stamp(cpu, 2 * self.pages_per_cpu),
            );
        }
    }

    fn flags(&self) -> u32 {
        let flag = |set: bool, flag| if set { flag } else { 0 };
        flag(self.pages_per_second > 0, parameter::FLAG_PACED)
            | flag(self.starts_zero, parameter::FLAG_STARTS_ZERO)
    }

    /// Reads a parameter page that may hold anything.
    pub(crate) fn decode(page: &Page) -> Result<Self, OracleError> {
        let u64_at = |at: u64| u64::from_le_bytes(*page[index(at)..].first_chunk().expect("within the page"));
        let u32_at = |at: u64| u32::from_le_bytes(*page[index(at)..].first_chunk().expect("within the page"));
        if u64_at(parameter::MAGIC) != MAGIC {
            return Err(OracleError::NoGuest { gpa: PARAMETERS });
        }
        let version = u32_at(parameter::VERSION);
        if version != VERSION {
            return Err(OracleError::Version {
                found: version,
                known: VERSION,
            });
        }
        let parameters = Self {
            seed: u64_at(parameter::SEED),
            cpus: u32_at(parameter::CPUS),
            pages_per_cpu: u64_at(parameter::PAGES_PER_CPU),
            low_pages: u64_at(parameter::LOW_PAGES),
            high_address: u64_at(parameter::HIGH_ADDRESS),
            words_per_step: u32_at(parameter::WORDS_AFTER_STAMP).saturating_add(1),
            incompressible_percent: page[index(parameter::INCOMPRESSIBLE_PERCENT)],
            pages_per_second: u32_at(parameter::PAGES_PER_SECOND),
            starts_zero: u32_at(parameter::FLAGS) & parameter::FLAG_STARTS_ZERO != 0,
        };
        if !parameters.is_in_range() || parameters.encode() != *page {
            return Err(OracleError::Parameters { gpa: PARAMETERS });
        }
        Ok(parameters)
    }

    /// Tells whether encoding can go by these numbers without overflow.
    fn is_in_range(&self) -> bool {
        let most_pages = MAX_WORKING_SET / PAGE_SIZE;
        (1..=MAX_CPUS).contains(&self.cpus)
            && (1..=WORDS_PER_PAGE).contains(&self.words_per_step)
            && (1..=most_pages).contains(&self.pages_per_cpu)
            && self.working_set_pages() <= most_pages
            && self.low_pages <= MAX_ADDRESS / PAGE_SIZE
            && self.high_address <= MAX_ADDRESS
            && self.incompressible_percent <= 100
            && self.pages_per_second <= MAX_PAGES_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::parameters::Room;
    use crate::builtin::{BuiltinOptions, WriteRate};

    fn parameters() -> Parameters {
        let room = Room {
            low_pages: 1024,
            high_address: 4 << 30,
            high_pages: 1024,
        };
        let options = BuiltinOptions {
            rate: WriteRate::PagesPerSecond(1234),
            ..BuiltinOptions::default()
        };
        Parameters::new(&options, 3, room, true).unwrap()
    }

    #[test]
    fn settings_survive_the_page() {
        assert_eq!(Parameters::decode(&parameters().encode()), Ok(parameters()));
    }

    #[test]
    fn a_page_with_any_byte_changed_is_refused() {
        let good = parameters().encode();
        for at in 0..good.len() {
            for change in [1, 0x80, 0xff] {
                let mut page = good;
                page[at] ^= change;
                assert!(
                    Parameters::decode(&page).is_err(),
                    "byte {at:#x} changed by {change:#x}"
                );
            }
        }
    }

    #[test]
    fn memory_of_something_else_is_no_guest() {
        assert_eq!(
            Parameters::decode(&ZERO_PAGE),
            Err(OracleError::NoGuest { gpa: PARAMETERS })
        );
    }
}
