//! The guest's control area as the loader places it: program, parameters, tables, patterns.
//!
//! Accessed and dirty bits are set in advance in page tables and descriptors, so that no processor has
//! a reason to write there: all of the area but the vCPUs' own pages stays as it was loaded.

use crate::builtin::content;
use crate::builtin::layout::{
    self, CODE, CONTROL_END, CPU_PAGES, IDENTITY_LEN, IDENTITY_TABLES, IDT, LARGE_PAGE, PAGE_SIZE,
    PARAMETERS, PML4, TABLE, WINDOW, WINDOW_TABLES, index,
};
use crate::builtin::parameters::Parameters;
use crate::builtin::payload::{self, STUB_LEN};

/// Bytes that one entry of the root maps.
const TABLE_SPAN: u64 = 512 << 30;
/// Present, writable, accessed.
const TABLE_ENTRY: u64 = 0x23;
/// Present, writable, accessed, dirty, large.
const LARGE_PAGE_ENTRY: u64 = 0xe3;
const CODE_SELECTOR: u64 = 0x18;
/// Present 64-bit interrupt gate.
const GATE: u64 = 0x8e;
const EXCEPTIONS: u64 = 32;

/// The bytes from [`CODE`] to [`CONTROL_END`].
#[derive(Debug)]
pub(crate) struct ControlArea {
    bytes: Vec<u8>,
    trampoline_page: Vec<u8>,
}

impl ControlArea {
    /// Lays out the area of a guest with these parameters.
    pub(crate) fn new(parameters: &Parameters) -> Self {
        let mut trampoline_page = trampoline().to_vec();
        trampoline_page.resize(index(PAGE_SIZE), 0);
        let mut area = Self {
            bytes: vec![0; index(CONTROL_END - CODE)],
            trampoline_page,
        };
        area.put(CODE, payload::program());
        area.put(PARAMETERS, &parameters.encode());
        area.put_interrupt_table();
        area.put_page_tables(parameters);
        area.put(TABLE, &content::pattern_table(parameters));
        area
    }

    /// Returns the whole area.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the page at [`layout::TRAMPOLINE`].
    pub(crate) fn trampoline_page(&self) -> &[u8] {
        &self.trampoline_page
    }

    /// Returns the page at `gpa`, which must lie in the area.
    pub(crate) fn page(&self, gpa: u64) -> &[u8] {
        let at = index(gpa - CODE);
        &self.bytes[at..at + index(PAGE_SIZE)]
    }

    /// Returns the pattern table.
    pub(crate) fn table(&self) -> &[u8] {
        &self.bytes[index(TABLE - CODE)..]
    }

    fn put(&mut self, gpa: u64, bytes: &[u8]) {
        let at = index(gpa - CODE);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_interrupt_table(&mut self) {
        let labels = payload::labels();
        for vector in 0..EXCEPTIONS {
            self.put_gate(vector, u64::from(labels.stubs) + vector * u64::from(STUB_LEN));
        }
        self.put_gate(layout::TIMER_VECTOR.into(), labels.tick.into());
        self.put_gate(layout::SPURIOUS_VECTOR.into(), labels.spurious.into());
    }

    fn put_gate(&mut self, vector: u64, program_offset: u64) {
        let handler = CODE + program_offset;
        let low = (handler & 0xffff) | CODE_SELECTOR << 16 | GATE << 40 | (handler >> 16 & 0xffff) << 48;
        self.put(IDT + vector * 16, &low.to_le_bytes());
        self.put(IDT + vector * 16 + 8, &(handler >> 32).to_le_bytes());
    }

    fn put_page_tables(&mut self, parameters: &Parameters) {
        self.put_tables(0, IDENTITY_TABLES, IDENTITY_LEN / LARGE_PAGE, |number| {
            number * LARGE_PAGE
        });
        let pages_per_large_page = LARGE_PAGE / PAGE_SIZE;
        let large_pages = parameters.working_set_pages().div_ceil(pages_per_large_page);
        self.put_tables(WINDOW, WINDOW_TABLES, large_pages, |number| {
            parameters.page_address(number * pages_per_large_page)
        });
    }

    /// Maps large pages from virtual address `start` on: one table, then its directories.
    fn put_tables(&mut self, start: u64, table: u64, large_pages: u64, target: impl Fn(u64) -> u64) {
        self.put(
            PML4 + start / TABLE_SPAN * 8,
            &(table | TABLE_ENTRY).to_le_bytes(),
        );
        for number in 0..large_pages {
            let entry = table + PAGE_SIZE + number * 8;
            let directory = entry - entry % PAGE_SIZE;
            let directory_entry = table + (directory - table - PAGE_SIZE) / PAGE_SIZE * 8;
            self.put(directory_entry, &(directory | TABLE_ENTRY).to_le_bytes());
            self.put(entry, &(target(number) | LARGE_PAGE_ENTRY).to_le_bytes());
        }
    }
}

/// Returns the vCPU whose own page (mailbox and stack) is at `gpa`.
pub(crate) fn cpu_page_owner(parameters: &Parameters, gpa: u64) -> Option<u32> {
    let cpu = u32::try_from(gpa.checked_sub(CPU_PAGES)? / PAGE_SIZE).ok()?;
    (cpu < parameters.cpus).then_some(cpu)
}

/// Returns the code that application processors start with.
fn trampoline() -> &'static [u8] {
    let labels = payload::labels();
    &payload::program()[index(labels.trampoline.into())..index(labels.trampoline_end.into())]
}

/// Addresses in the program, as vCPUs see them in their instruction pointer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgramAddresses {
    pub(crate) workload: u64,
    pub(crate) stamp: u64,
    pub(crate) copy: u64,
    pub(crate) advance: u64,
    pub(crate) end: u64,
}

impl ProgramAddresses {
    pub(crate) fn new() -> Self {
        let labels = payload::labels();
        Self {
            workload: CODE + u64::from(labels.workload),
            stamp: CODE + u64::from(labels.stamp),
            copy: CODE + u64::from(labels.copy),
            advance: CODE + u64::from(labels.advance),
            end: CODE + payload::program().len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::BuiltinOptions;
    use crate::builtin::parameters::Room;

    /// Translates a guest virtual address as a processor does.
    fn translate(area: &ControlArea, address: u64) -> u64 {
        let entry = |table: u64, shift: u32| {
            let at = index((table & !0xfff) - CODE + (address >> shift & 511) * 8);
            u64::from_le_bytes(*area.bytes[at..].first_chunk().unwrap())
        };
        let directory = entry(entry(PML4, 39), 30);
        let large_page = entry(directory, 21);
        assert_eq!(
            [directory & 0xfff, large_page & 0xfff],
            [TABLE_ENTRY, LARGE_PAGE_ENTRY]
        );
        (large_page & !0x1f_ffff) + address % LARGE_PAGE
    }

    #[test]
    fn page_tables_lead_to_each_page_of_the_working_set() {
        let room = Room {
            low_pages: 2560,
            high_address: 4 << 30,
            high_pages: 300_000,
        };
        let options = BuiltinOptions {
            working_set_bytes: None,
            ..BuiltinOptions::default()
        };
        let parameters = Parameters::new(&options, 2, room, false).unwrap();
        let area = ControlArea::new(&parameters);
        for number in (0..parameters.working_set_pages()).step_by(61) {
            let address = translate(&area, WINDOW + number * PAGE_SIZE);
            assert_eq!(address, parameters.page_address(number), "page {number}");
        }
        for address in [CODE, layout::LAPIC, IDENTITY_LEN - 1] {
            assert_eq!(translate(&area, address), address);
        }
    }

    #[test]
    fn the_program_fits_before_the_parameters() {
        assert!(payload::program().len() as u64 <= PARAMETERS - CODE);
        assert!(trampoline().len() as u64 <= PAGE_SIZE);
    }
}
