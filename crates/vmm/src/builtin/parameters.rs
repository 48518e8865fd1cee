//! The settings of a running guest: made from options, written to the parameter page, read back by the
//! oracle.
//!
//! A few numbers decide everything; the rest of the page is derived from them for the guest's
//! convenience. So [`Parameters::decode`] takes the few, encodes them again and insists on the same
//! page: a parameter page is right in every byte or refused.

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::content::{Page, ZERO_PAGE};
use super::layout::{
    self, LARGE_PAGE, MAX_CPUS, MAX_WORKING_SET, PAGE_SIZE, STRIDES, WINDOW, WORKING_SET, entry, index,
    parameter,
};
use super::sequence::{self, Stride, mix};
use super::{BuiltinError, BuiltinOptions, OracleError, WriteRate};

const MAGIC: u64 = u64::from_le_bytes(*b"VMSguest");
const VERSION: u32 = 1;
const WORDS_PER_PAGE: u32 = 512;
/// Ticks of the guest's timer per second, and what its counter counts in that time.
const TICKS_PER_SECOND: u64 = 1000;
const TIMER_COUNTS_PER_SECOND: u32 = 1_000_000_000;
const MAX_PAGES_PER_SECOND: u32 = 100_000_000;
/// Words of the working set written, roughly, between two events.
const WORDS_PER_EVENT: u32 = 128;
/// Where guest physical addresses end that the second memory region may have.
const MAX_ADDRESS: u64 = 1 << 46;

/// Everything that decides what the guest does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) seed: u64,
    pub(crate) cpus: u32,
    /// Pages of the working set that belong to each vCPU.
    pub(crate) pages_per_cpu: u64,
    /// Pages of the working set that fit in the first memory region.
    pub(crate) low_pages: u64,
    /// Where the working set goes on after those.
    pub(crate) high_address: u64,
    pub(crate) words_per_step: u32,
    pub(crate) incompressible_percent: u8,
    /// Pages per second and vCPU; zero is without rest.
    pub(crate) pages_per_second: u32,
    /// Nobody filled the working set: it starts as zero.
    pub(crate) starts_zero: bool,
}

/// Guest memory as the working set sees it: the region where it starts and the one after that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) low_pages: u64,
    pub(crate) high_address: u64,
    pub(crate) high_pages: u64,
}

impl Room {
    /// Finds the room that `memory` leaves for a working set.
    pub(crate) fn of(memory: &GuestMemoryMmap) -> Self {
        let mut room = Self {
            low_pages: 0,
            high_address: 0,
            high_pages: 0,
        };
        for region in memory.iter() {
            let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
            if start <= WORKING_SET {
                room.low_pages = end.saturating_sub(WORKING_SET) / PAGE_SIZE;
            } else if room.high_pages == 0 && start.is_multiple_of(LARGE_PAGE) {
                // The guest maps both regions side by side in large pages.
                room.low_pages -= room.low_pages % (LARGE_PAGE / PAGE_SIZE);
                room.high_address = start;
                room.high_pages = region.len() / PAGE_SIZE;
            }
        }
        room
    }

    /// Returns the room in one region that starts at address 0.
    pub(crate) fn flat(memory_bytes: u64) -> Self {
        let low_pages = memory_bytes.saturating_sub(WORKING_SET) / PAGE_SIZE;
        Self {
            low_pages,
            high_address: 0,
            high_pages: 0,
        }
    }
}

impl Parameters {
    pub(crate) fn new(
        options: &BuiltinOptions,
        cpus: u32,
        room: Room,
        starts_zero: bool,
    ) -> Result<Self, BuiltinError> {
        if !(1..=MAX_CPUS).contains(&cpus) {
            return Err(BuiltinError::Cpus {
                cpus,
                limit: MAX_CPUS,
            });
        }
        let words_per_step = options.words_per_step;
        if !(1..=WORDS_PER_PAGE).contains(&words_per_step) {
            return Err(BuiltinError::WordsPerStep {
                words: words_per_step,
                limit: WORDS_PER_PAGE,
            });
        }
        if options.incompressible_percent > 100 {
            return Err(BuiltinError::Percent {
                percent: options.incompressible_percent,
            });
        }
        let pages_per_second = match options.rate {
            WriteRate::FlatOut => 0,
            WriteRate::PagesPerSecond(rate) if (1..=MAX_PAGES_PER_SECOND).contains(&rate) => rate,
            WriteRate::PagesPerSecond(rate) => {
                return Err(BuiltinError::Rate {
                    rate,
                    limit: MAX_PAGES_PER_SECOND,
                });
            }
        };
        let available = (room.low_pages + room.high_pages).min(MAX_WORKING_SET / PAGE_SIZE);
        let wanted = options
            .working_set_bytes
            .map_or(available / 4 * 3, |bytes| bytes / PAGE_SIZE);
        let pages_per_cpu = wanted / u64::from(cpus);
        if wanted > available || pages_per_cpu == 0 {
            let wanted_bytes = wanted.saturating_mul(PAGE_SIZE);
            return Err(BuiltinError::WorkingSet {
                wanted_bytes,
                available_bytes: available * PAGE_SIZE,
                cpus,
            });
        }
        Ok(Self {
            seed: options.seed,
            cpus,
            pages_per_cpu,
            low_pages: room.low_pages,
            high_address: room.high_address,
            words_per_step,
            incompressible_percent: options.incompressible_percent,
            pages_per_second,
            starts_zero,
        })
    }

    /// Returns the number of pages in the working set.
    pub(crate) fn working_set_pages(&self) -> u64 {
        self.pages_per_cpu * u64::from(self.cpus)
    }

    /// Returns the guest physical address of page `number` of the working set.
    pub(crate) fn page_address(&self, number: u64) -> u64 {
        match number.checked_sub(self.low_pages) {
            None => WORKING_SET + number * PAGE_SIZE,
            Some(above) => self.high_address + above * PAGE_SIZE,
        }
    }

    /// Returns the number within the working set of the page at `gpa`.
    pub(crate) fn page_number(&self, gpa: u64) -> Option<u64> {
        let low = gpa.checked_sub(WORKING_SET).map(|offset| offset / PAGE_SIZE);
        let number = match low {
            Some(number) if number < self.low_pages => number,
            _ => self.low_pages + gpa.checked_sub(self.high_address)? / PAGE_SIZE,
        };
        (number < self.working_set_pages()).then_some(number)
    }

    /// Returns the offset in a page where each step writes.
    pub(crate) fn write_offset(&self) -> u64 {
        let slack = PAGE_SIZE - u64::from(self.words_per_step) * 8;
        (slack / 2) & !63
    }

    /// Returns the guest virtual address where a step writes to page `number` of the working set.
    pub(crate) fn write_address(&self, number: u64) -> u64 {
        WINDOW + number * PAGE_SIZE + self.write_offset()
    }

    pub(crate) fn strides(&self) -> [Stride; STRIDES] {
        sequence::strides(self.seed, self.pages_per_cpu)
    }

    pub(crate) fn round_seed(&self, cpu: u32) -> u64 {
        mix(self.seed ^ mix(u64::from(cpu)))
    }

    pub(crate) fn source_factor(&self, cpu: u32) -> u64 {
        mix(self.round_seed(cpu)) | 1
    }

    /// Returns the stamp that vCPU `cpu` leaves in the page of `step`.
    pub(crate) fn stamp(cpu: u32, step: u64) -> u64 {
        (u64::from(cpu) << 56) + step
    }

    /// Writes the parameter page.
    pub(crate) fn encode(&self) -> Page {
        let mut page = ZERO_PAGE;
        let mut put = |at: u64, bytes: &[u8]| {
            let at = index(at);
            page[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(parameter::MAGIC, &MAGIC.to_le_bytes());
        put(parameter::VERSION, &VERSION.to_le_bytes());
        put(parameter::CPUS, &self.cpus.to_le_bytes());
        put(parameter::SEED, &self.seed.to_le_bytes());
        put(parameter::PAGES_PER_CPU, &self.pages_per_cpu.to_le_bytes());
        put(
            parameter::BYTES_PER_CPU,
            &(self.pages_per_cpu * PAGE_SIZE).to_le_bytes(),
        );
        put(parameter::LOW_PAGES, &self.low_pages.to_le_bytes());
        put(parameter::HIGH_ADDRESS, &self.high_address.to_le_bytes());
        put(
            parameter::WORDS_AFTER_STAMP,
            &(self.words_per_step - 1).to_le_bytes(),
        );
        put(parameter::INCOMPRESSIBLE_PERCENT, &[self.incompressible_percent]);
        put(parameter::PAGES_PER_SECOND, &self.pages_per_second.to_le_bytes());
        put(parameter::FLAGS, &self.flags().to_le_bytes());
        put(parameter::STEPS_PER_EVENT, &self.steps_per_event().to_le_bytes());
        let credit = (u64::from(self.pages_per_second) << 32) / TICKS_PER_SECOND;
        put(parameter::CREDIT_PER_TICK, &credit.to_le_bytes());
        let timer_count = TIMER_COUNTS_PER_SECOND / 1000;
        put(parameter::TIMER_COUNT, &timer_count.to_le_bytes());
        for cpu in 0..self.cpus {
            let at = parameter::CPU_ENTRIES + u64::from(cpu) * parameter::ENTRY_LEN;
            let part_end = (u64::from(cpu) + 1) * self.pages_per_cpu;
            put(at + entry::PART_END, &self.write_address(part_end).to_le_bytes());
            put(at + entry::FIRST_STAMP, &Self::stamp(cpu, 0).to_le_bytes());
            put(at + entry::ROUND_SEED, &self.round_seed(cpu).to_le_bytes());
            put(at + entry::SOURCE_FACTOR, &self.source_factor(cpu).to_le_bytes());
            if self.starts_zero {
                let second_round = Self::stamp(cpu, 2 * self.pages_per_cpu);
                put(at + entry::MAY_BE_ZERO_BELOW, &second_round.to_le_bytes());
            }
        }
        for (number, Stride { stride, inverse }) in (0..).zip(self.strides()) {
            put(parameter::STRIDES + number * 16, &stride.to_le_bytes());
            put(parameter::STRIDES + number * 16 + 8, &inverse.to_le_bytes());
        }
        page
    }

    /// Reads a parameter page that may hold anything.
    pub(crate) fn decode(page: &Page) -> Result<Self, OracleError> {
        let u64_at = |at: u64| u64::from_le_bytes(*page[index(at)..].first_chunk().expect("within the page"));
        let u32_at = |at: u64| u32::from_le_bytes(*page[index(at)..].first_chunk().expect("within the page"));
        if u64_at(parameter::MAGIC) != MAGIC {
            return Err(OracleError::NoGuest {
                gpa: layout::PARAMETERS,
            });
        }
        if u32_at(parameter::VERSION) != VERSION {
            return Err(OracleError::Version {
                found: u32_at(parameter::VERSION),
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
        let most_pages = MAX_WORKING_SET / PAGE_SIZE;
        let plausible = (1..=MAX_CPUS).contains(&parameters.cpus)
            && (1..=WORDS_PER_PAGE).contains(&parameters.words_per_step)
            && (1..=most_pages).contains(&parameters.pages_per_cpu)
            && parameters.working_set_pages() <= most_pages
            && parameters.low_pages <= most_pages
            && parameters.high_address <= MAX_ADDRESS
            && parameters.incompressible_percent <= 100
            && parameters.pages_per_second <= MAX_PAGES_PER_SECOND;
        if !plausible || parameters.encode() != *page {
            return Err(OracleError::Parameters {
                gpa: layout::PARAMETERS,
            });
        }
        Ok(parameters)
    }

    fn flags(&self) -> u32 {
        let paced = if self.pages_per_second > 0 {
            parameter::FLAG_PACED
        } else {
            0
        };
        let starts_zero = if self.starts_zero {
            parameter::FLAG_STARTS_ZERO
        } else {
            0
        };
        paced | starts_zero
    }

    /// Events are rare enough to cost little, and frequent enough for gaps of a millisecond to show.
    fn steps_per_event(&self) -> u32 {
        (WORDS_PER_EVENT / (self.words_per_step + 3)).max(1)
    }
}
