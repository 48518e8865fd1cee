//! What every page of the guest's memory must contain, computed from the registers of its vCPUs.
//!
//! The parameter page says which guest it is; the step register says which writes are complete; the
//! instruction pointer and the repeat counter say how much of the current one is. What cannot be known
//! is excluded by name and counted: the machine's boot area, and each vCPU's own page.

mod report;

use std::ops::Range;
use std::thread;

use kvm_bindings::kvm_regs;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::builtin::BuiltinError;
use crate::builtin::content::{Content, Page, ZERO_PAGE};
use crate::builtin::control_area::{self, ControlArea, ProgramAddresses};
use crate::builtin::layout::{
    BOOT_AREA_END, CODE, CONTROL_END, PAGE_SIZE, PARAMETERS, STRIDES, TABLE, TRAMPOLINE,
};
use crate::builtin::parameters::Parameters;
use crate::builtin::sequence::{Position, Stride};

pub use report::{Mismatch, OracleError, OracleReport, PageKind};

/// Steps stay below this: the top byte of a stamp is the vCPU.
const STEP_LIMIT: u64 = 1 << 56;

/// The registers of a vCPU that say what it has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as the processor's manual names them")]
pub struct VcpuRegisters {
    pub rip: u64,
    pub rcx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r15: u64,
}

impl From<&crate::Regs> for VcpuRegisters {
    fn from(regs: &crate::Regs) -> Self {
        Self {
            rip: regs.rip,
            rcx: regs.rcx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            r15: regs.r15,
        }
    }
}

impl From<&kvm_regs> for VcpuRegisters {
    fn from(regs: &kvm_regs) -> Self {
        Self {
            rip: regs.rip,
            rcx: regs.rcx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            r15: regs.r15,
        }
    }
}

/// Knows the content of guest memory at the instant of the given registers.
#[derive(Debug)]
pub struct Oracle {
    parameters: Parameters,
    area: ControlArea,
    parts: Vec<Part>,
}

/// How far one vCPU has come.
#[derive(Debug)]
struct Part {
    position: Position,
    /// Words of the current step that are written already.
    words_written: u32,
}

/// What a page has to be.
enum Expected<'a> {
    Bytes(PageKind, &'a [u8]),
    /// Page `page` of a vCPU's part, whose last complete write was by `step`.
    WorkingSet {
        cpu: u32,
        page: u64,
        step: u64,
    },
    Unknown,
}

impl Oracle {
    /// Guest physical address of the page that [`Oracle::new`] wants.
    pub const PARAMETER_PAGE: u64 = PARAMETERS;

    /// Reads the parameter page of a stopped guest and the registers of its vCPUs, in their order.
    ///
    /// # Errors
    ///
    /// A page that is not an intact parameter page; another number of vCPUs than the guest has;
    /// registers that no point of the program allows.
    pub fn new(parameter_page: &[u8; 4096], vcpus: &[VcpuRegisters]) -> Result<Self, OracleError> {
        Self::with_parameters(Parameters::decode(parameter_page)?, vcpus)
    }

    /// Reads the parameter page from the memory of a stopped guest.
    ///
    /// # Errors
    ///
    /// As [`Oracle::new`]; memory without a parameter page is memory without the guest.
    pub fn of_memory(memory: &GuestMemoryMmap, vcpus: &[VcpuRegisters]) -> Result<Self, OracleError> {
        Self::with_parameters(crate::builtin::parameters_in(memory)?, vcpus)
    }

    fn with_parameters(parameters: Parameters, vcpus: &[VcpuRegisters]) -> Result<Self, OracleError> {
        if vcpus.len() != parameters.cpus as usize {
            return Err(OracleError::Cpus {
                expected: parameters.cpus,
                found: vcpus.len(),
            });
        }
        let area = ControlArea::new(&parameters);
        let content = Content {
            parameters: &parameters,
            table: area.table(),
        };
        let strides = parameters.strides();
        let parts: Result<_, _> = (0..)
            .zip(vcpus)
            .map(|(cpu, registers)| Part::new(&content, &strides, cpu, registers))
            .collect();
        let parts = parts?;
        Ok(Self {
            parameters,
            area,
            parts,
        })
    }

    /// Returns the step that each vCPU does next, or is doing.
    #[must_use]
    pub fn steps(&self) -> Vec<u64> {
        self.parts.iter().map(|part| part.position.step).collect()
    }

    /// Compares one page of guest memory, whose address must be a multiple of its size.
    pub fn check_page(&self, gpa: u64, page: &[u8; 4096], report: &mut OracleReport) {
        let mut expected_page = ZERO_PAGE;
        let (kind, expected): (PageKind, &[u8]) = match self.expected(gpa) {
            Expected::Unknown => {
                report.pages_excluded += 1;
                return;
            }
            Expected::Bytes(kind, bytes) => (kind, bytes),
            Expected::WorkingSet { cpu, page, step } => {
                self.fill_expected(cpu, page, step, &mut expected_page);
                (PageKind::WorkingSet { cpu, step }, &expected_page)
            }
        };
        report.pages_checked += 1;
        if page != expected {
            report.add(Mismatch::new(gpa, kind, expected, page));
        }
    }

    /// Compares the pages of a range of guest physical addresses, which `read` provides.
    ///
    /// # Errors
    ///
    /// Whatever `read` returns; the report then lacks the rest of the range.
    pub fn check_range<E>(
        &self,
        range: Range<u64>,
        report: &mut OracleReport,
        mut read: impl FnMut(u64, &mut [u8; 4096]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut page = ZERO_PAGE;
        let mut gpa = range.start;
        while gpa < range.end {
            read(gpa, &mut page)?;
            self.check_page(gpa, &page, report);
            gpa += PAGE_SIZE;
        }
        Ok(())
    }

    /// Compares all of a stopped guest's memory, on every processor of the host.
    ///
    /// # Errors
    ///
    /// Memory that cannot be read.
    pub fn check_memory(&self, memory: &GuestMemoryMmap) -> Result<OracleReport, BuiltinError> {
        let workers = thread::available_parallelism().map_or(1, usize::from) as u64;
        let mut report = OracleReport::default();
        for region in memory.iter() {
            let (start, pages) = (region.start_addr().0, region.len() / PAGE_SIZE);
            let bound = |worker: u64| start + pages * worker / workers * PAGE_SIZE;
            let parts = thread::scope(|scope| {
                let handles: Vec<_> = (0..workers)
                    .map(|worker| {
                        scope.spawn(move || self.check_mapped(memory, bound(worker)..bound(worker + 1)))
                    })
                    .collect();
                handles
                    .into_iter()
                    .map(|handle| handle.join().expect("checking does not panic"))
                    .collect()
            });
            let parts: Vec<Result<OracleReport, BuiltinError>> = parts;
            for part in parts {
                report.merge(part?);
            }
        }
        Ok(report)
    }

    fn check_mapped(
        &self,
        memory: &GuestMemoryMmap,
        range: Range<u64>,
    ) -> Result<OracleReport, BuiltinError> {
        let mut report = OracleReport::default();
        self.check_range(range, &mut report, |gpa, page| {
            memory
                .read_slice(page, GuestAddress(gpa))
                .map_err(|source| BuiltinError::Memory { gpa, source })
        })?;
        Ok(report)
    }

    fn expected(&self, gpa: u64) -> Expected<'_> {
        if let Some(number) = self.parameters.page_number(gpa) {
            let cpu = u32::try_from(number / self.parameters.pages_per_cpu).expect("below the vCPU count");
            let page = number % self.parameters.pages_per_cpu;
            let step = self.parts[cpu as usize].position.last_step(page);
            return Expected::WorkingSet { cpu, page, step };
        }
        if gpa == TRAMPOLINE && !self.parameters.starts_zero {
            return Expected::Bytes(PageKind::Control, self.area.trampoline_page());
        }
        if gpa < BOOT_AREA_END {
            return Expected::Unknown;
        }
        if (CODE..CONTROL_END).contains(&gpa) {
            return match control_area::cpu_page_owner(&self.parameters, gpa) {
                Some(_) => Expected::Unknown,
                None => Expected::Bytes(PageKind::Control, self.area.page(gpa)),
            };
        }
        Expected::Bytes(PageKind::Unused, &ZERO_PAGE)
    }

    /// Makes a page of the working set: the loader's content, the last complete step's write, and the
    /// first words of the current step's if it is the page's.
    fn fill_expected(&self, cpu: u32, page: u64, step: u64, out: &mut Page) {
        let content = Content {
            parameters: &self.parameters,
            table: self.area.table(),
        };
        content.fill(u64::from(cpu) * self.parameters.pages_per_cpu + page, out);
        content.write(cpu, step, self.parameters.words_per_step, out);
        let part = &self.parts[cpu as usize];
        if part.words_written > 0 && part.position.current_page() == page {
            content.write(cpu, part.position.step, part.words_written, out);
        }
    }
}

impl Part {
    fn new(
        content: &Content<'_>,
        strides: &[Stride; STRIDES],
        cpu: u32,
        registers: &VcpuRegisters,
    ) -> Result<Self, OracleError> {
        let parameters = content.parameters;
        let addresses = ProgramAddresses::new();
        let pages = parameters.pages_per_cpu;
        // Before the workload begins the register means nothing, and round 0 is what there is.
        let running = (addresses.workload..addresses.end).contains(&registers.rip);
        let stamp = if running {
            registers.r15
        } else {
            Parameters::stamp(cpu, pages)
        };
        let refuse = |register, value| Err(OracleError::Register { cpu, register, value });
        let Some(step @ ..STEP_LIMIT) = stamp.checked_sub(Parameters::stamp(cpu, 0)) else {
            return refuse("r15", stamp);
        };
        if step < pages {
            return refuse("r15", stamp);
        }
        let position = Position::new(strides, pages, parameters.round_seed(cpu), step);
        let words = u64::from(parameters.words_per_step);
        let written = match registers.rip {
            rip if rip == addresses.stamp => 0,
            rip if rip == addresses.copy => match words.checked_sub(registers.rcx) {
                Some(written @ 1..) => written,
                _ => return refuse("rcx", registers.rcx),
            },
            rip if rip == addresses.advance => words,
            _ => {
                return Ok(Self {
                    position,
                    words_written: 0,
                });
            }
        };
        let page = u64::from(cpu) * pages + position.current_page();
        // The copy's registers are set before the stamp is stored.
        let copied = written.saturating_sub(1) * 8;
        if registers.rdi != parameters.write_address(page) + 8 + copied {
            return refuse("rdi", registers.rdi);
        }
        if registers.rsi != TABLE + content.source_offset(cpu, step) + copied {
            return refuse("rsi", registers.rsi);
        }
        Ok(Self {
            position,
            words_written: u32::try_from(written).expect("words of one step"),
        })
    }
}
