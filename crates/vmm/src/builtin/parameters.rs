//! The settings of a running guest, made from options and from the room that memory leaves.
//!
//! These few numbers decide everything that the guest does; `page` carries them to the guest and back.

mod page;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::builtin::layout::{
    LARGE_PAGE, MAX_CPUS, MAX_WORKING_SET, PAGE_SIZE, STRIDES, WINDOW, WORKING_SET,
};
use crate::builtin::sequence::{self, Stride, mix};
use crate::builtin::{BuiltinError, BuiltinOptions, WriteRate};

const WORDS_PER_PAGE: u32 = 512;
const MAX_PAGES_PER_SECOND: u32 = 100_000_000;

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
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn pages_of_the_working_set_skip_the_hole_and_are_found_again() {
        let room = Room {
            low_pages: 1024,
            high_address: 4 << 30,
            high_pages: 1024,
        };
        let options = BuiltinOptions {
            working_set_bytes: Some(1500 * PAGE_SIZE),
            ..BuiltinOptions::default()
        };
        let parameters = Parameters::new(&options, 2, room, false).unwrap();
        assert_eq!(parameters.working_set_pages(), 1500);
        assert_eq!(parameters.page_address(1023), WORKING_SET + 1023 * PAGE_SIZE);
        assert_eq!(parameters.page_address(1024), 4 << 30);
        for number in 0..1500 {
            assert_eq!(
                parameters.page_number(parameters.page_address(number)),
                Some(number)
            );
        }
        let outside = [
            0,
            WORKING_SET - PAGE_SIZE,
            WORKING_SET + 1024 * PAGE_SIZE,
            (4 << 30) + 476 * PAGE_SIZE,
        ];
        assert!(outside.iter().all(|gpa| parameters.page_number(*gpa).is_none()));
    }

    #[test]
    fn room_is_what_two_regions_leave() {
        let ranges = [(GuestAddress(0), 6 << 20), (GuestAddress(4 << 30), 1 << 20)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let Room {
            low_pages,
            high_address,
            high_pages,
        } = Room::of(&memory);
        assert_eq!((low_pages, high_address, high_pages), (512, 4 << 30, 256));
    }

    #[test]
    fn options_out_of_range_are_refused_with_their_limits() {
        type Change = fn(&mut BuiltinOptions);
        let cases: [(Change, u32, &str); 8] = [
            (|_| (), 0, "0 vCPUs: the built-in guest uses 1 to 32"),
            (|_| (), 33, "33 vCPUs: the built-in guest uses 1 to 32"),
            (
                |options| options.words_per_step = 0,
                1,
                "0 words per step: must be 1 to 512",
            ),
            (
                |options| options.words_per_step = 513,
                1,
                "513 words per step: must be 1 to 512",
            ),
            (
                |options| options.incompressible_percent = 101,
                1,
                "101 percent incompressible: must be 0 to 100",
            ),
            (
                |options| options.rate = WriteRate::PagesPerSecond(0),
                1,
                "0 pages per second: must be 1 to 100000000",
            ),
            (
                |options| options.working_set_bytes = Some(5 << 20),
                1,
                "a working set of 5242880 bytes for 1 vCPUs, in memory with room for 4194304",
            ),
            (
                |options| options.working_set_bytes = Some(8192),
                3,
                "a working set of 8192 bytes for 3 vCPUs, in memory with room for 4194304",
            ),
        ];
        for (change, cpus, expected) in cases {
            let mut options = BuiltinOptions::default();
            change(&mut options);
            let refusal = Parameters::new(&options, cpus, Room::flat(8 << 20), false).unwrap_err();
            assert_eq!(refusal.to_string(), expected);
        }
    }
}
